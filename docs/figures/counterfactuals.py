"""The sheets of docs/counterfactuals.md: ten counterfactuals of each of three shipped models.

usage: python docs/figures/counterfactuals.py [digits mnist shapes] [--mnist FOLDER]

writes docs/figures/counterfactuals-NAME.png. The images are no choice: they are the first ten of a random order of the
test images with seed 0, and the classes to reach are random other classes with seed 0. Settings are the defaults. Needs
the extras cpu and plot, scikit-learn and torch; --mnist is a folder of `models/make_mnist.py FOLDER --photos`.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "bench"))

from counterfactuals import EPOCHS, drawn, others, side_of  # noqa: E402
from fastdc.explanation import counterfactuals  # noqa: E402
from fastdc.figures import counterfactual_sheet  # noqa: E402

COUNT = 10


def main() -> None:
    options = argparse.ArgumentParser(description="Draws ten counterfactuals of each model.")
    options.add_argument("models", nargs="*", default=list(EPOCHS))
    options.add_argument("--mnist", type=Path)
    arguments = options.parse_args()
    for name in arguments.models:
        side = side_of(name, arguments.mnist)
        some = drawn(side.data["test"], COUNT, 0)
        target = others(some.labels, side.clf.model.num_classes, 0)
        made = counterfactuals(side.clf, some.images, from_=some.labels, to=target, decoder=side.decoder)
        title = f"{name}: {made.edit['name']} from ratio {made.edit['ratio']:g}, w = {made.edit['guidance']:g}"
        path = counterfactual_sheet(HERE / f"counterfactuals-{name}.png", made, title=title)
        drawn_in = Image.open(path).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
        drawn_in.save(path, optimize=True)  # a palette of 256 colours keeps the file below 100 kB
        print(f"{path}: {made}")


if __name__ == "__main__":
    main()
