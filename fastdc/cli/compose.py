"""``fastdc compose``: which text describes each image, for several models, on the compositional evaluation.

:mod:`fastdc.matching` reads the data, runs the models and computes the tables.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastdc.cli.noise import note
from fastdc.cli.options import Advance, check_output, plan_options, progress_bar
from fastdc.cli.race_notes import level_of, paired_tests_notes
from fastdc.cli.runner import default_rule_named, rule_options
from fastdc.cli.stop_signals import held_back
from fastdc.matching import CALIBRATED_ON, SETTINGS, Cell, Comparison, Entrant, Trials, compose, read_layout
from fastdc.support import FastdcError, InputError, Interrupted, __version__, checks

if TYPE_CHECKING:
    from fastdc.bundle import Bundle
    from fastdc.inference import ImageOptions, RunOptions

_FILES = {"csv": "csv", "latex": "tex", "html": "html", "answers": "csv"}
_OF_ANY = (
    *("data", "models", "clip", "siglip", "vilt", "tasks", "splits", "zsl", "gzsl", "images", "prompts"),
    *("calibrate", "delta", "compat", "device", "threads", "quiet", "as_json", "out", *_FILES),
)
"""Options that say something without --model, or are refused by themselves."""

_CALIBRATED = (
    "races are calibrated for each task and setting on {count} images of ID_val: an answer to an image of ID_test "
    "differs from the full run's with probability at most {delta:.3g} %; those of ID_val chose the limit, and unseen "
    "classes are promised nothing"
)
_WAY = (
    "--calibrate 99 would run 99 images of ID_val in full, for each task and setting, and race the others, usually "
    "with fewer evaluations"
)
_RELEASED = (
    "diffusion models are scored as the released code does: a pair's texts on all images of its split; an image of "
    "pairs counts once per table, so that intervals are too narrow, and models are not compared there"
)

Cells = Mapping[Cell, Trials]


def run(data: str, as_json: bool, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.compose`."""
    _check(data, options)
    cells = _read(data, options)
    with ExitStack() as stack:
        bars = stack.enter_context(_bars(quiet=options["quiet"]))
        entrants, notes = _entrants(data, cells, options, bars)
        stop: Interrupted | FastdcError | None = None
        try:
            found = compose(entrants, out=options["out"], facts=_facts(data, options), notes=notes, progress=bars.of)
        except (Interrupted, FastdcError) as stopped:
            if not isinstance(stopped.result, Comparison):
                raise
            stop, found = stopped, stopped.result
    with held_back():  # a second Ctrl-C would lose it
        try:
            _write(found, options)
        finally:  # also if the disk is full
            click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False) if as_json else found.to_text())
    if stop is not None:
        raise stop


def _check(data: str, options: Mapping[str, Any]) -> None:
    """Refuses options that do not go together, and files that cannot be written.

    Raises:
        InputError: See above.
    """
    if not any(options[kind] for kind in ("models", "clip", "siglip", "vilt")):
        raise InputError("expected a model to ask: --model, --clip, --siglip or --vilt")
    if not options["models"]:
        _check_rivals()
    if options["calibrate"] is None and options["delta"] is not None:
        raise InputError("--delta is the level of --calibrate, which is missing")
    if options["calibrate"] is not None:
        _delta({**options, "calibrate": checks.whole("calibrate", options["calibrate"])})
        if not options["models"]:
            raise InputError("--calibrate is for the race of --model, which is missing")
        if options["rule"] not in ("race", "calibrated") or options["rule_option"]:
            raise InputError("--calibrate finds the limit of the race: expected no other --rule, and no -o")
        if options["compat"] is not None:
            raise InputError(
                "--calibrate is for images with candidates of their own, and --compat otmive has others: expected one"
            )
    for name, end in _FILES.items():
        path = options[name]
        if path is not None:
            if Path(path).suffix.lower() != f".{end}":
                raise InputError(f"--{name} needs a name that ends in .{end}, got {path!r:.80}")
            check_output(path, [data])
    written = [Path(options[name]).resolve() for name in _FILES if options[name] is not None]
    if len(set(written)) < len(written):
        raise InputError("two outputs have one name: expected different files")
    if options["out"] is not None and not Path(options["out"]).absolute().parent.is_dir():
        raise InputError(f"{Path(options['out']).parent} is not a folder: expected one to make {options['out']} in")


