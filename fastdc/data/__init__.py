"""Loaders that turn image files and arrays into arrays of one shape, for `classify`, `certify` and `train`.

    load_images(sources, shape)   image files, folders, .npy and .npz -> ImageSet, converted to the bundle's (c, h, w)
    load_labelled(source)         a folder with one sub-folder per class, or an .npz with labels -> LabelledImages
    digits_test()                 the 400 test digits that the package ships

All loaders check everything before they return anything, and never unpickle. A file that cannot be used raises a
one-line :class:`fastdc.InputError` that names it. No conversion is silent: ``notes`` has one line with a count for each
kind of conversion.

Modules: `convert` (grey/RGB, resize, crop, notes), `image_files` (Pillow, folders), `arrays` (.npy, .npz), `sets` (the
public loaders).
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
