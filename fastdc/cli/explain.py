"""``fastdc explain``: where each image's class denoises better than another, as lines, arrays, pictures and a page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastdc.bundle import DECODER, Bundle, Model
from fastdc.classifier import DiffusionClassifier
from fastdc.cli.classify import run_name
from fastdc.cli.images import digits_only, read_images, seen_through, take_limits
from fastdc.cli.options import check_output, check_plot, open_model, open_network
from fastdc.cli.refusals import check_run, note_self_calibration
from fastdc.cli.runner import checked_settings, progress_of, run_keywords
from fastdc.explanation import (
    Counterfactuals,
    Edit,
    Explanation,
    ImageCounterfactual,
    ImageExplanation,
    check_explanation,
)
from fastdc.inference import Images, class_indices
from fastdc.support import InputError, printable

_FILES = {"html": ".html", "save": ".npz", "plot": None, "counterfactual_plot": None}


def run(images: tuple[str, ...], against: str | None, explained: str | None, as_json: bool, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.explain`."""
    limits = take_limits(options)
    own = {name: options.pop(name) for name in ("map_draws", "alpha", "control", "smooth")}
    paths = {name: options.pop(name) for name in _FILES}
    edit, asked = options.pop("edit"), options.pop("counterfactual")
    edits = asked or edit is not None or paths["counterfactual_plot"] is not None
    _check_files(paths, images)
    bundle = open_model(options)
    model = bundle.model
    if edits:
        _check_edit(edit, bundle)
    settings = checked_settings(model, options)
    check_explanation(settings, **own)
    named = {"against": _named(against, model, "--against"), "classes": _named(explained, model, "--class")}
    if against is not None and named["against"] == named["classes"]:
        raise InputError(f"--against and --class are both {model.class_names[named['against'] or 0]!r:.60}")
    check_run(settings.job, options)
    loaded = read_images(
        images,
        model.image_shape,
        seen_through(limits, model),
        quiet=options["quiet"],
        classes=model.class_names,
        strict=False,
        digits=digits_only(),
    )
    note_self_calibration(settings.job, options, len(loaded))
    classifier = open_network(bundle, options)
    ready = replace(Images.of(loaded.images, model, layout="NCHW"), ids=tuple(loaded.ids))
    keywords = run_keywords(options, model)
    with progress_of(runs=2, quiet=options["quiet"]) as progress:
        found = classifier.explain(ready, progress=progress, **named, **own, **keywords)
    edited = _edited(classifier, ready, found, edit, quiet=options["quiet"], **keywords) if edits else None
    name = run_name(found.provenance)
    for row, one in enumerate(found):
        other = None if edited is None else edited[row]
        if as_json:
            more = {} if other is None else {"counterfactual": other.to_dict()}
            click.echo(json.dumps({**one.to_dict(), **more, "run": name}, allow_nan=False))
        else:
            click.echo(text_line(one) + ("" if other is None else f"\t{_told(other)}"))
    _write(found, edited, paths, quiet=options["quiet"])
    if not options["quiet"]:
        if found.turned.any():
            click.echo(_turned(found, str(against)), err=True)
        click.echo(_summary(found, loaded.labels), err=True)
        if edited is not None:
            click.echo(_edits(edited), err=True)


def _check_files(paths: dict[str, str | None], images: tuple[str, ...]) -> None:
    """Refuses output files that cannot be written, or whose names do not say what they are.

    Raises:
        InputError: See above.
        MissingDependencyError: matplotlib is needed and not installed.
    """
    given = [path for path in paths.values() if path is not None]
    if len({Path(path).resolve() for path in given}) < len(given):
        raise InputError(f"two outputs have one name: expected different files, got {', '.join(given)}")
    for name, path in paths.items():
        suffix = _FILES[name]
        if path is not None and suffix is None:
            check_plot(path, images)
        elif path is not None:
            if Path(path).suffix.lower() != suffix:
                raise InputError(f"--{name} needs a name that ends in {suffix}, got {path!r}")
            check_output(path, images)


