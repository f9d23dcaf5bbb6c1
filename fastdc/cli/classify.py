"""``fastdc classify``: images from files, folders and arrays to classes, one line an image as soon as it is known."""

import json
from collections import Counter
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fastdc.cli.options import check_output, open_classifier, run_options
from fastdc.cli.runner import classify_groups
from fastdc.errors import ErrorTable

_EPILOG = """\b
Examples:
  fastdc classify three.png                     one image with the shipped digits model
  fastdc classify photos/ --model my-model      every image below a folder
  fastdc classify batch.npz --json > out.jsonl  one JSON object a line, with all probabilities

\b
Images of any size or mode are brought to the model's shape: shorter side resized, centre cropped,
colour or grey as the model wants. Arrays hold uint8, or floats in [0, 1]. Output is flushed line by
line: what was printed before an interruption is final, and a second run repeats it exactly.
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
    labels, tables, evaluations, seconds = [], [], 0, 0.0
    for start, result in classify_groups(classifier, loaded.images, options):
        for row in range(len(result.labels)):
            click.echo((_json_line if as_json else _text_line)(loaded.ids[start + row], result, row))
        labels.append(result.labels)
        evaluations += int(result.evaluations.sum())
        seconds += result.seconds
        if save is not None:  # else a table is dropped with its group: they are the bulk of a large run
            tables.append(result.table)
    if save is not None:
        ErrorTable.concatenate(tables).save(save)
    if not options["quiet"]:
        if save is not None:
            click.echo(f"errors saved to {save}", err=True)
        _summary(np.concatenate(labels), evaluations, seconds, loaded.labels)


def class_keys(names: tuple[str, ...]) -> tuple[str, ...]:
    """One key a class: its name, with the index where several classes share it ("crane" is two of ImageNet's)."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    return tuple(f"{name} [{k}]" if name in shared else name for k, name in enumerate(names))


def _text_line(image: str, result: Classification, row: int) -> str:
    order = np.argsort(-result.probabilities[row], kind="stable")
    shown = [f"{result.class_names[k]} {result.probabilities[row, k]:.3f}" for k in order[:3]]
    name = "".join(char if char.isprintable() else "?" for char in image)  # one line, whatever a file is called
    return f"{name}\t{result.names[row]}\t{', '.join(shown)}"


def _json_line(image: str, result: Classification, row: int) -> str:
    names = class_keys(result.class_names)
    entry = {
        "image": image,
        "label": int(result.labels[row]),
        "class": result.names[row],
        "probabilities": {name: round(float(p), 6) for name, p in zip(names, result.probabilities[row], strict=True)},
        "errors": {name: float(f"{e:.7g}") for name, e in zip(names, result.errors[row], strict=True)},
        "evaluations": int(result.evaluations[row]),
        **result.provenance,
    }
    return json.dumps(entry)  # ASCII, so that file names that are not UTF-8 can be written too


def _summary(labels: npt.NDArray[np.int64], evaluations: int, seconds: float, truth: Any) -> None:
    n = len(labels)
    accuracy = "" if truth is None else f", accuracy {100 * np.mean(labels == truth):.2f} %"
    click.echo(f"{n} image{'s'[: n != 1]}, {evaluations:,} evaluations, {seconds:.2f} s{accuracy}", err=True)
