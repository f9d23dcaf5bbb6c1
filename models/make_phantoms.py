"""Writes the phantoms: rendered X-ray-like images of 32x32 pixels, with and without a lesion whose pixels are known.

    python models/make_phantoms.py OUTDIR   ->  OUTDIR/phantoms.csv, images/SPLIT/NUMBER.png, masks/SPLIT/NUMBER.png,
                                                phantoms-train.npz, -val.npz, -test.npz, -test-200.npz

The images are those of fastdc.testing.phantoms: 4000 for training, 800 for tuning and calibration, 1500 for testing.
The table has the columns path, class, split, group and mask, where healthy images have no mask. The .npz files hold the
arrays images, labels, class_names, masks, groups and added, the grey levels that lesions add.
fastdc comes with the first 200 test images, phantoms-test-200.npz.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from fastdc.data import Phantoms
from fastdc.testing import phantoms

PARTS = {"train": 4000, "val": 800, "test": 1500}
SHIPPED = 200  # images of the last part that fastdc comes with


def main() -> None:
    parser = argparse.ArgumentParser(description="Write phantoms as PNG files with a table, and as .npz files.")
    parser.add_argument("out", type=Path, help="folder for the files; it is made if it does not exist")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with (out / "phantoms.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "class", "split", "group", "mask"))
        for split, count in PARTS.items():
            world = phantoms(count, split)
            table.writerows(write_pictures(out, split, world))
            write_arrays(out / f"phantoms-{split}.npz", world)
            ill, first = world.labels.sum(), (world.groups == "a").sum()
            print(f"{split}: {count} images, {ill} with a lesion, {first} of scanner a")
    write_arrays(out / f"phantoms-test-{SHIPPED}.npz", phantoms(SHIPPED, "test"))


def write_pictures(out: Path, split: str, world: Phantoms) -> list[tuple[str, str, str, str, str]]:
    """Writes images and the masks of lesions below a folder; returns the rows of the table."""
    rows = []
    for kind in ("images", "masks"):
        (out / kind / split).mkdir(parents=True, exist_ok=True)
    for number in range(len(world)):
        path, mask = f"images/{split}/{number:04d}.png", ""
        Image.fromarray(world.images[number, 0]).save(out / path)
        if world.labels[number]:
            mask = f"masks/{split}/{number:04d}.png"
            Image.fromarray(255 * world.masks[number].astype(np.uint8)).save(out / mask)
        rows.append((path, world.class_names[world.labels[number]], split, str(world.groups[number]), mask))
    return rows


def write_arrays(path: Path, world: Phantoms) -> None:
    """Writes all that is known of the phantoms as an .npz file."""
    np.savez_compressed(
        path,
        images=world.images,
        labels=world.labels,
        class_names=np.array(world.class_names),
        masks=world.masks,
        groups=world.groups,
        added=world.images - world.healthy,
    )


if __name__ == "__main__":
    main()
