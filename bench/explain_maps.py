"""Error maps against long ones of other noise: how much to smooth, and are significant pixels right?

    python bench/explain_maps.py [MODEL]... --images 16

For each model and number of draws, against maps of 1024 draws of another seed:

* distance: ||smoothed - long||^2 / ||long||^2, summed over images, for several Gaussians (deviation in pixels);
* wrong: the share of significant pixels (alpha 0.05) whose sign is not that of the long map, a false discovery if the
  long map is right, with the share of pixels that are significant and the largest share wrong of one image.

Images are the first ones of the model's test file; no label is read.
"""

import argparse

import numpy as np

import fastdc
from fastdc.data import load_images, shipped_test_file
from fastdc.explanation import error_maps, p_values, significant_pixels
from fastdc.inference import Images

SIGMAS = (0.0, 0.4, 0.6, 0.8, 1.0, 1.5)
DRAWS = (8, 32, 128)
LONG = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits", "mnist"])
    parser.add_argument("--images", type=int, default=16)
    wanted = parser.parse_args()
    print("model    draws  distance " + " ".join(f"{sigma:>5g}" for sigma in SIGMAS) + "   significant  wrong  worst")
    for name in wanted.models:
        clf = fastdc.load(name, threads=1)
        file = shipped_test_file(clf.model.image_shape, clf.model.class_names)
        ready = Images.of(load_images([str(file)], clf.model.image_shape).images[: wanted.images], clf.model)
        pairs = np.argsort(clf.classify(ready, rule="full", draws=16, seed=9).errors, axis=1)[:, :2].astype(np.int32)
        long = error_maps(clf.settings(rule="full", draws=LONG, seed=1).job, ready, pairs).mean
        for draws in DRAWS:
            job = clf.settings(rule="full", draws=draws, seed=2).job
            made = [error_maps(job, ready, pairs, smooth=sigma) for sigma in SIGMAS]
            far = [((one.mean - long) ** 2).sum() / (long**2).sum() for one in made]
            p = p_values(made[0].mean, made[0].standard_error, made[0].count)
            found = np.stack([significant_pixels(one) for one in p])
            wrong = (found & (np.sign(made[0].mean) != np.sign(long))).sum(axis=(1, 2)) / np.maximum(
                found.sum(axis=(1, 2)), 1
            )
            told = " ".join(f"{one:5.3f}" for one in far)
            print(
                f"{name:<9}{draws:>5}           {told}   {100 * found.mean():9.1f} %  {100 * wrong.mean():4.1f} % "
                f"{100 * wrong.max():4.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
