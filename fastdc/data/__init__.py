"""Images in, arrays of one shape out: what `classify`, `certify` and `train` read.

    load_images(sources, shape)   image files, folders, .npy and .npz -> ImageSet, converted to the bundle's (c, h, w)
    load_labelled(source)         a folder with one sub-folder per class, or an .npz with labels -> LabelledImages
    digits_test()                 the 400 test digits that the package ships

Rules that hold for all of them: nothing is returned before everything was checked; nothing is ever unpickled; a
file that cannot be used raises a one-line :class:`fastdc.InputError` that names it; and no conversion is silent: each
kind is counted and told once in ``notes``.

Modules: `convert` (grey/RGB, resize, crop, notes), `files` (Pillow, folders), `arrays` (.npy, .npz), `sets` (the API).
"""

from fastdc.data.sets import DIGITS_TEST, ImageSet, LabelledImages, digits_test, load_images, load_labelled

__all__ = [
    "DIGITS_TEST",
    "ImageSet",
    "LabelledImages",
    "digits_test",
    "load_images",
    "load_labelled",
]
