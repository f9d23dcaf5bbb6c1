"""Counterfactuals of phantoms, whose true counterfactual is known: do they remove the lesion, and nothing else?

    python bench/phantom_edits.py [--model phantoms] [--images 30] [--val 8] [--quick]

Test phantoms with a lesion are edited towards "healthy" by every edit of pixel models. Measured are the flip rate under
the diffusion classifier and under an independent CNN that is trained here, the share of factual reconstructions that
keep their class, the distances (L1, SSIM) to the same phantom rendered without its lesion, and the absolute difference
of factual reconstruction and counterfactual as a map of the lesion. The start (sigma / alpha), the guidance and the
smoothing of the map are those that are best on validation phantoms, by average precision of the map. The distances are
compared with doing nothing: the image with its lesion is that far from the image without.

Numbers are means over images with 95 % bootstrap intervals. Needs torch and scikit-learn; takes some minutes.
"""

import argparse
from itertools import product
from typing import Any

import numpy as np

import fastdc
from common import parser, print_table, save
from explain import WIDTHS, against_masks, ill, numbers, smoothed
from fastdc import DiffusionClassifier
from fastdc.data import Phantoms
from fastdc.explanation import (
    Counterfactuals,
    average_precision,
    best_share,
    bootstrap_mean,
    counterfactuals,
    flipped,
    l1_distance,
    ssim,
)
from fastdc.support import Float64
from fastdc.testing import phantoms
from phantom_cnn import lesion_probability, train_phantom_cnn

EDITS = ("sdedit", "ddim", "heun")
RATIOS = (0.3, 0.6, 1.2)  # sigma / alpha at the start
GUIDANCE = (0.0, 2.0)
STEPS = 20


def edited(
    classifier: DiffusionClassifier, data: Phantoms, edit: str, ratio: float, guidance: float
) -> Counterfactuals:
    """The counterfactuals of phantoms with a lesion."""
    options: dict[str, Any] = {"edit": edit, "ratio": ratio, "guidance": guidance, "steps": STEPS, "rule": "full"}
    return counterfactuals(classifier, data.images, from_="lesion", to="healthy", **options)


def map_of(found: Counterfactuals, width: float) -> Float64:
    """The absolute difference of both pictures, smoothed."""
    return smoothed(np.abs(found.factual - found.counterfactual)[:, 0].astype(np.float64), width)


def chosen(classifier: DiffusionClassifier, val: Phantoms, edit: str) -> tuple[float, float, float, float]:
    """Start, guidance, width and share of pixels that are best on validation phantoms."""
    tried = []
    for ratio, guidance in product(RATIOS, GUIDANCE):
        found = edited(classifier, val, edit, ratio, guidance)
        for width in WIDTHS:
            maps = map_of(found, width)
            score = float(average_precision(maps, val.masks).mean())
            tried.append((score, ratio, guidance, width, best_share(maps, val.masks)))
    _, ratio, guidance, width, share = max(tried)
    return ratio, guidance, width, share


def measured(classifier: DiffusionClassifier, cnn: Any, val: Phantoms, test: Phantoms, edit: str) -> dict[str, Any]:
    """All numbers of an edit."""
    ratio, guidance, width, share = chosen(classifier, val, edit)
    found = edited(classifier, test, edit, ratio, guidance)
    healthy = np.zeros(len(test), np.int64)

    def named(x: Any) -> Any:
        return (lesion_probability(cnn, x) > 0.5).astype(np.int64)

    values = {
        "flipped, diffusion": (found.after.labels == 0).astype(float),
        "flipped, CNN": flipped(found.counterfactual, healthy, named),
        "factual kept, diffusion": (found.of_factual.labels == 1).astype(float),
        "factual kept, CNN": flipped(found.factual, 1 - healthy, named),
        "L1 to the truth": l1_distance(found.counterfactual, _unit(test.healthy)),
        "SSIM to the truth": ssim(found.counterfactual, _unit(test.healthy)),
        **{name: one[:, 0] for name, one in against_masks([map_of(found, width)], test, share).items()},
    }
    options = {"ratio": ratio, "guidance": guidance, "steps": STEPS, "smoothing": width, "share": share}
    return {"options": options, **{name: numbers(bootstrap_mean(one)) for name, one in values.items()}}


def _unit(images: Any) -> Any:
    return (images / 255).astype(np.float32)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The result for every edit, and for doing nothing."""
    cnn = train_phantom_cnn(phantoms(300 if given.quick else 4000, "train"), epochs=1 if given.quick else 15)
    classifier = fastdc.load(given.model, threads=1)
    test, val = (
        ill(phantoms(count, split), wanted)
        for count, split, wanted in (
            (40 if given.quick else 1500, "test", given.images),
            (40 if given.quick else 800, "val", given.val),
        )
    )
    before = lesion_probability(cnn, _unit(test.images)) > 0.5
    nothing = {
        "flipped, diffusion": classifier.classify(test.images, rule="full").labels == 0,
        "flipped, CNN": ~before,
        "L1 to the truth": l1_distance(_unit(test.images), _unit(test.healthy)),
        "SSIM to the truth": ssim(_unit(test.images), _unit(test.healthy)),
    }
    result: dict[str, Any] = {
        "model": given.model,
        "nothing": {name: numbers(bootstrap_mean(np.asarray(one, float))) for name, one in nothing.items()},
        **{edit: measured(classifier, cnn, val, test, edit) for edit in given.edits},
    }
    columns = [name for name in result[given.edits[0]] if name != "options"]
    rows = [[name, *(_cell(result[edit].get(name)) for edit in ("nothing", *given.edits))] for name in columns]
    print_table("Counterfactuals", ["", "nothing", *given.edits], rows)
    return result


def _cell(one: dict[str, Any] | None) -> str:
    return "" if one is None else f"{one['mean']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "phantom_edits")
    made.add_argument("--model", default="phantoms", help="shipped model, or a bundle [%(default)s]")
    made.add_argument("--images", type=int, default=30, help="test phantoms with a lesion [%(default)s]")
    made.add_argument("--val", type=int, default=8, help="validation phantoms with a lesion [%(default)s]")
    made.add_argument("--edits", nargs="+", choices=EDITS, default=EDITS)
    made.add_argument("--quick", action="store_true", help="few images, as a trial")
    given = made.parse_args()
    if given.quick:
        given.images, given.val = 2, 1
    save(given.out, run(given))


if __name__ == "__main__":
    main()
