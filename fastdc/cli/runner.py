"""Runs a classifier over many images for a command: one run, one progress bar, results handed on as they are known."""

import json
from collections.abc import Iterator
from typing import Any

from fastdc.classifier import DiffusionClassifier
from fastdc.cli.options import progress_bar
from fastdc.exceptions import InputError, Interrupted
from fastdc.results import Classification, Progress

# Images whose results are handed on together: enough to decide at once, few enough to see lines come.
CHUNK = 16


def classify_chunks(classifier: DiffusionClassifier, images: Any, options: dict[str, Any]) -> Iterator[Classification]:
    """Classifies images (n, c, h, w).

    Yields:
        Results of consecutive images, as soon as they are known. On Ctrl-C, the results that were finished.

    Raises:
        Interrupted: After those.
    """
    with progress_bar(len(images), quiet=options["quiet"]) as advance:
        done = 0

        def progress(state: Progress) -> None:
            nonlocal done
            advance(state.finished - done, f"{state.evaluations:,} evaluations")
            done = state.finished

        try:
            yield from classifier.stream(
                images,
                chunk=CHUNK,
                rule=options["rule"],
                rule_options=rule_options(options["rule_option"]),
                decision=options["decision"],
                draws=options["draws"],
                seed=options["seed"],
                progress=progress,
            )
        except Interrupted as stop:
            if stop.result is not None:
                yield stop.result
            raise


def rule_options(entries: tuple[str, ...]) -> dict[str, Any]:
    """The options of a rule from "name=value" entries; values are JSON, lists may leave out their brackets.

    Raises:
        InputError: An entry is not of that form, or names an option twice.
    """
    options: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not name:
            raise InputError(f"a rule option must be name=value, got {entry!r}")
        if name in options:
            raise InputError(f"rule option {name!r} is given twice")
        try:
            options[name] = json.loads(f"[{text}]" if "," in text and not text.startswith("[") else text)
        except ValueError:
            options[name] = text
    return options
