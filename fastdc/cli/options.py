"""Options and progress that several commands share, so that a word means the same everywhere."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from fastdc.backends import BACKENDS
from fastdc.classifier import DiffusionClassifier, load
from fastdc.decide import DECISIONS
from fastdc.exceptions import InputError
from fastdc.extras import require

Command = TypeVar("Command", bound=Callable[..., Any])

_RUN_OPTIONS = (
    click.option("--model", default="digits", show_default=True, help="A shipped model or a bundle folder."),
    click.option("--rule", default="full", show_default=True, help="When to stop: full evaluates everything."),
    click.option(
        "--decision",
        type=click.Choice(DECISIONS),
        default="mean",
        show_default=True,
        help="mean: smallest mean error wins; vote: most draws won.",
    ),
    click.option("--draws", type=int, help="Noise draws a class; more is surer and slower.  [default: the model's]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the noise; same seed, same result."),
    click.option(
        "--backend",
        type=click.Choice(("auto", *BACKENDS)),
        default="auto",
        show_default=True,
        help="What runs the network.",
    ),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N."),
    click.option("--batch", type=int, help="Network evaluations in a step.  [default: 128]"),
    click.option("--threads", type=int, help="CPU threads.  [default: all usable]"),
    click.option("--quiet", is_flag=True, help="No progress bar, no notes."),
)


def run_options(command: Command) -> Command:
    """Adds the options of commands that run a classifier."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


def open_classifier(options: dict[str, Any]) -> DiffusionClassifier:
    """The classifier that a command's options name."""
    return load(
        options["model"],
        backend=options["backend"],
        device=options["device"],
        batch=options["batch"],
        threads=options["threads"],
    )


def check_output(path: str, inputs: Iterable[str] = ()) -> None:
    """Refuses a file that cannot be written, before the work whose result it would hold.

    Args:
        path: Where a file is to be written.
        inputs: Files that are read and must not be replaced.

    Raises:
        InputError: Its folder is missing or cannot be written to, or the file is a folder or one of the inputs.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a folder: expected one to write {target.name} to")
    if target.is_dir():
        raise InputError(f"{target} is a folder: expected a file to write to")
    if target.exists() and any(Path(name).exists() and target.samefile(name) for name in inputs):
        raise InputError(f"{target} is an input: choose another file to write to")
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise InputError(f"{target.parent} cannot be written to: {error.strerror}") from None


def check_plot(path: str) -> None:
    """Refuses a plot before the work that it would show: no matplotlib, or no folder to write to.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InputError: The path's suffix will not do, or see :func:`check_output`.
    """
    require("matplotlib", extra="plot")
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"a plot is written as .png, .svg or .pdf, got {path!r}")
    check_output(path)


@contextmanager
def progress_bar(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr over network evaluations, drawn only on a terminal; yields a function that advances it."""
    from tqdm import tqdm

    disable = True if quiet else None  # None: tqdm's word for "only on a terminal"
    with tqdm(total=total, unit="eval", unit_scale=True, disable=disable, dynamic_ncols=True, leave=False) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
