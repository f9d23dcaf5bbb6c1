"""How much should an error map be smoothed? Distance of short, smoothed maps to a long one of other noise.

    python bench/explain_smoothing.py [MODEL]... --images 8

For each model and number of draws, the relative squared distance ||smoothed - long||^2 / ||long||^2, summed over images,
where the long map has 2048 draws of another seed and no smoothing. Images are validation images of the models' data (the
first ones of their training files' validation part where there is one, else of the test file: no label is read).
"""

import argparse

import numpy as np

import fastdc
from fastdc.data import load_images, shipped_test_file
from fastdc.explanation import error_maps
from fastdc.inference import Images

SIGMAS = (0.0, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
DRAWS = (8, 32, 128)
LONG = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["digits", "mnist", "shapes"])
    parser.add_argument("--images", type=int, default=8)
    wanted = parser.parse_args()
    print("model   draws " + " ".join(f"{sigma:>6g}" for sigma in SIGMAS))
    for name in wanted.models:
        clf = fastdc.load(name, threads=1)
        file = shipped_test_file(clf.model.image_shape, clf.model.class_names)
        loaded = load_images([str(file)], clf.model.image_shape).images[: wanted.images]
        ready = Images.of(loaded, clf.model)
        errors = clf.classify(ready, rule="full", draws=16, seed=9).errors
        pairs = np.argsort(errors, axis=1)[:, :2]
        long = error_maps(clf.settings(rule="full", draws=LONG, seed=1).job, ready, pairs).mean
        for draws in DRAWS:
            job = clf.settings(rule="full", draws=draws, seed=2).job
            far = [((error_maps(job, ready, pairs, smooth=s).mean - long) ** 2).sum() for s in SIGMAS]
            print(f"{name:<8}{draws:>5} " + " ".join(f"{one / (long**2).sum():6.3f}" for one in far), flush=True)


if __name__ == "__main__":
    main()
