"""``fastdc match``: which text describes each image, for images with texts of their own, pairs, and rankings."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

from fastdc.certification import share
from fastdc.cli.noise import note
from fastdc.cli.options import Advance, check_output, check_plot, plan_options, progress_bar
from fastdc.cli.race_notes import level_of, paired_tests_notes
from fastdc.cli.runner import default_rule_named, rule_options
from fastdc.cli.sources import expanded
from fastdc.cli.stop_signals import held_back
from fastdc.matching import (
    AbstractMatcher,
    DiffusionMatcher,
    Matched,
    OnMatched,
    PairScores,
    Retrieval,
    Trials,
    level_analysis,
    pairs_table,
    read_pairs,
    read_rankings,
    read_trials,
    retrieve,
    score_pairs,
    unread_columns,
)
from fastdc.support import InputError, Interrupted, Mask, plain, printable, save_table

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_BEST = 3  # texts in a line
_WAY = (
    "--calibrate TABLE would run the images of a table of such lists in full, 99 or so, and race the others, usually "
    "with fewer evaluations"
)
_OF_ANY = ("sources", "prompts", "model", "clip", "vilt", "rank", "calibrate", "delta", "plot", "as_json", "csv")
_OF_RIVALS = (*_OF_ANY, "device", "threads", "batch", "quiet")
"""Options that say something about a CLIP or ViLT."""


def run(sources: tuple[str, ...], **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.match`."""
    _check(sources, options)
    given = expanded(sources)
    table = given[0] if len(given) == 1 and Path(given[0]).suffix.lower() in _TABLES else None
    paired = table is not None and pairs_table(table)
    if table is None or paired:
        _refuse(options, ("rank", "calibrate", "plot") if table is None else ("rank", "calibrate", "plot", "prompts"))
    elif options["prompts"]:
        raise InputError("--prompt is for IMAGES: a table has the texts of each image")
    if options["rank"]:
        _refuse(options, ("calibrate", "plot"))
    if paired or options["rank"] or options["plot"]:
        _check_full(options)
    if paired:
        _pairs(_noted(read_pairs, table, options), options)
    elif options["rank"]:
        images, texts, right = _noted(read_rankings, table, options)
        _ranking(images, texts, right, options)
    else:
        _match(_of_images(given, options["prompts"]) if table is None else _noted(read_trials, table, options), options)


def _check(sources: tuple[str, ...], options: dict[str, Any]) -> None:
    """Refuses options that do not go together, and files that cannot be written."""
    named = [name for name in ("model", "clip", "vilt") if options[name] is not None]
    if len(named) != 1:
        given = " and ".join(f"--{name}" for name in named) or "none"
        raise InputError(f"expected one model to ask, --model, --clip or --vilt, got {given}")
    if options["calibrate"] is None and options["delta"] is not None:
        raise InputError("--delta is the level of --calibrate, which is missing")
    for name in ("calibrate", "plot"):
        if options[name] is not None and named != ["model"]:
            raise InputError(f"--{'level-plot' if name == 'plot' else name} is about the draws of --model")
    if named != ["model"]:
        _check_rival(options)
    if options["plot"] is not None:
        wrong = next((name for name in ("calibrate", "csv") if options[name] is not None), None)
        if wrong is not None:
            raise InputError(f"--level-plot is about the errors of a full run: expected no --{wrong}")
    if options["calibrate"] is not None and (options["rule"] not in ("race", "calibrated") or options["rule_option"]):
        raise InputError("--calibrate finds the limit of the race: expected no other --rule, and no -o")
    if options["csv"] is not None:
        if Path(options["csv"]).suffix.lower() != ".csv":
            raise InputError(f"--csv needs a name that ends in .csv, got {options['csv']!r:.80}")
        check_output(options["csv"], sources)
    if options["plot"] is not None:
        check_plot(options["plot"], sources)


