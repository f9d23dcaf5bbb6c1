"""``fastdc score``: how good a model is on labelled images.

:mod:`fastdc.scoring` computes the numbers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from fastdc.bundle import Bundle
from fastdc.cli.images import Limits, read_with_labels, seen_through, take_limits
from fastdc.cli.options import check_output, check_plot, open_model, open_network
from fastdc.cli.refusals import check_run, note_self_calibration
from fastdc.cli.runner import (
    CHUNK,
    checked_settings,
    classify_chunks,
    progress_of,
    rule_text,
    settings_of,
    whole_results,
)
from fastdc.cli.score_baselines import Baselines
from fastdc.cli.stop_signals import held_back
from fastdc.inference import Classification, ErrorTable, Images, Settings, plan_config
from fastdc.scoring import (
    CHECKED,
    Agreement,
    Mistake,
    Rival,
    Score,
    check_count,
    check_groups,
    full_runs,
    mistakes_of,
    operating,
    probability_notes,
    raced_of,
    sampled,
    score,
)
from fastdc.support import InputError, Int64, Interrupted, check_installed, checks, did_you_mean, shown

if TYPE_CHECKING:
    from fastdc.data import ImageSet

_WITH_TEST_IMAGES = ("digits", "digits-mlp", "mnist", "phantoms")  # shipped models whose test images come with fastdc
_KEPT = ("indices", "labels", "probabilities", "evaluations")  # of a result
_FITTED = ("levels", "weighting", "loss", "level_weights")  # what a temperature depends on, besides draws


def run(data: tuple[str, ...], by: tuple[str, ...], check: int | None, as_json: bool, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.score`."""
    limits, beside = take_limits(options), Baselines.taken(options)
    asked = {name: options.pop(name) for name in ("positive", "sensitivity", "threshold")}
    _check_files(options, data)
    bundle = open_model(options)
    asked = _checked_asked(asked, bundle)
    settings = checked_settings(bundle.model, options)
    _check_count(check, settings)
    check_run(settings.job, options)
    check_installed("sklearn", extra="sklearn")
    limits = seen_through(limits, bundle.model)
    loaded = _labelled(data, options["model"], bundle, limits)
    columns = _columns(loaded, by)
    remarks = beside.prepare(bundle, limits, loaded.images)
    note_self_calibration(settings.job, options, len(loaded))
    notes = (*_notes(settings, bundle, loaded, options), *remarks)
    classifier = open_network(bundle, options)
    settings = settings_of(classifier, options)
    answers, stop = _Answers(keep_tables=options["save"] is not None), None
    try:
        for result in classify_chunks(classifier, loaded.images, options):
            answers.add(result)
    except Interrupted as stopped:
        stop = stopped
    if stop is not None and not answers.provenance:
        raise stop
    if stop is not None and settings.self_calibration is not None:
        notes = (str(stop), *notes)
    agreement = None
    raced = answers["raced"] if settings.races else np.zeros(0, np.bool_)
    if settings.self_calibration is not None:
        notes = (f"{(~raced).sum()} images were run in full, to calibrate the race of {raced.sum()} others", *notes)
    if stop is None and raced.any():
        count = answers.check_count(settings, bundle.flops) if check is None else check
        notes = (*notes, *_check_notes(settings, int(raced.sum()), count, asked=check is not None))
        if count:
            agreement, stop = _checked(settings, loaded, answers, count, options)
    rivals: tuple[Rival, ...] = ()
    if stop is None:
        rivals, stop = answers.beside(beside, loaded, asked)
    with held_back():  # a second Ctrl-C would lose it
        found = replace(answers.score(loaded, columns, settings, agreement, notes, asked), rivals=rivals)
        _hand_out(found, answers, loaded, settings, options, as_json=as_json)
    if stop is not None:
        raise stop


