"""Prints the accuracy of bundles on labelled images, at 16 draws of every class and with the race.

    python models/score.py IMAGES.npz BUNDLE [BUNDLE ...]

Each bundle uses its own levels. The accuracy is the mean over five noise seeds, shown with the standard deviation.
"""

import argparse

import numpy as np

import fastdc
from fastdc.data import load_labelled

DRAWS, SEEDS = 16, 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the accuracy of bundles on labelled images.")
    parser.add_argument("images", help=".npz file with images and labels")
    parser.add_argument("bundles", nargs="+", help="bundle folders, or names of shipped models")
    arguments = parser.parse_args()
    data = load_labelled(arguments.images)
    for bundle in arguments.bundles:
        classifier = fastdc.load(bundle, threads=1)
        for rule, draws in (("full", DRAWS), ("race", None)):
            results = [classifier.classify(data.images, rule=rule, draws=draws, seed=seed) for seed in range(SEEDS)]
            correct = [100 * np.mean(result.labels == data.labels) for result in results]
            evaluations = np.mean([result.evaluations.mean() for result in results])
            each = 1e3 * np.mean([result.seconds for result in results]) / len(data.labels)
            print(
                f"{bundle}, {rule}: {np.mean(correct):.2f} % +- {np.std(correct):.2f} of {len(data.labels)}, "
                f"{evaluations:.1f} evaluations and {each:.1f} ms per image"
            )


if __name__ == "__main__":
    main()
