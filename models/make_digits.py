"""Writes the digits data sets: scikit-learn's 1,797 handwritten 8x8 digits, split 1200 / 197 / 400.

    python models/make_digits.py OUTDIR      ->  OUTDIR/digits-train.npz, digits-val.npz, digits-test.npz

The images come with scikit-learn, without a download; their values 0 ... 16 become 0 ... 255. The splits are stratified
and fixed: 1200 images for training, 197 for tuning and calibration, 400 for testing.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the digits train, val and test sets as .npz files.")
    parser.add_argument("out", type=Path, help="folder for the three files; it is made if it does not exist")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    images = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, rest = train_test_split(np.arange(len(labels)), train_size=1200, stratify=labels, random_state=0)
    val, test = train_test_split(rest, train_size=197, stratify=labels[rest], random_state=0)
    names = np.array([str(digit) for digit in digits.target_names])
    for name, part in (("train", train), ("val", val), ("test", test)):
        path = out / f"digits-{name}.npz"
        np.savez_compressed(path, images=images[part], labels=labels[part], class_names=names)
        print(f"{path}: {len(part)} images, {np.bincount(labels[part], minlength=10).tolist()} of the digits 0 ... 9")


if __name__ == "__main__":
    main()
