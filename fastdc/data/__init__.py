"""Loaders that turn image files and arrays into arrays of one shape, for `classify`, `certify` and `train`.

    prepare(images, shape)        whatever a user has in hand -> array (n, c, h, w)
    load_images(sources, shape)   image files, folders, manifests, .npy, .npz -> ImageSet of the bundle's (c, h, w)
    read_picture(path)            one image file, RGB in its own size
    load_labelled(source)         a folder with one sub-folder per class, a manifest, or an .npz -> LabelledImages
    load_pictures(source)         the same, each picture RGB in its own size -> LabelledPictures
    digits_test(), mnist_test()   the test digits that the package ships: 400 of 8x8 pixels, 300 of 28x28
    phantoms_test()               200 rendered X-ray-like images with the masks of their lesions

All loaders check everything before they return anything, and never unpickle. Files that cannot be used
raise a one-line :class:`fastdc.InputError` that names them, or are left out with a note. No conversion is silent:
``notes`` has one line with a count for each kind of conversion.

One budget bounds what an input may take (`max_pixels`), and one rule says which class of a model a label is.

Modules: `convert` (grey/RGB, resize, crop), `notes`, `bad_files` (left out, or named in one error), `budget`,
`levels` (values of more than 8 bits), `image_files` and `deep_files` (Pillow), `dicom_files` (pydicom), `guards`
(sizes that files announce), `layouts` (the axes of arrays), `arrays` (.npy, .npz), `manifests` (tables of files),
`layouts_of_tables` (manifests made of published tables), `classes` (labels of a data set and classes of a model),
`splits` (train, val, test), `parts` and `manifest_parts` (sources, listed but not read), `inputs` (which part a
source is), `stack` (where images go), `sets` (what loaders return), `loaders` and `labelled` (the public loaders),
`given_images` (`prepare`), `phantoms` (images with masks).
"""

from fastdc.data.budget import DEFAULT_MAX_PIXELS
from fastdc.data.classes import match_classes, shortened
from fastdc.data.given_images import prepare, prepare_named
from fastdc.data.image_files import Look
from fastdc.data.inputs import find_splits
from fastdc.data.labelled import (
    DIGITS_TEST,
    check_class_folders,
    digits_test,
    load_labelled,
    load_pictures,
    load_with_labels,
    mnist_test,
    shipped_test_file,
)
from fastdc.data.layouts_of_tables import LAYOUTS, MadeManifest, make_manifest
from fastdc.data.levels import check_window
from fastdc.data.loaders import load_images, read_picture
from fastdc.data.manifests import table_rows
from fastdc.data.phantoms import Phantoms, phantoms_test
from fastdc.data.sets import ImageSet, LabelledImages, LabelledPictures
from fastdc.data.splits import plain_split

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "DIGITS_TEST",
    "LAYOUTS",
    "ImageSet",
    "LabelledImages",
    "LabelledPictures",
    "Look",
    "MadeManifest",
    "Phantoms",
    "check_class_folders",
    "check_window",
    "digits_test",
    "find_splits",
    "load_images",
    "load_labelled",
    "load_pictures",
    "load_with_labels",
    "make_manifest",
    "match_classes",
    "mnist_test",
    "phantoms_test",
    "plain_split",
    "prepare",
    "prepare_named",
    "read_picture",
    "shipped_test_file",
    "shortened",
    "table_rows",
]