def _check_rival(options: dict[str, Any]) -> None:
    """Refuses what says nothing about a CLIP or ViLT: its draws, its rule, its network."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        if name not in _OF_RIVALS and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise InputError(f"{option.opts[0]} is for --model: expected none with a CLIP or ViLT")
    if "," in options["device"]:
        raise InputError(f"--device: a CLIP or ViLT runs on one device, got {options['device']!r:.80}")


def _check_full(options: dict[str, Any]) -> None:
    """Refuses a rule and votes where every draw of every text is evaluated."""
    if options["rule"] not in ("race", "full") or options["rule_option"] or options["decision"] != "mean":
        raise InputError(
            "pairs, rankings and --level-plot take the mean errors of every draw: expected no --rule, -o or --decision"
        )


def _refuse(options: dict[str, Any], names: tuple[str, ...]) -> None:
    wrong = next((name for name in names if options[name]), None)
    if wrong is not None:
        shown = {"plot": "level-plot", "prompts": "prompt"}.get(wrong, wrong)
        raise InputError(f"--{shown} is for a table of images and texts, and not for pairs, rankings or single images")


def _noted(read: Callable[[str], Any], table: Any, options: dict[str, Any]) -> Any:
    """What is read of a table; a note names the columns that are not."""
    found = read(table)
    names = () if options["quiet"] else unread_columns(table)
    if names:
        shown = ", ".join(map(printable, names))
        click.echo(f"note: {printable(table)}: not read: column{'s'[: len(names) != 1]} {shown:.200}", err=True)
    return found


def _of_images(images: list[str], prompts: tuple[str, ...]) -> Trials:
    """Images that all have the same texts."""
    if not prompts:
        raise InputError("expected the texts of the images: --prompt, once for each, or a table of images and texts")
    other = next((image for image in images if not Path(image).is_file()), None)
    if other is not None:
        raise InputError(f"{other} is not a file: expected image files, or a pattern in quotes such as 'photos/*.png'")
    return Trials.of(images, [list(prompts)] * len(images), truth=-1)


def _matcher(options: dict[str, Any], raced: Trials | None = None) -> AbstractMatcher:
    """The model that the options name, with a note if it is to race without a calibration."""
    if options["model"] is None:
        from fastdc.matching import ClipMatcher, ViltMatcher

        made, folder = (ClipMatcher, options["clip"]) if options["clip"] is not None else (ViltMatcher, options["vilt"])
        batch = {} if options["batch"] is None else {"batch": options["batch"]}
        return made(folder, device=options["device"], threads=options["threads"], **batch)
    from fastdc.bundle import find_model, load_bundle

    bundle = load_bundle(find_model(options["model"]))
    network = {name: options[name] for name in ("backend", "device", "precision", "batch", "threads", "compile")}
    with default_rule_named():
        matcher = DiffusionMatcher(
            bundle,
            rule=options["rule"],
            rule_options=rule_options(options["rule_option"]),
            decision=options["decision"],
            seed=options["seed"],
            **plan_options(options, bundle.model),
            **network,
        )
    for told in () if raced is None else paired_tests_notes(matcher.name, bundle, [raced], options, _WAY):
        note(told)
    return matcher


@contextmanager
def _bar(options: dict[str, Any], total: int) -> Iterator[OnMatched]:
    """A bar over images, which may be gone over several times."""
    advance: Advance | None = None
    before = 0
    with progress_bar(total, quiet=options["quiet"]) as bar:
        advance = bar

        def progress(done: int, _: int) -> None:
            nonlocal before
            advance(done if done < before else done - before, "")
            before = done

        yield progress


def _match(trials: Trials, options: dict[str, Any]) -> None:
    """The best text of each image."""
    matcher = _matcher(options, trials if options["plot"] is None else None)
    if options["plot"] is not None:
        _levels(matcher, trials, options)
        return
    if options["calibrate"] is not None:
        matcher = _calibrated(matcher, options)
    stop, matched = _stopped(lambda progress: matcher.match(trials, progress), options, len(trials))
    with held_back():
        for row in range(len(matched)):
            click.echo(_json_line(trials, matched, row) if options["as_json"] else _text_line(trials, matched, row))
        if options["csv"] is not None:
            save_table(options["csv"], columns=_columns(trials, matched), whole=dict)
        if not options["quiet"]:
            click.echo(_summary(trials, matched), err=True)
    if stop is not None:
        raise stop


def _calibrated(matcher: AbstractMatcher, options: dict[str, Any]) -> AbstractMatcher:
    """The matcher with a race calibrated on another table."""
    validation = _noted(read_trials, options["calibrate"], options)
    delta = level_of(len(validation), options["delta"])
    assert isinstance(matcher, DiffusionMatcher)
    with _bar(options, 8 * len(validation)) as progress:
        made = matcher.calibrated(validation, delta=delta, progress=progress)
    if not options["quiet"]:
        told = f"calibrated on {len(validation)} images: at most {100 * delta:g} % of answers differ from the full run"
        click.echo(told, err=True)
    return made


def _stopped(call: Callable[[OnMatched], Any], options: dict[str, Any], total: int) -> tuple[Interrupted | None, Any]:
    """A result, also if Ctrl-C ended the run early."""
    with _bar(options, total) as progress:
        try:
            return None, call(progress)
        except Interrupted as stop:
            if stop.result is None:
                raise
            return stop, stop.result


def _text_line(trials: Trials, matched: Matched, row: int) -> str:
    """An image's name, best text, and it and the two best others with their scores, separated by tabs."""
    image, scores = int(matched.rows[row]), matched.scores[row]
    texts = trials.texts_of(image)
    answer = int(matched.answers[row])  # the last of tied texts, and of votes not always the largest score
    others = [a for a in np.argsort(-scores, kind="stable").tolist() if a != answer]
    best = ", ".join(f"{texts[a]} {scores[a]:.5g}" for a in (answer, *others[: _BEST - 1]))
    return "\t".join(map(printable, (trials.ids[image], texts[answer], best)))


