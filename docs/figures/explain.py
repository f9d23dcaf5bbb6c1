"""The figure of docs/explain.md: error maps of three handwritten digits.

usage: python docs/figures/explain.py      writes docs/figures/explain.png; needs fastdc with the extras cpu and plot

The shipped model mnist explains the first test images of the classes 3, 4 and 7 against 8, 9 and 1, with 256 draws.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import fastdc
from fastdc.data import mnist_test
from fastdc.figures import explanation_sheet

HERE = Path(__file__).parent
PAIRS = {3: 8, 4: 9, 7: 1}


def main() -> None:
    clf, test = fastdc.load("mnist"), mnist_test()
    rows = [int(np.flatnonzero(test.labels == k)[0]) for k in PAIRS]
    made = clf.explain(test.images[rows], classes=list(PAIRS), against=list(PAIRS.values()), map_draws=256)
    drawn = explanation_sheet(HERE / "explain.png", made)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(128).save(drawn, optimize=True)
    for one in made:
        print(f"{one.names[0]} against {one.names[1]}: for {one.region_for}; against {one.region_against}")


if __name__ == "__main__":
    main()
