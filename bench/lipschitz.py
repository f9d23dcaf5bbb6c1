"""Lipschitz certificates of the plain diffusion classifier: the share of images that they certify at some radii.

    python bench/lipschitz.py [--model digits-mlp] [--images 100] [--draws 4096] [--val digits-val.npz]

Errors are cut off at a cap, which is part of the classifier: the median error of validation images. docs/lipschitz.md
says how the certificates are made.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, save
from fastdc.certification import ABSTAIN, certify_table
from fastdc.data import LabelledImages, digits_test
from tables import announced, first_images, validation_images

RADII = (0.1, 0.2, 0.3)
BANDS = ((1.0, 4.0), (2.0, 8.0))
FORMS = ("plain", "levels")
WEIGHTING = "edm"
CAP_IMAGES, CAP_DRAWS = 50, 256


def measure(
    classifier: fastdc.DiffusionClassifier,
    test: LabelledImages,
    val: LabelledImages,
    band: tuple[float, float],
    draws: int,
    alpha: float,
) -> list[dict[str, Any]]:
    """Certifies with one band of noise levels; returns a record for each form."""

    def errors(images: npt.NDArray[np.uint8], draws: int) -> fastdc.ErrorTable:
        return classifier.errors(images, draws=draws, levels=band, weighting=WEIGHTING)

    cap = float(np.median(errors(val.images, CAP_DRAWS).errors))
    table = errors(test.images, draws)
    records = []
    for form in FORMS:
        made = certify_table(table, classifier.model, cap=cap, alpha=alpha, form=form)
        right, abstained = made.labels == test.labels, made.labels == ABSTAIN
        records.append(
            {
                "levels": band,
                "form": form,
                "cap": cap,
                "wrong": int((~right & ~abstained).sum()),
                "abstained": int(abstained.sum()),
                "mean_radius": float((made.radii * right).mean()),
                "certified": [float((right & (made.radii >= radius)).mean()) for radius in RADII],
            }
        )
    return records


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "lipschitz")
    made.add_argument("--model", default="digits-mlp")
    made.add_argument("--images", type=int, default=100, help="number of test images [%(default)s]")
    made.add_argument("--draws", type=int, default=4096, help="draws per class [%(default)s]")
    made.add_argument("--alpha", type=float, default=0.001, help="probability of a false certificate [%(default)s]")
    made.add_argument("--val", type=Path, help="validation images [made with scikit-learn]")
    arguments = made.parse_args()
    test = first_images(digits_test(), arguments.images)
    val = first_images(validation_images(arguments.val), CAP_IMAGES)
    classifier = fastdc.load(arguments.model)
    records = []
    for band in BANDS:
        with announced(f"levels {band[0]:g} to {band[1]:g}"):
            records += measure(classifier, test, val, band, arguments.draws, arguments.alpha)
    rows = [
        [
            f"{one['levels'][0]:g} to {one['levels'][1]:g}",
            {"levels": "per-level"}.get(one["form"], one["form"]),
            f"{one['cap']:.2f}",
            str(one["wrong"]),
            str(one["abstained"]),
            f"{one['mean_radius']:.3f}",
            *(f"{share:.2f}" for share in one["certified"]),
        ]
        for one in records
    ]
    columns = ["levels", "form", "cap", "wrong", "abstained", "mean radius, 0 if wrong", *(f"at {r:g}" for r in RADII)]
    print_table(f"{arguments.model}, {len(test)} images, {arguments.draws} draws", columns, rows)
    save(
        arguments.out,
        {
            "question": "what Lipschitz certificates give",
            "model": arguments.model,
            "images": len(test),
            "draws": arguments.draws,
            "alpha": arguments.alpha,
            "radii": RADII,
            "records": records,
        },
    )


if __name__ == "__main__":
    main()
