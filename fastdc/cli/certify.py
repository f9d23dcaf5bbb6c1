"""``fastdc certify``: certifies a data set by randomized smoothing, into a file that survives any interruption.

:mod:`fastdc.certification.smoothing` and :mod:`fastdc.certification.estimation` make the certificates, and
:mod:`fastdc.certification.records` describes the file.
"""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from click.core import ParameterSource

from fastdc.backends import AbstractNetwork, chosen_by
from fastdc.bundle import Model
from fastdc.certification import (
    ABSTAIN,
    ENVIRONMENT,
    UNKNOWN,
    Certificate,
    CertifyProgress,
    Records,
    RecordWriter,
    Smoothing,
    default_radii,
    estimation_of,
    names_of,
    read_records,
    summarize,
    summary_table,
)
from fastdc.cli.images import Limits, digits_only, print_notes, read_images, seen_through, take_limits
from fastdc.cli.noise import note
from fastdc.cli.options import check_output, open_model, open_network, plan_options, progress_bar
from fastdc.cli.refusals import check_calibration
from fastdc.cli.runner import bar_hidden, default_rule_named, rule_options
from fastdc.cli.sources import DIGITS
from fastdc.cli.stop_signals import held_back
from fastdc.inference import Job, merged, released_plan
from fastdc.support import InputError, Int64, Interrupted, checks, printable, version_of


@dataclass(frozen=True, eq=False)
class _Data:
    """Images (n, c, h, w), their classes int64 (n,) or ``UNKNOWN``, and their n names."""

    images: npt.NDArray[Any]
    labels: Int64
    names: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether the classes of all images are known."""
        return bool((self.labels != UNKNOWN).all())

    @property
    def digest(self) -> str:
        """sha256 of the images and the classes."""
        content = hashlib.sha256(f"{self.images.dtype.str} {self.images.shape}\n".encode())
        content.update(np.ascontiguousarray(self.images).data)
        content.update(self.labels.astype("<i8").tobytes())
        return content.hexdigest()


def run(data: str, out: str, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.certify`."""
    limits = take_limits(options)
    words = {name: options[name] for name in ("n", "alpha", "radius", "estimation", "tolerance")}
    estimation = estimation_of(options["sigma"], **words)
    smoothing = Smoothing(estimation, n0=options["n0"], seed=options["seed"])
    checks.whole("--skip", options["skip"])
    if options["stop"] is not None:
        checks.whole("--max", options["stop"])
    check_output(out, [data])
    bundle = open_model(options)
    with default_rule_named():
        job = Job.of(bundle.model, (), merged(None, _base_options(bundle.model, options, dry=True)))
    check_calibration(job, options)  # no notes: certificates do not depend on what the race promises
    used = slice(0, options["stop"], options["skip"])
    loaded = _load(data, bundle.model, seen_through(limits, bundle.model), used, quiet=options["quiet"])
    classifier = open_network(bundle, options)
    base = classifier.base(**_base_options(bundle.model, options))
    n = len(loaded.images)
    manifest = {
        "indices": [0, min(n, options["stop"] or n), options["skip"]],
        "data": {"sha256": loaded.digest, "images": n, "labelled": loaded.labelled},
        "smoothing": smoothing.describe(),
        "base": base.describe(),
        ENVIRONMENT: _environment(data, loaded.left_out, classifier.network, options),
    }
    with RecordWriter.open(out, manifest, overwrite=options["overwrite"]) as writer:
        if writer.finished and not options["quiet"]:
            done, left = len(writer.finished), len(writer.remaining)
            note(f"{out} already holds {done} image{'s'[: done != 1]}, {left} to go")
        show = None if loaded.labelled else _Lines(loaded.names, bundle.model.class_names)
        if show is not None and writer.finished:
            known = read_records(out)
            for idx, label, radius in zip(known.idx, known.predict, known.radius, strict=True):
                show(int(idx), int(label), float(radius))
        if writer.remaining:
            images = loaded.images[np.array(writer.remaining)]
            with progress_bar(len(images), quiet=options["quiet"]) as advance:
                stream = classifier.certify_stream(
                    images,
                    estimation,
                    n0=smoothing.n0,
                    seed=smoothing.seed,
                    base=base,
                    progress=_Shown(advance),
                    layout="NCHW",
                )
                _write(writer, loaded.labels, stream, show)
    records = read_records(out)
    if not loaded.labelled:
        if not options["quiet"]:
            click.echo(_summary(records), err=True)
        return
    click.echo(summary_table([summarize(records, default_radii([records]), name=names_of([Path(out)])[0])]))


