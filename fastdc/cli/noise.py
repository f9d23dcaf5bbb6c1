"""What a command says besides its results: warnings become notes of one line, and ``--quiet`` leaves errors only."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from fastdc.support import PromptWarning, one_line

# What libraries read when they are imported, so that they draw no bars and print no advice.
_HUSHED = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def note(text: object) -> None:
    """Prints a note on stderr."""
    click.echo(f"note: {text}", err=True)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Prints warnings as notes, in place of Python's form with the file and the line of a program."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        note(one_line(message if isinstance(message, Warning) else Warning(message), most=500))

    with warnings.catch_warnings():
        warnings.simplefilter("always", PromptWarning)
        warnings.showwarning = show
        yield


@contextmanager
def log_as_notes() -> Iterator[None]:
    """Prints what fastdc logs as notes, such as the choice of ``fastdc bench`` that it uses."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said, mark, options = record.getMessage().rpartition("; ")
            if options.endswith(" override it"):
                options = re.sub(r"\b(?=(?:backend|precision|batch)\b)", "--", options)
            note(one_line(Warning(f"{said}{mark}{options}"), most=500))

    logger, handler = logging.getLogger("fastdc"), Notes()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def hushed() -> Iterator[None]:
    """Lets Python's warnings and the libraries that will be imported print nothing but errors."""
    before = {name: os.environ.get(name) for name in _HUSHED}
    disabled = logging.root.manager.disable
    os.environ.update(_HUSHED)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
