"""Runs a classifier over many images for a command: one run, one progress bar, results handed on as they are known."""

import json
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from fastdc.classifier import DiffusionClassifier
from fastdc.cli.options import Advance, plan_options, progress_bar
from fastdc.inference import Classification, OnProgress, Progress, Settings
from fastdc.rules import Calibrated, describe
from fastdc.support import InputError, Interrupted

# Images whose results are handed on together: enough to decide at once, few enough to see lines come.
CHUNK = 16


def classify_chunks(classifier: DiffusionClassifier, images: Any, options: dict[str, Any]) -> Iterator[Classification]:
    """Classifies images (n, c, h, w).

    A Ctrl-C while the caller handles a result waits until it asks for the next one, so that what was finished is
    handed on whole; a second one does not wait.

    Yields:
        Results of consecutive images, as soon as they are known. On Ctrl-C, the results that were finished.

    Raises:
        Interrupted: After those.
    """
    with progress_of(quiet=options["quiet"]) as progress:
        stream = classifier.stream(
            images,
            chunk=CHUNK,
            rule=options["rule"],
            rule_options=rule_options(options["rule_option"]),
            decision=options["decision"],
            seed=options["seed"],
            progress=progress,
            **plan_options(options, classifier.model),
        )
        results = cast("Generator[Classification, None, None]", stream)
        try:
            for result in results:
                with _bar_hidden(), held_back() as interrupted:
                    yield result
                if interrupted():
                    raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            stop = error if isinstance(error, Interrupted) else _stop(results)
            if stop.result is not None:
                with _bar_hidden(), held_back():
                    yield stop.result
            raise stop from None


def _stop(results: "Generator[Classification, None, None]") -> Interrupted:
    """Interrupts a stream between two results; what it has finished comes with the interruption."""
    try:
        results.throw(KeyboardInterrupt())
    except Interrupted as stop:
        return stop
    raise KeyboardInterrupt


@contextmanager
def progress_of(*, runs: int = 1, quiet: bool, description: str | None = None) -> Iterator[OnProgress]:
    """A bar over the images of several runs, one after the other; it appears with the first step."""
    last = Progress(0, 0, 0, 0)
    before = 0
    advance: Advance | None = None
    with ExitStack() as stack:

        def progress(state: Progress) -> None:
            nonlocal last, before, advance
            if advance is None:
                advance = stack.enter_context(progress_bar(runs * state.images, quiet=quiet, description=description))
            if state.evaluations <= last.evaluations:  # the next run
                before += last.evaluations
                last = Progress(0, 0, 0, 0)
            advance(state.finished - last.finished, f"{before + state.evaluations:,} evaluations")
            last = state

        yield progress


def settings_of(classifier: DiffusionClassifier, options: dict[str, Any]) -> Settings:
    """The settings that a command's options ask for.

    Raises:
        InputError: An option cannot be used.
    """
    return classifier.settings(
        rule=options["rule"],
        rule_options=rule_options(options["rule_option"]),
        decision=options["decision"],
        seed=options["seed"],
        temperature=None,
        **plan_options(options, classifier.model),
    )


def rule_text(settings: Settings) -> str:
    """A rule with its options and, where the model's calibration is what runs, its promise."""
    rule = settings.job.rule
    if isinstance(rule, Calibrated):
        calibration = settings.job.model.calibration
        if calibration is not None and (
            calibration.fits(settings.job.plan.config)
            and calibration.draws == settings.job.plan.draws  # fewer may decide otherwise among the classes left
            and calibration.limit <= rule.limit
        ):
            return f"{rule.name}, limit {rule.limit:.4g}: {promise(calibration.delta)}"
        return f"{rule.name}, limit {rule.limit:.4g}"
    options = {name: value for name, value in describe(rule).items() if name != "name" and value is not None}
    if not options:
        return f"{rule.name}: every class at every draw" if rule.name == "full" else rule.name
    return f"{rule.name}, " + ", ".join(f"{name} {value!s:.60}" for name, value in options.items())


def promise(delta: float) -> str:
    """What a calibration at level delta says."""
    return f"at most {100 * delta:.3g} % of answers differ from the full run"


def rule_options(entries: tuple[str, ...]) -> dict[str, Any]:
    """The options of a rule from "name=value" entries; values are JSON, lists may leave out their brackets.

    Raises:
        InputError: An entry is not of that form, or names an option twice.
    """
    options: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not name:
            raise InputError(f"a rule option must be name=value, got {entry!r:.80}")
        if name in options:
            raise InputError(f"rule option {name!r:.80} is given twice")
        try:
            options[name] = json.loads(f"[{text}]" if "," in text and not text.startswith("[") else text)
        except (ValueError, RecursionError):
            options[name] = text
    return options


@contextmanager
def _bar_hidden() -> Iterator[None]:
    """Takes the bar off the terminal while lines are printed on it."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        yield


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Holds back the first Ctrl-C; yields a function that tells whether there was one."""
    held = False
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):  # nor may it be handled
        yield lambda: False
        return

    def hold(number: int, frame: Any) -> None:
        nonlocal held
        if held:
            handler(number, frame)
        held = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: held
    finally:
        signal.signal(signal.SIGINT, handler)