def _check_rivals() -> None:
    """Refuses what says nothing without --model."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        if name not in _OF_ANY and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise InputError(f"{option.opts[0]} is for --model, which is missing")


def _read(data: str, options: Mapping[str, Any], **changed: Any) -> dict[Cell, Trials]:
    """The trials of the cells that are asked for.

    Raises:
        InputError: The layout is wrong.
    """
    prompts: dict[str, str] = {}
    for entry in options["prompts"]:
        what, equals, path = entry.partition("=")
        if not equals or not what or not path:
            raise InputError(f"--prompts must be WHAT=PATH, got {entry!r:.80}")
        if what in prompts:
            raise InputError(f"--prompts names {what!r:.80} twice")
        prompts[what] = path
    chosen = tuple(setting for setting in SETTINGS if options[setting]) or SETTINGS
    asked = {"tasks": options["tasks"], "splits": options["splits"], "images": options["images"]}
    return read_layout(data, settings=chosen, prompts=prompts, **{**asked, **changed})


def _entrants(data: str, cells: Cells, options: dict[str, Any], bars: "_Bars") -> tuple[list[Entrant], list[str]]:
    """The models, each with its cells, and what a reader should know.

    Raises:
        InputError: A model or an option cannot be used.
    """
    from fastdc.certification import names_of

    given = [(kind, path) for kind in ("models", "clip", "siglip", "vilt") for path in options[kind]]
    names = names_of([Path(path.rstrip("/") or path) for _, path in given])
    diffusion, notes = cells, list[str]()
    if options["compat"] is not None and options["models"]:
        diffusion = _read(data, options, compat=options["compat"])
        notes.append(_RELEASED)
    validation = {} if options["calibrate"] is None else _validation(data, cells, options)
    if validation:
        counts = sorted({len(trials) for trials in validation.values()})
        count = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
        notes.append(_CALIBRATED.format(count=count, delta=100 * _delta(options)))
    named = list(zip(given, names, strict=True))
    opened = [
        _diffusion(path, name, diffusion, options, validation, bars) for (kind, path), name in named if kind == "models"
    ]
    made = [one for one, _ in opened]
    made += [_rival(kind, path, name, cells, options) for (kind, path), name in named if kind != "models"]
    for told in (one for _, noted in opened for one in noted):  # once nothing is refused
        note(told)
    return made, notes


def _validation(data: str, cells: Cells, options: Mapping[str, Any]) -> dict[Cell, Trials]:
    """The images on which races are calibrated.

    Raises:
        InputError: A task has none.
    """
    tasks = tuple(dict.fromkeys(cell.task for cell in cells))
    try:
        found = _read(data, options, tasks=tasks, splits=[CALIBRATED_ON], images=options["calibrate"])
    except InputError as error:
        raise InputError(f"--calibrate takes images of {CALIBRATED_ON}: {error}") from None
    lacking = next((cell for cell in cells if replace(cell, split=CALIBRATED_ON) not in found), None)
    if lacking is not None:
        raise InputError(f"--calibrate takes images of {CALIBRATED_ON}: the task {lacking.task} of {data} has none")
    return found


def _delta(options: Mapping[str, Any]) -> float:
    return level_of(options["calibrate"], options["delta"])


def _diffusion(
    path: str, name: str, cells: Cells, options: dict[str, Any], validation: Cells, bars: "_Bars"
) -> tuple[Entrant, list[str]]:
    """A diffusion model as an entrant, and what to note; its network is not opened yet."""
    from fastdc.bundle import find_model, load_bundle
    from fastdc.matching import DiffusionMatcher, TaskRaces, check_texts

    bundle = load_bundle(find_model(path))
    asked = _run_options(bundle, options)
    network = {key: options[key] for key in ("backend", "device", "precision", "batch", "threads", "compile")}
    with default_rule_named():
        matcher = DiffusionMatcher(bundle, name=name, **network, **asked)
    for cell, trials in cells.items():
        try:
            check_texts(bundle, trials)
        except InputError as error:
            raise InputError(f"{name}, {cell}: {error}") from None
    if not validation:
        released = options["compat"] is not None  # which has no --calibrate
        noted = [] if released else paired_tests_notes(name, bundle, cells.values(), options, _WAY)
        return Entrant.of(matcher, cells), noted
    delta, progress = _delta(options), bars.calibrating(name)
    races = TaskRaces(matcher, validation, matcher.facts, delta=delta, out=options["out"], progress=progress)
    return Entrant(name, races.matcher_of, cells, races.facts_of), []


def _run_options(bundle: "Bundle", options: dict[str, Any]) -> "RunOptions":
    """The options of a diffusion model's run as keywords."""
    reading: ImageOptions = {}
    return {
        "rule": options["rule"],
        "rule_options": rule_options(options["rule_option"]),
        "decision": options["decision"],
        "seed": options["seed"],
        "temperature": None,
        "prior": None,
        "self_calibrate": None,
        **reading,
        **plan_options(options, bundle.model),
    }


