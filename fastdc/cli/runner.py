"""Runs a classifier over many images for a command: in groups, under one progress bar, each handed on when done."""

from collections.abc import Iterator
from typing import Any

from fastdc.classifier import Classification, DiffusionClassifier
from fastdc.cli.options import progress_bar

# Images classified before their results are handed on: enough to fill many steps, few enough that an interruption
# loses little.
GROUP = 64


def classify_groups(
    classifier: DiffusionClassifier, images: Any, options: dict[str, Any]
) -> Iterator[tuple[int, Classification]]:
    """Classifies images (n, c, h, w) in groups.

    Yields:
        (index of the first image, result) of each group. Noise follows the image, so grouping changes no number.
    """
    draws = options["draws"] or classifier.model.defaults.draws
    total = len(images) * classifier.model.num_classes * draws
    with progress_bar(total, quiet=options["quiet"]) as advance:
        for start in range(0, len(images), GROUP):
            done = 0

            def progress(evaluated: int, _: int) -> None:
                nonlocal done
                advance(evaluated - done)
                done = evaluated

            result = classifier.classify(
                images[start : start + GROUP],
                rule=options["rule"],
                decision=options["decision"],
                draws=options["draws"],
                seed=options["seed"],
                progress=progress,
            )
            yield start, result
