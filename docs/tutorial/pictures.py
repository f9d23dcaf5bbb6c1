"""Draw the pictures of the tutorial: some photos of each class, and the test photos that the model gets wrong.

usage: python pictures.py PHOTOS BUNDLE      writes photos.png and wrong.png
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import fastdc
from fastdc.data import load_labelled

ACROSS = 10  # pictures in a row


def sheet(images: list[np.ndarray], titles: list[str], path: str) -> None:
    """Saves small grey pictures in rows of ten, with a title above each."""
    rows = -(-len(images) // ACROSS)
    figure, axes = plt.subplots(rows, ACROSS, figsize=(8, rows * (1.0 if any(titles) else 0.8)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=8, pad=2)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100)


def main(photos: Path, bundle: str) -> None:
    """Writes both pictures into the current folder."""
    files = [sorted((photos / "train" / str(digit)).glob("*.png"))[row] for row in range(3) for digit in range(10)]
    sheet([np.asarray(Image.open(file)) for file in files], [""] * len(files), "photos.png")

    test = load_labelled(str(photos / "test"))
    result = fastdc.load(bundle).classify(test.images)
    wrong = np.flatnonzero(result.labels != test.labels)
    titles = [f"{test.labels[i]}, called {result.labels[i]}" for i in wrong]
    sheet([test.images[i, 0] for i in wrong[:20]], titles[:20], "wrong.png")
    print(f"{len(wrong)} of {len(test.labels)} test photos are classified wrong")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