def _named(text: str | None, model: Model, option: str) -> int | None:
    """The class that a user names, by its name, or else by its number.

    Raises:
        InputError: There is no such class.
    """
    if text is None:
        return None
    by_number = text not in model.class_names and text.isascii() and text.isdigit() and len(text) < 10
    return int(class_indices([int(text) if by_number else text], model, option)[0])


def text_line(one: ImageExplanation) -> str:
    """An image's answer, the classes that are compared, where they differ, and the cost, separated by tabs."""
    own, other = one.names
    parts = (
        f"image {one.index}" if one.image is None else one.image,
        f"{one.name} {one.probability:.3f}",
        f"{own} against {other}{', its runner-up' if one.turned else ''}{', undecided' if one.undecided else ''}",
        f"for: {one.region_for}",
        f"against: {one.region_against}",
        f"{one.evaluations} evaluations",
    )
    return "\t".join(map(printable, parts))


def _check_edit(edit: str | None, bundle: Bundle) -> None:
    """Refuses counterfactuals that cannot be made.

    Raises:
        InputError: The edit does not fit the model, or the model works on latents and has no decoder.
    """
    Edit.of(bundle.model, edit, {})
    if bundle.model.latent_shape is not None and DECODER not in bundle.manifest["files"]:
        raise InputError(
            f"--counterfactual makes pictures, but {bundle.model.name} works on latents and has no decoder: expected a "
            "bundle exported with --decoder"
        )


def _edited(
    classifier: DiffusionClassifier,
    images: Images,
    found: Explanation,
    edit: str | None,
    *,
    quiet: bool,
    **options: Any,
) -> Counterfactuals:
    """The images edited from the class that is explained to the one against it."""
    with progress_of(runs=4, quiet=quiet, description="edits") as progress:
        return classifier.counterfactuals(
            images, from_=found.classes, to=found.against, edit=edit, progress=progress, **options
        )


def _told(edited: ImageCounterfactual) -> str:
    """What came of a counterfactual."""
    followed = "flipped" if edited.flipped else f"not flipped, {edited.after.name}"
    return printable(f"as {edited.target}: {followed}{'' if edited.kept else ', and its own class was lost'}")


def _edits(edited: Counterfactuals) -> str:
    """How many edits did what they should, and what they took."""
    flipped, kept, n = int(edited.flipped.sum()), int(edited.kept.sum()), len(edited)
    cost = f"{int(edited.evaluations.sum()):,} evaluations, {edited.seconds:.2f} s"
    keep = "reconstruction keeps its" if n == 1 else "reconstructions keep their"
    check = f"{kept} of {n} factual {keep} class"
    return f"counterfactuals: {flipped} of {n} are taken for the class against, {check}; {cost}"


def _write(found: Explanation, edited: Counterfactuals | None, paths: dict[str, str | None], *, quiet: bool) -> None:
    for name, path in paths.items():
        if path is None:
            continue
        if name == "plot":
            from fastdc.figures import explanation_sheet

            explanation_sheet(path, found, title=str(found.provenance["model"]))
        elif name == "counterfactual_plot" and edited is not None:
            from fastdc.figures import counterfactual_sheet

            counterfactual_sheet(path, edited, title=f"{found.provenance['model']}, {edited.edit['name']}")
        else:
            found.save(path, counterfactuals=edited)
        if not quiet:
            click.echo(f"saved        {path}", err=True)


def _turned(found: Explanation, against: str) -> str:
    """How many images are explained against another class than the one that was named."""
    turned, n = int(found.turned.sum()), len(found)
    are = f"of {n} images {'is' if turned == 1 else 'are'}" if n > 1 else "image is"
    return (
        f"note: {turned} {are} answered {against}, and explained against the runner-up; --class explains one class in "
        "every image"
    )


def _summary(found: Explanation, truth: Any) -> str:
    n = len(found)
    right = "" if truth is None else f", {int(np.count_nonzero(found.answers.labels == truth))} of {n} answers right"
    where = "" if found.space == "pixels" else f"; maps of {found.space}"
    count = f"{n} image{'s'[: n != 1]}"
    undecided = sum(bool(one.undecided) for one in found)
    within = f", {undecided} undecided (differences within their noise)" if undecided else ""
    return f"{count}, {int(found.evaluations.sum()):,} evaluations, {found.seconds:.2f} s{within}{right}{where}"
