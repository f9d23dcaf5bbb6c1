"""``fastdc classify``: the classes of image files, folders and arrays, one line per image as soon as it is known."""

import hashlib
import json
import math
import os
import shlex
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fastdc.certification import share
from fastdc.cli.images import digits_only, read_images, seen_through, take_limits
from fastdc.cli.options import check_output, open_model, open_network
from fastdc.cli.refusals import check_run, note_self_calibration
from fastdc.cli.runner import checked_settings, classify_chunks, promise
from fastdc.cli.sources import STDIN
from fastdc.cli.stop_signals import held_back
from fastdc.inference import FULL, Classification, ErrorTable, class_keys
from fastdc.support import InputError, printable, write_whole

_NAMED = 3  # sources that a command line to go on with repeats


def run(images: tuple[str, ...], as_json: bool, save: str | None, provenance: str | None, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.classify`."""
    limits, quiet = take_limits(options), options["quiet"]
    if save is not None and provenance is not None and os.path.realpath(save) == os.path.realpath(provenance):
        raise InputError(f"--save and --provenance are both {save}: expected two files")
    for path in filter(None, (save, provenance)):
        check_output(path, images)
    bundle = open_model(options)
    model = bundle.model
    job = checked_settings(model, options).job
    check_run(job, options)
    limits = seen_through(limits, model)
    loaded = read_images(
        images, model.image_shape, limits, quiet=quiet, classes=model.class_names, strict=False, digits=digits_only()
    )
    note_self_calibration(job, options, len(loaded))
    classifier = open_network(bundle, options)
    done = _Done()
    try:
        # Closed here, as it sets signal handlers, and not by a garbage collector on another thread.
        with closing(classify_chunks(classifier, loaded.images, options)) as results:
            for result in results:
                name = run_name(result.provenance)
                if provenance is not None and not done.labels:
                    _write_provenance(Path(provenance), {"run": name, **result.provenance}, loaded.left_out)
                for row, index in enumerate(result.indices):
                    image = loaded.ids[index]
                    click.echo(json_line(image, result, row, name) if as_json else text_line(image, result, row))
                done.add(result, keep_table=save is not None)
    finally:  # also after an interruption
        if save is not None and done.tables:
            with held_back():  # a second Ctrl-C would lose them
                ErrorTable.concatenate(done.tables).save(save)
            if not options["quiet"]:
                click.echo(f"errors saved to {save}", err=True)
    if not options["quiet"]:
        click.echo(done.summary(loaded.labels), err=True)
        if loaded.labels is not None and STDIN not in images and len(images) <= _NAMED:
            words = shlex.join(["fastdc", "score", options["model"], *images])
            click.echo(f"more         {words}    per class, confusions, calibration", err=True)


def _write_provenance(path: Path, facts: dict[str, Any], left_out: tuple[tuple[str, str], ...]) -> None:
    """Writes the facts of a run, and which files were left out of it: also with --quiet a user can find out."""
    if left_out:
        facts["left_out"] = [{"image": name, "why": why} for name, why in left_out]
    write_whole(path, json.dumps(facts, indent=2).encode() + b"\n")


class _Done:
    """The labels, cost and errors of the results that were printed."""

    def __init__(self) -> None:
        self.indices: list[npt.NDArray[np.int64]] = []
        self.labels: list[npt.NDArray[np.int64]] = []
        self.tables: list[ErrorTable] = []
        self.evaluations = 0
        self.seconds = 0.0
        self.in_full = 0
        self.calibration: dict[str, Any] | None = None

    def add(self, result: Classification, *, keep_table: bool) -> None:
        """Keeps labels and costs; keeps the table, most of the memory of a large run, only on request."""
        self.indices.append(result.indices)
        self.labels.append(result.labels)
        self.evaluations += int(result.evaluations.sum())
        self.seconds = result.seconds
        if result.promises is not None:
            self.in_full += result.promises.count(FULL)
            self.calibration = result.provenance["self_calibration"]
        if keep_table:
            self.tables.append(result.table)

    def summary(self, truth: npt.NDArray[np.int64] | None) -> str:
        """One line with the number of images, their cost, and the accuracy if the labels are known."""
        labels = np.concatenate(self.labels)
        n, correct = len(labels), ""
        if truth is not None:
            right = np.count_nonzero(labels == truth[np.concatenate(self.indices)])
            correct = f", accuracy {share(int(right), n).percent()}"
        cost = f"{n} image{'s'[: n != 1]}, {self.evaluations:,} evaluations, {self.seconds:.2f} s{correct}"
        return cost + self._promised(n)

    def _promised(self, n: int) -> str:
        """What a run that calibrated itself promises; empty for others."""
        if self.calibration is None:
            return ""
        if self.in_full == n:
            return "; all in full"
        return f"; {self.in_full} in full, {n - self.in_full} raced: {promise(self.calibration['delta'])}"


def text_line(image: str, result: Classification, row: int) -> str:
    """An image's name, class and three most probable classes, separated by tabs."""
    order = np.argsort(-result.probabilities[row], kind="stable")
    shown = [f"{result.class_names[k]} {result.probabilities[row, k]:.3f}" for k in order[:3]]
    return f"{printable(image)}\t{result.names[row]}\t{', '.join(shown)}"


def run_name(provenance: dict[str, Any]) -> str:
    """A name for everything that reproduces a run: the beginning of its sha256. It does not matter who set it."""
    facts = {name: value for name, value in provenance.items() if name != "chosen_by"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def json_line(image: str, result: Classification, row: int, run: str) -> str:
    """An image's complete result as one JSON object, with the name of the run whose settings reproduce it."""
    names = class_keys(result.class_names)
    errors = zip(names, result.errors[row].tolist(), strict=True)
    entry = {
        "image": image,
        "label": int(result.labels[row]),
        "class": result.names[row],
        "probabilities": {name: round(float(p), 6) for name, p in zip(names, result.probabilities[row], strict=True)},
        "errors": {
            name: float(f"{e:.7g}") if math.isfinite(e) else None for name, e in errors
        },  # None: never evaluated
        "evaluations": int(result.evaluations[row]),
        **({} if result.promises is None else {"promise": result.promises[row]}),
        "run": run,
    }
    # ASCII can represent file names that are not UTF-8.
    return json.dumps(entry, allow_nan=False)
