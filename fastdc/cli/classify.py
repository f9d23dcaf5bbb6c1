"""``fastdc classify``: images from files, folders and arrays to classes, one line an image as soon as it is known."""

import json
from typing import Any

import click
import numpy as np

from fastdc.classifier import Classification
from fastdc.cli.options import open_classifier, run_options
from fastdc.cli.runner import classify_groups

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

    classifier = open_classifier(options)
    loaded = load_images(list(images), classifier.model.image_shape)
    if not options["quiet"]:
        for note in loaded.notes:
            click.echo(f"note: {note}", err=True)
    results = []
    for start, result in classify_groups(classifier, loaded.images, options):
        for row in range(len(result.labels)):
            click.echo((_json_line if as_json else _text_line)(loaded.ids[start + row], result, row))
        results.append(result)
    if save is not None:
        _save(save, results)
    if not options["quiet"]:
        _summary(results, loaded.labels)


def _text_line(image: str, result: Classification, row: int) -> str:
    order = np.argsort(-result.probabilities[row], kind="stable")
    shown = [f"{result.class_names[k]} {result.probabilities[row, k]:.3f}" for k in order[:3]]
    return f"{image}\t{result.names[row]}\t{', '.join(shown)}"


def _json_line(image: str, result: Classification, row: int) -> str:
    names = result.class_names
    entry = {
        "image": image,
        "label": int(result.labels[row]),
        "class": result.names[row],
        "probabilities": {name: round(float(p), 6) for name, p in zip(names, result.probabilities[row], strict=True)},
        "errors": {name: float(f"{e:.7g}") for name, e in zip(names, result.errors[row], strict=True)},
        "evaluations": int(result.evaluations[row]),
        **result.provenance,
    }
    return json.dumps(entry, ensure_ascii=False)


def _save(path: str, results: list[Classification]) -> None:
    from fastdc.errors import ErrorTable

    ErrorTable.concatenate([result.table for result in results]).save(path)
    click.echo(f"errors saved to {path}", err=True)


def _summary(results: list[Classification], truth: Any) -> None:
    labels = np.concatenate([result.labels for result in results])
    evaluations = int(sum(result.evaluations.sum() for result in results))
    seconds = sum(result.seconds for result in results)
    accuracy = "" if truth is None else f", accuracy {100 * np.mean(labels == truth):.2f} %"
    click.echo(
        f"{len(labels)} image{'s' if len(labels) != 1 else ''}, {evaluations:,} evaluations, {seconds:.2f} s{accuracy}",
        err=True,
    )