def _hand_out(
    found: Score,
    answers: "_Answers",
    loaded: "ImageSet",
    settings: Settings,
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Writes the files, and prints the score, also if a file cannot be written."""
    if answers.tables:
        ErrorTable.concatenate(answers.tables).save(options["save"])
    try:
        _write(found, options, answers, loaded)
    finally:  # also if the disk is full
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False) if as_json else _page(found, settings))
    _say_files(options)


def _check_count(check: int | None, settings: Settings) -> None:
    """Refuses a number of images to compare with the full run that is none, or where there is no race.

    Raises:
        InputError: See above.
    """
    if check is not None:
        checks.whole("check", check, low=0)
    if check and not settings.races:
        why = "which --rule full is" if settings.job.rule.name == "full" else "and only one class has a prior above 0"
        raise InputError(f"--check compares a race with the full run, {why}: expected no --check")


def _checked_asked(asked: Mapping[str, Any], bundle: Bundle) -> dict[str, Any]:
    """What is asked of the positive class, with the usual sensitivity if no number is given.

    Raises:
        InputError: The model has no such class, no class is named for a number, or there are two numbers for one.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    for name in ("sensitivity", "threshold"):
        if name in given and "positive" not in given:
            raise InputError(f"--{name} is one for the class of --positive, which is missing")
    if {"sensitivity", "threshold"} <= set(given):
        raise InputError("--sensitivity finds a threshold, and --threshold gives one: expected one of them")
    found = operating(bundle.class_names, **{"positive": None, **given})
    rest = {} if found is None else {"sensitivity": found.sensitivity, "threshold": found.threshold}
    return {"positive": asked["positive"], **rest}


def _check_files(options: dict[str, Any], data: Sequence[str]) -> None:
    """Refuses output files that cannot be written, or whose names do not say what they are.

    Raises:
        InputError: See above.
        MissingDependencyError: matplotlib is needed and not installed.
    """
    names = [options[name] for name in ("csv", "html", "plot", "save") if options[name] is not None]
    if len({Path(name).resolve() for name in names}) < len(names):
        raise InputError(f"two outputs have one name: expected different files, got {', '.join(names)}")
    for name in ("csv", "html"):
        path = options[name]
        if path is not None and Path(path).suffix.lower() != f".{name}":
            raise InputError(f"--{name} needs a name that ends in .{name}, got {path!r}")
    if options["plot"] is not None:
        check_plot(options["plot"], data)
    for path in names:
        check_output(path, data)


def _labelled(data: Sequence[str], model: str, bundle: Bundle, limits: Limits) -> "ImageSet":
    """The images with their labels.

    Raises:
        InputError: There are no images, labels are missing, or their classes are not the model's.
    """
    from fastdc.data import shipped_test_file

    own = shipped_test_file(bundle.image_shape, bundle.class_names) if model in _WITH_TEST_IMAGES else None
    if not data and own is None:
        known = f"{', '.join(_WITH_TEST_IMAGES[:-1])} and {_WITH_TEST_IMAGES[-1]}"
        raise InputError(f"expected DATA, labelled images for {shown(model)}: only {known} come with test images")
    return read_with_labels(data or [str(own)], bundle.image_shape, limits, classes=bundle.class_names)


def _columns(loaded: "ImageSet", by: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The columns that make groups.

    Raises:
        InputError: There is no such column, or it has too many values.
    """
    for name in by:
        if name not in loaded.columns:
            has = f"the columns {', '.join(loaded.columns)}" if loaded.columns else "no columns, as a manifest has"
            raise InputError(f"--by {shown(name)}: these images have {has}{did_you_mean(name, loaded.columns)}")
    chosen = {name: loaded.columns[name] for name in by}
    check_groups(chosen)
    return chosen


def _notes(settings: Settings, bundle: Bundle, loaded: "ImageSet", options: dict[str, Any]) -> tuple[str, ...]:
    """What a reader of the numbers should know, before the run."""
    from fastdc.train import check_unseen

    notes = list(probability_notes({"decision": settings.decision, "temperature": settings.temperature}))
    ours, own = settings.job.plan.config.to_dict(), plan_config(bundle.model, {}).to_dict()
    other = [f"--{name.replace('_', '-')}" for name in _FITTED if ours.get(name) != own.get(name)]
    other += ["--prompts"] if options["prompts"] is not None else []
    if other and not notes:
        notes.append(f"the temperature of the probabilities was fitted without {', '.join(other)}: ECE, Brier score "
                     "and log loss say less")  # fmt: skip
    try:
        check_unseen("", loaded.images, loaded.labels, bundle)
    except InputError:
        notes.append(f"{bundle.name} was trained on these images, or many of them: the numbers do not hold for others")
    if (chose := bundle.seen.chose(loaded.images)).any():
        of = f"{chose.sum()} of these {len(chose)} images"
        notes.append(f"{of} chose the checkpoint or the plan of {bundle.name}, so that it is too good on them")
    return tuple(notes)


def _check_notes(settings: Settings, raced: int, count: int, *, asked: bool) -> Iterator[str]:
    """What to say of a comparison with the full run that has few images, or none."""
    more = f"the full run, which takes {settings.job.most:,} evaluations per image; --check N compares N images"
    if not count:
        yield f"not compared with {more}"
    elif not asked and count < min(raced, CHECKED):
        yield f"only {count} of {raced} images were compared with {more}"


@dataclass(eq=False)
class _Answers:
    """The results of the images that were finished."""

    keep_tables: bool
    parts: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in (*_KEPT, "raced")})
    tables: list[ErrorTable] = field(default_factory=list)
    seconds: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)

    def add(self, result: Classification) -> None:
        """Keeps what a score needs; the errors, most of the memory of a large run, only on request."""
        for name in _KEPT:
            self.parts[name].append(getattr(result, name))
        self.parts["raced"].append(raced_of(result))
        self.seconds, self.provenance = result.seconds, result.provenance
        if self.keep_tables:
            self.tables.append(result.table)

    def __getitem__(self, name: str) -> Any:
        """An array of all results."""
        return np.concatenate(self.parts[name])

    def check_count(self, settings: Settings, flops: float | None) -> int:
        """Number of images to run in full by default."""
        spent, full = int(self["evaluations"].sum()), settings.job.most
        return check_count(int(self["raced"].sum()), full=full, spent=spent, flops=flops)

    def mistakes(self, loaded: "ImageSet", found: Score) -> tuple[Mistake, ...]:
        """Examples of the most frequent kinds of mistakes."""
        rows: Int64 = self["indices"]
        assert loaded.labels is not None
        ids = [loaded.ids[row] for row in rows]
        truth, names = loaded.labels[rows], found.class_names
        return mistakes_of(loaded.images[rows], truth, self["labels"], self["probabilities"], names, ids=ids)

    def beside(
        self, baselines: Baselines, loaded: "ImageSet", asked: Mapping[str, Any]
    ) -> tuple[tuple[Rival, ...], Interrupted | None]:
        """The baselines on the same images, and the interruption that ended their training."""
        if baselines.given is None:
            return (), None
        rows: Int64 = self["indices"]
        assert loaded.labels is not None
        try:
            scored = (self["labels"], self["probabilities"])
            return baselines.rivals(loaded.images[rows], loaded.labels[rows], scored, asked), None
        except KeyboardInterrupt:
            return (), Interrupted("interrupted: the baselines were not trained to the end")

    def score(
        self,
        loaded: "ImageSet",
        columns: Mapping[str, Sequence[str]],
        settings: Settings,
        agreement: Agreement | None,
        notes: tuple[str, ...],
        asked: Mapping[str, Any],
    ) -> Score:
        """The score of the images that were finished."""
        rows: Int64 = self["indices"]
        assert loaded.labels is not None
        found = score(
            loaded.labels[rows],
            self["probabilities"],
            settings.job.model.class_names,
            predicted=self["labels"],
            groups={by: [values[row] for row in rows] for by, values in columns.items()},
            evaluations=self["evaluations"],
            **asked,
        )
        return replace(
            found,
            agreement=agreement,
            seconds=self.seconds,
            full=settings.job.most,
            given=len(loaded) + len(loaded.left_out),
            left_out=loaded.left_out,
            provenance=self.provenance,
            notes=notes,
        )


def _checked(
    settings: Settings, loaded: "ImageSet", answers: _Answers, count: int, options: dict[str, Any]
) -> tuple[Agreement | None, Interrupted | None]:
    """The agreement with full runs of some images, and the interruption that ended them."""
    rows = sampled(answers["indices"][answers["raced"]], count, settings.job.seed)
    given = dict(zip(answers["indices"].tolist(), answers["labels"].tolist(), strict=True))
    images = Images.of(loaded.images[rows], settings.job.model, layout="NCHW")
    found: list[tuple[Int64, Classification]] = []
    stop = None
    try:
        for result in _full_runs(settings, images, quiet=options["quiet"]):
            found.append((rows[result.indices], result))
    except Interrupted:
        done = sum(len(known) for known, _ in found)
        stop = Interrupted(f"interrupted: {done} of {len(rows)} images run in full")
    return (Agreement.of(settings, given, found) if found else None), stop


def _full_runs(settings: Settings, images: Images, *, quiet: bool) -> Iterator[Classification]:
    with progress_of(quiet=quiet, description="full runs") as progress:
        yield from whole_results(full_runs(settings, images, chunk=CHUNK, progress=progress))


def _write(found: Score, options: dict[str, Any], answers: _Answers, loaded: "ImageSet") -> None:
    """Writes the files that were asked for, but for the errors."""
    if options["csv"] is not None:
        found.save(options["csv"])
    if options["html"] is not None:
        found.save(options["html"], mistakes=answers.mistakes(loaded, found))
    if options["plot"] is not None:
        from fastdc.figures import score_sheet

        score_sheet(options["plot"], found, title=str(found.provenance["model"]))


def _say_files(options: dict[str, Any]) -> None:
    for name in ("csv", "html", "plot", "save"):
        if options[name] is not None and not options["quiet"]:
            click.echo(f"saved        {options[name]}", err=True)


def _page(found: Score, settings: Settings) -> str:
    job = settings.job
    described = job.describe()
    head = [
        f"model        {job.model.name}, {described['backend']} on {described['device']}",
        f"rule         {rule_text(settings)}",
    ]
    return "\n".join([*head, str(found)])