def _base_options(model: Model, options: dict[str, Any], *, dry: bool = False) -> dict[str, Any]:
    """The options of the base classifier; if `dry`, only to be checked.

    Raises:
        InputError: The options exclude each other, or one cannot be used.
    """
    rule, plan = options["rule"], plan_options(options, model, dry=dry)
    plan["method"], plan["sigma"] = options["method"], options["sigma"]
    if options["compat"] is not None:
        brought = ("draws", "first", "levels", "weighting", "loss", "calibration")
        given = [name for name in brought if options[name] is not None]
        if given:
            raise InputError(
                f"--compat {options['compat']} brings its own levels and weights: expected no --{given[0]} beside it"
            )
        if rule == "race" and click.get_current_context().get_parameter_source("rule") is not ParameterSource.DEFAULT:
            raise InputError(f"--compat {options['compat']} has no calibrated race: expected another --rule")
        denoiser = plan.get("denoiser")
        plan = released_plan(model, options["method"], options["sigma"])
        plan["denoiser"] = denoiser
        rule = "full" if rule == "race" else rule
    return {"rule": rule, "rule_options": rule_options(options["rule_option"]), "seed": options["seed"], **plan}


def _load(source: str, model: Model, limits: Limits, used: slice, *, quiet: bool) -> _Data:
    """Loads the images of a data set, with the model's classes if they are known; the notes are of those `used`.

    Raises:
        InputError: The data set cannot be read, or has classes that the model does not have.
    """
    from fastdc.data import DIGITS_TEST, shipped_test_file

    path = Path(source)
    shipped = source == DIGITS and not path.exists()
    own = shipped_test_file(model.image_shape, model.class_names) or DIGITS_TEST
    found = str(own) if shipped else source
    loaded = read_images(
        [found], model.image_shape, limits, quiet=quiet, classes=model.class_names, digits=digits_only(), used=used
    )
    if loaded.labels is not None:
        return _Data(loaded.images, loaded.labels, loaded.ids, loaded.left_out)
    named = path.is_dir() and any(item.is_dir() and item.name[0] != "." for item in path.iterdir())
    why = f": the folders in {source} are not named after its classes" if named else ""
    print_notes([f"true classes are unknown{why}"], quiet=quiet)
    return _Data(loaded.images, np.full(len(loaded), UNKNOWN, np.int64), loaded.ids, loaded.left_out)


def _environment(
    data: str, left_out: tuple[tuple[str, str], ...], network: AbstractNetwork, options: dict[str, Any]
) -> dict[str, Any]:
    """Facts that may change when a certification is resumed."""
    choice = chosen_by(network)
    return {
        "data": data,
        "left_out": [{"image": name, "why": why} for name, why in left_out],
        "model": options["model"],
        "batch": network.batch,
        "chosen_by": None if choice is None else choice.origin,
        "threads": options["threads"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": version_of("onnxruntime", "onnxruntime-gpu"),
        "torch": version_of("torch"),
    }


class _Shown:
    """Shows progress: moves a bar as images are finished, and counts copies behind it."""

    def __init__(self, advance: Any) -> None:
        self._advance, self._finished = advance, 0

    def __call__(self, state: CertifyProgress) -> None:
        self._advance(state.finished - self._finished, f"{state.copies:,} copies, {state.evaluations:,} evaluations")
        self._finished = state.finished


@dataclass(frozen=True)
class _Lines:
    """Prints a line per image of unknown class: its name, the certified class and the radius, between tabs."""

    names: tuple[str, ...]
    class_names: tuple[str, ...]

    def __call__(self, idx: int, label: int, radius: float) -> None:
        with bar_hidden():
            answer = "abstains" if label == ABSTAIN else self.class_names[label]
            click.echo(f"{printable(self.names[idx])}\t{answer}\t{radius:.4f}")


def _summary(records: Records) -> str:
    """What can be said of certificates without true classes, in one line."""
    n, abstained = len(records), int((records.predict == ABSTAIN).sum())
    low, middle, high = np.quantile(records.radius, (0.25, 0.5, 0.75))
    radii = f"average radius {records.radius.mean():.3f} (quartiles {low:.3f}, {middle:.3f}, {high:.3f})"
    cost = f", {int(records.own['evaluations'].sum()):,} evaluations" if records.own else ""
    return f"{n} image{'s'[: n != 1]}, {radii}, {abstained} abstained{cost}, {records.seconds.sum():.2f} s"


def _write(writer: RecordWriter, labels: Int64, stream: Iterator[tuple[int, Certificate]], show: _Lines | None) -> None:
    """Writes certificates as they come, and shows them; a Ctrl-C takes effect between two records.

    Raises:
        Interrupted: Ctrl-C was pressed.
    """
    try:
        with closing(stream):  # type: ignore[type-var]
            for _, certificate in stream:
                idx = writer.remaining[0]
                with held_back() as interrupted:
                    writer.write(idx, int(labels[idx]), certificate)
                    if show is not None:
                        show(idx, certificate.label, certificate.radius)
                if interrupted():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        done, left = len(writer.finished), len(writer.remaining)
        raise Interrupted(
            f"interrupted: {done} of {done + left} images finished; the same command goes on", None
        ) from None