def _json_line(trials: Trials, matched: Matched, row: int) -> str:
    """An image's result as one JSON object."""
    image, answer = int(matched.rows[row]), int(matched.answers[row])
    texts, truth = trials.texts_of(image), int(trials.truth[image])
    entry = {
        "image": trials.ids[image],
        "answer": texts[answer],
        "scores": dict(zip(texts, plain(matched.scores[row]), strict=True)),
        "evaluations": int(matched.evaluations[row]),
        **({} if truth < 0 else {"truth": texts[truth], "right": answer == truth}),
        **({"kind": trials.kinds[image][answer]} if trials.kinds else {}),
    }
    return json.dumps(entry, allow_nan=False)


def _columns(trials: Trials, matched: Matched) -> dict[str, list[Any]]:
    """A row per image and text."""
    columns: dict[str, list[Any]] = {name: [] for name in ("image", "prompt", "score", "answer", "truth")}
    for row, image in enumerate(matched.rows.tolist()):
        texts, truth = trials.texts_of(image), int(trials.truth[image])
        for a, text in enumerate(texts):
            values = (trials.ids[image], text, float(matched.scores[row][a]), int(a == matched.answers[row]))
            for name, value in zip(columns, (*values, "" if truth < 0 else int(a == truth)), strict=True):
                columns[name].append(value)
    return columns


def _summary(trials: Trials, matched: Matched) -> str:
    """The last line: images, cost, and accuracy where the right text is known."""
    n, known = len(matched), trials.truth[matched.rows] >= 0
    told = f"{n} image{'s'[: n != 1]}, {int(matched.evaluations.sum()):,} evaluations, {matched.seconds:.2f} s"
    if not known.any():
        return told
    right = matched.right(trials)[known]
    return f"{told}, accuracy {share(int(right.sum()), len(right)).percent()}"


def _levels(matcher: AbstractMatcher, trials: Trials, options: dict[str, Any]) -> None:
    """Which noise levels tell texts apart."""
    from fastdc.figures import level_sheet

    assert isinstance(matcher, DiffusionMatcher)
    with _bar(options, len(trials)) as progress:
        found = level_analysis(matcher.errors(trials, progress=progress), trials)
    level_sheet(options["plot"], found)
    click.echo(json.dumps(found.to_dict(), allow_nan=False) if options["as_json"] else str(found))


def _pairs(trials: Trials, options: dict[str, Any]) -> None:
    """Winoground's scores."""
    matcher = _matcher(options)
    stop, found = _stopped(lambda progress: score_pairs(matcher, trials, progress=progress), options, len(trials))
    _told(found, _pair_columns(found, trials), options)
    if stop is not None:
        raise stop


def _pair_columns(found: PairScores, trials: Trials) -> dict[str, Any]:
    """A row per example: its four scores, and which measures it has."""
    scores = {f"score_{i}{c}": found.scores[:, i, c] for i in range(2) for c in range(2)}
    measures = {name: getattr(found, name).astype(int) for name in ("text", "image", "group")}
    return {"example": found.ids, **scores, **measures}


def _ranking(images: list[str], texts: list[str], right: Mask, options: dict[str, Any]) -> None:
    """Images ranked for each text."""
    matcher = _matcher(options)
    with _bar(options, len(images)) as progress:
        found = retrieve(matcher, images, texts, right, progress=progress)
    _told(found, {"prompt": found.texts, "rank": found.ranks, "images": found.right.sum(axis=0)}, options)


def _told(found: PairScores | Retrieval, columns: dict[str, Any], options: dict[str, Any]) -> None:
    """Prints measures and writes their table."""
    with held_back():
        click.echo(json.dumps(found.to_dict(), allow_nan=False) if options["as_json"] else str(found))
        if options["csv"] is not None:
            save_table(options["csv"], columns=columns, whole=dict)