def _rival(kind: str, path: str, name: str, cells: Cells, options: Mapping[str, Any]) -> Entrant:
    """CLIP, SigLIP or ViLT as an entrant."""
    from fastdc.matching import ClipMatcher, ViltMatcher

    made = ViltMatcher if kind == "vilt" else ClipMatcher
    device = options["device"].split(",")[0]
    return Entrant.of(made(path, device=device, threads=options["threads"], name=name), cells)


def _facts(data: str, options: Mapping[str, Any]) -> dict[str, Any]:
    names = ("images", "compat", "calibrate", "seed")
    return {"data": data, **{name: options[name] for name in names if options[name] is not None}, "fastdc": __version__}


def _write(found: Comparison, options: Mapping[str, Any]) -> None:
    """Writes the files that were asked for, and those of --out."""
    out = options["out"]
    for name in ("csv", "latex", "html"):
        if options[name] is not None:
            found.save(options[name])
    if options["answers"] is not None:
        found.save_answers(options["answers"])
    if out is not None:
        for name in ("scores.csv", "comparison.json", "tables.tex", "page.html"):
            found.save(Path(out, name))
        found.save_answers(Path(out, "answers.csv"))
        tests = Path(out, "tests.csv")
        if found.tests:
            found.save_tests(tests)
        else:  # those of a run before are of other models
            tests.unlink(missing_ok=True)
    if not options["quiet"]:
        paths = [options[name] for name in (*_FILES, "out") if options[name] is not None]
        if paths:
            click.echo(f"written to {', '.join(paths)}", err=True)


class _Bars:
    """A progress bar for each model and cell, one after the other."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._stack, self._open, self._done = quiet, ExitStack(), "", 0
        self._advance: Advance | None = None

    def of(self, name: str, cell: Cell, done: int, every: int) -> None:
        """Shows how far a model is in a cell."""
        self._show(f"{name}, {cell}", done, every)

    def calibrating(self, name: str) -> Callable[[Cell, int, int], None]:
        """What shows how far the calibration of a model is."""
        return lambda cell, done, every: self._show(f"{name}, calibrating {cell.task} {cell.setting}", done, every)

    def close(self) -> None:
        """Removes the last bar."""
        self._stack.close()

    def _show(self, title: str, done: int, every: int) -> None:
        if title != self._open or done < self._done:
            self._stack.close()
            self._advance = self._stack.enter_context(progress_bar(every, quiet=self._quiet, description=title))
            self._open, self._done = title, 0
        assert self._advance is not None
        self._advance(done - self._done, "")
        self._done = done


@contextmanager
def _bars(*, quiet: bool) -> Iterator[_Bars]:
    bars = _Bars(quiet=quiet)
    try:
        yield bars
    finally:
        bars.close()
