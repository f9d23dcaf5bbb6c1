"""``fastdc classify``: images from files, folders and arrays to classes, one line an image as soon as it is known."""

import json
import math
from collections import Counter
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fastdc.cli.options import check_output, open_classifier, run_options
from fastdc.cli.runner import classify_chunks
from fastdc.inference import Classification, ErrorTable

_EPILOG = """\b
Examples:
  fastdc classify three.png                     one image with the shipped digits model
  fastdc classify photos/ --model my-model      every image below a folder
  fastdc classify batch.npz --json > out.jsonl  one JSON object a line, with all probabilities
  fastdc classify batch.npz --rule full --draws 64               every class at every draw
  fastdc classify batch.npz --rule paired -o alpha=0.001         a test that is harder to pass

\b
Images of any size or mode are brought to the model's shape: shorter side resized, centre cropped,
colour or grey as the model wants. Arrays hold uint8, or floats in [0, 1].

\b
Lines come in the order of the images, as soon as they are known. Ctrl-C prints (and saves) what was
finished; what was printed is final, and a second run repeats it exactly.
"""


@click.command(name="classify", epilog=_EPILOG)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@run_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: label, probabilities, errors, cost.")
@click.option("--save", type=click.Path(dir_okay=False), metavar="FILE.npz", help="Save every error, to decide again.")
def command(images: tuple[str, ...], as_json: bool, save: str | None, **options: Any) -> None:
    """Classify IMAGES: image files, folders of them, .npy and .npz arrays."""
    from fastdc.data import load_images

    if save is not None:
        check_output(save, images)
    classifier = open_classifier(options)
    loaded = load_images(list(images), classifier.model.image_shape)
    if not options["quiet"]:
        for note in loaded.notes:
            click.echo(f"note: {note}", err=True)
    done = _Done()
    try:
        for result in classify_chunks(classifier, loaded.images, options):
            for row, index in enumerate(result.indices):
                click.echo((json_line if as_json else text_line)(loaded.ids[index], result, row))
            done.add(result, keep_table=save is not None)
    finally:  # an interrupted run as well
        if save is not None and done.tables:
            ErrorTable.concatenate(done.tables).save(save)
            if not options["quiet"]:
                click.echo(f"errors saved to {save}", err=True)
    if not options["quiet"]:
        click.echo(done.summary(loaded.labels), err=True)


class _Done:
    """What is kept of the results that were printed."""

    def __init__(self) -> None:
        self.indices: list[npt.NDArray[np.int64]] = []
        self.labels: list[npt.NDArray[np.int64]] = []
        self.tables: list[ErrorTable] = []
        self.evaluations = 0
        self.seconds = 0.0

    def add(self, result: Classification, *, keep_table: bool) -> None:
        """Keeps labels and costs, and the table only if it is asked for: tables are the bulk of a large run."""
        self.indices.append(result.indices)
        self.labels.append(result.labels)
        self.evaluations += int(result.evaluations.sum())
        self.seconds = result.seconds
        if keep_table:
            self.tables.append(result.table)

    def summary(self, truth: npt.NDArray[np.int64] | None) -> str:
        """One line: how many images at what cost, and how many were right where that is known."""
        labels = np.concatenate(self.labels)
        n = len(labels)
        correct = (
            "" if truth is None else f", accuracy {100 * np.mean(labels == truth[np.concatenate(self.indices)]):.2f} %"
        )
        return f"{n} image{'s'[: n != 1]}, {self.evaluations:,} evaluations, {self.seconds:.2f} s{correct}"


def class_keys(names: tuple[str, ...]) -> tuple[str, ...]:
    """One key a class: its name, with the index where several classes share it ("crane" is two of ImageNet's)."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    return tuple(f"{name} [{k}]" if name in shared else name for k, name in enumerate(names))


def text_line(image: str, result: Classification, row: int) -> str:
    """An image's name, class and three most probable classes, between tabs."""
    order = np.argsort(-result.probabilities[row], kind="stable")
    shown = [f"{result.class_names[k]} {result.probabilities[row, k]:.3f}" for k in order[:3]]
    name = "".join(char if char.isprintable() else "?" for char in image)  # one line, whatever a file is called
    return f"{name}\t{result.names[row]}\t{', '.join(shown)}"


def json_line(image: str, result: Classification, row: int) -> str:
    """All that is known of an image and what reproduces it, as one JSON object."""
    names = class_keys(result.class_names)
    errors = zip(names, result.errors[row].tolist(), strict=True)
    entry = {
        "image": image,
        "label": int(result.labels[row]),
        "class": result.names[row],
        "probabilities": {name: round(float(p), 6) for name, p in zip(names, result.probabilities[row], strict=True)},
        "errors": {name: float(f"{e:.7g}") if math.isfinite(e) else None for name, e in errors},  # never evaluated
        "evaluations": int(result.evaluations[row]),
        **result.provenance,
    }
    # ASCII, so that file names that are not UTF-8 can be written too.
    return json.dumps(entry, allow_nan=False)
