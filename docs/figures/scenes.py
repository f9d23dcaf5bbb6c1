"""The sheet of docs/scenes.md: the first eight test images of each task, of 64 pixels; every second column is unseen.

usage: python docs/figures/scenes.py

writes docs/figures/scenes.png.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fastdc.testing import SCENE_TASKS, scenes

EACH, SIZE, BORDER = 4, 64, 2


def main() -> None:
    rows = []
    for task in SCENE_TASKS:
        worlds = [scenes(task, split, EACH, size=SIZE) for split in ("ID_test", "ood_test")]
        images = np.stack([world.images for world in worlds], axis=1).reshape(2 * EACH, 3, SIZE, SIZE)
        framed = np.pad(images, ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER)), constant_values=255)
        rows.append(np.concatenate(list(framed), axis=2))
        for world in worlds:
            print(task, [group.captions[0] for group in world.groups])
    sheet = Image.fromarray(np.concatenate(rows, axis=1).transpose(1, 2, 0))
    sheet.quantize(128, method=Image.Quantize.MAXCOVERAGE, kmeans=3).save(
        Path(__file__).with_name("scenes.png"), optimize=True
    )


if __name__ == "__main__":
    main()
