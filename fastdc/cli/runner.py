"""Classification for a command: one progress bar, results in order as they become known, and whole lines on Ctrl-C."""

import json
import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import click
from click.core import ParameterSource

from fastdc.bundle import Model
from fastdc.classifier import DiffusionClassifier
from fastdc.cli.options import Advance, plan_options, progress_bar
from fastdc.cli.stop_signals import held_back
from fastdc.inference import Classification, ImageOptions, OnProgress, Progress, RunOptions, Settings, merged
from fastdc.rules import Calibrated, describe
from fastdc.support import InputError, Interrupted

# Images per result: enough to decide them together, few enough that lines appear steadily.
CHUNK = 16

# The images of a command are in order and mapped to [0, 1] before a classifier gets them.
IN_ORDER: ImageOptions = {"window": None, "fit": None, "layout": "NCHW", "max_pixels": None}


def classify_chunks(
    classifier: DiffusionClassifier, images: Any, options: dict[str, Any]
) -> "Generator[Classification, None, None]":
    """Classifies images (n, c, h, w) with the options of a command; see :func:`whole_results`."""
    with progress_of(quiet=options["quiet"]) as progress:
        stream = classifier.stream(
            images,
            chunk=CHUNK,
            progress=progress,
            **run_keywords(options, classifier.model),
        )
        yield from whole_results(stream)


def whole_results(stream: Iterator[Classification]) -> Iterator[Classification]:
    """Hands on the results of a stream so that Ctrl-C tears none apart.

    If Ctrl-C comes while the caller handles a result, it takes effect when the caller asks for the next one, so that
    every finished result is handled completely. A second Ctrl-C takes effect at once.

    Yields:
        Results of consecutive images, as soon as they are known. After Ctrl-C, the results that are finished.

    Raises:
        Interrupted: Ctrl-C was pressed; raised after the finished results.
    """
    results = cast("Generator[Classification, None, None]", stream)
    try:
        for result in results:
            with bar_hidden(), held_back() as interrupted:
                yield result
            if interrupted():
                raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, Interrupted) else _stop(results)
        if stop.result is not None:
            with bar_hidden(), held_back():
                yield stop.result
        raise stop from None


def _stop(results: "Generator[Classification, None, None]") -> Interrupted:
    """Interrupts a stream between two results; the interruption carries the finished results."""
    try:
        results.throw(KeyboardInterrupt())
    except Interrupted as stop:
        return stop
    raise KeyboardInterrupt


@contextmanager
def progress_of(*, runs: int = 1, quiet: bool, description: str | None = None) -> Iterator[OnProgress]:
    """A bar over the images of several consecutive runs; it appears with the first step."""
    last = Progress(0, 0, 0, 0)
    before = 0
    advance: Advance | None = None
    with ExitStack() as stack:

        def progress(state: Progress) -> None:
            nonlocal last, before, advance
            if advance is None:
                advance = stack.enter_context(progress_bar(runs * state.images, quiet=quiet, description=description))
            if state.begins_after(last):
                before += last.evaluations
                last = Progress(0, 0, 0, 0)
            advance(state.finished - last.finished, f"{before + state.evaluations:,} evaluations")
            last = state

        yield progress


def settings_of(classifier: DiffusionClassifier, options: dict[str, Any]) -> Settings:
    """The settings that a command's options describe.

    Raises:
        InputError: An option is not valid.
    """
    return classifier.settings(**run_keywords(options, classifier.model))


def checked_settings(model: Model, options: dict[str, Any]) -> Settings:
    """The settings that a command's options describe, without networks: to check them before one is opened.

    Raises:
        InputError: An option is not valid.
    """
    with default_rule_named():
        return Settings.of(model, (), merged(None, run_keywords(options, model)))


@contextmanager
def default_rule_named() -> Iterator[None]:
    """Names the rule as the user does in an error about its options: the default, or race for what it stands for."""
    try:
        yield
    except InputError as error:
        found, context = re.match(r"rule (\w+)(?= has no option )", str(error)), click.get_current_context()
        if found is None or context.params["rule"] != "race":
            raise
        said = str(error)[found.end() :]
        if context.get_parameter_source("rule") is ParameterSource.DEFAULT:
            raise InputError(f"the default rule, {found[1]},{said}; --rule chooses another") from None
        raise InputError(f"rule race ({found[1]}){said}") from None


def run_keywords(options: dict[str, Any], model: Model) -> RunOptions:
    """The options of a run as keywords, for images that are in order."""
    return {
        "rule": options["rule"],
        "rule_options": rule_options(options["rule_option"]),
        "decision": options["decision"],
        "seed": options["seed"],
        "temperature": None,
        "prior": options["prior"],
        "self_calibrate": options["self_calibrate"],
        **IN_ORDER,
        **plan_options(options, model),
    }


def rule_text(settings: Settings) -> str:
    """A rule with its options, and its guarantee if the model's calibration applies."""
    rule, own = settings.job.rule, settings.self_calibration
    if own is not None:
        return f"race, calibrated on {own.images} images of this run: {promise(own.delta)}"
    if isinstance(rule, Calibrated):
        promised = settings.job.promised
        kept = "" if promised is None else f": {promise(1 - promised)}"
        return f"{rule.name}, limit {rule.limit:.4g}{kept}"
    options = {name: value for name, value in describe(rule).items() if name != "name" and value is not None}
    if not options:
        return f"{rule.name}: every class at every draw" if rule.name == "full" else rule.name
    return f"{rule.name}, " + ", ".join(f"{name} {value!s:.60}" for name, value in options.items())


def promise(delta: float) -> str:
    """The guarantee of a calibration at level delta."""
    return f"at most {100 * delta:.3g} % of answers differ from the full run"


def rule_options(entries: tuple[str, ...]) -> dict[str, Any]:
    """The options of a rule from "name=value" entries. Values are JSON; lists may omit brackets and end in a comma.

    Raises:
        InputError: An entry has another form, or an option is given twice.
    """
    options: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not name:
            raise InputError(f"--rule-option must be NAME=VALUE, got {entry!r:.80}")
        if name in options:
            raise InputError(f"--rule-option {name!r:.80} is given twice")
        try:
            options[name] = json.loads(
                f"[{text.removesuffix(',')}]" if "," in text and not text.startswith("[") else text
            )
        except (ValueError, RecursionError):
            options[name] = text
    return options


@contextmanager
def bar_hidden() -> Iterator[None]:
    """Hides the bar while lines are printed on the terminal."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        yield
