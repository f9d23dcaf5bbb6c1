"""The sheets of docs/counterfactuals.md: ten counterfactuals of each of four shipped models.

usage: python docs/figures/counterfactuals.py [digits mnist shapes phantoms] [--mnist FOLDER]

writes docs/figures/counterfactuals-NAME.png. The images are no choice: they are the first ten of a random order of the
test images with seed 0 (of phantoms the first five of each class), and the classes to reach are random other classes
with seed 0. Settings are the defaults, but that shapes starts at a ratio of 1.5. Needs the extras cpu and plot,
scikit-learn and torch; --mnist is a folder of `models/make_mnist.py FOLDER --photos`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import fastdc
from fastdc.data import LabelledImages, phantoms_test

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "bench"))

from counterfactuals import EPOCHS, Side, drawn, others, side_of  # noqa: E402
from fastdc.explanation import counterfactuals  # noqa: E402
from fastdc.figures import counterfactual_sheet  # noqa: E402

COUNT = 10
STARTS = {"shapes": 1.5}  # ratios that are not the default's


def main() -> None:
    options = argparse.ArgumentParser(description="Draws ten counterfactuals of each model.")
    options.add_argument("models", nargs="*", default=[*EPOCHS, "phantoms"])
    options.add_argument("--mnist", type=Path)
    arguments = options.parse_args()
    for name in arguments.models:
        if name == "phantoms":
            side, test = Side(fastdc.load(name), {}), phantoms_test()
            names = side.clf.class_names
            every = LabelledImages(test.images, test.labels, names, tuple(map(str, range(len(test.labels)))))
            order = drawn(every, len(every), 0)
            some = order.take(np.concatenate([np.flatnonzero(order.labels == k)[: COUNT // 2] for k in (0, 1)]))
        else:
            side = side_of(name, arguments.mnist)
            some = drawn(side.data["test"], COUNT, 0)
        target = others(some.labels, side.clf.model.num_classes, 0)
        made = counterfactuals(
            side.clf, some.images, from_=some.labels, to=target, decoder=side.decoder, ratio=STARTS.get(name)
        )
        title = f"{name}: {made.edit['name']} from ratio {made.edit['ratio']:g}, w = {made.edit['guidance']:g}"
        path = counterfactual_sheet(HERE / f"counterfactuals-{name}.png", made, title=title)
        drawn_in = Image.open(path).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
        drawn_in.save(path, optimize=True)  # a palette of 256 colours keeps the file below 100 kB
        print(f"{path}: {made}")


if __name__ == "__main__":
    main()
