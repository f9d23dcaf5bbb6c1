"""Prints the accuracy of bundles on labelled images: 16 draws, mean of the errors, the bundle's own levels and weights.

    python models/score.py IMAGES.npz BUNDLE [BUNDLE ...]

The accuracy is averaged over five seeds of the noise; the spread that is shown is the standard deviation over them.
"""

import argparse

import numpy as np

import fastdc
from fastdc.data import load_labelled

DRAWS, SEEDS = 16, 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the accuracy of bundles on labelled images.")
    parser.add_argument("images", help="an .npz with images and labels")
    parser.add_argument("bundles", nargs="+", help="bundle folders, or names of shipped models")
    arguments = parser.parse_args()
    data = load_labelled(arguments.images)
    for bundle in arguments.bundles:
        classifier = fastdc.load(bundle, threads=1)
        correct, seconds = [], 0.0
        for seed in range(SEEDS):
            result = classifier.classify(data.images, rule="full", draws=DRAWS, seed=seed)
            correct.append(100 * np.mean(result.labels == data.labels))
            seconds += result.seconds
        each = 1e3 * seconds / SEEDS / len(data.labels)
        print(
            f"{bundle}: {np.mean(correct):.2f} % +- {np.std(correct):.2f} of {len(data.labels)}, {each:.1f} ms an image"
        )


if __name__ == "__main__":
    main()
