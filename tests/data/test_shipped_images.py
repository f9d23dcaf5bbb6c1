"""The test images that come with fastdc, and which model they are for."""

import numpy as np

from fastdc.data import digits_test, load_labelled, mnist_test, phantoms_test, shipped_test_file
from fastdc.testing import phantoms


def test_digits_test() -> None:
    data = digits_test()
    assert data.images.shape == (400, 1, 8, 8)
    assert data.class_names == tuple("0123456789")
    assert data.ids[3] == "digits-test[3]"
    assert np.bincount(data.labels).min() >= 30
    assert (data.images.min(), data.images.max()) == (0, 255)


def test_mnist_test() -> None:
    data = mnist_test()
    assert data.images.shape == (300, 1, 28, 28)
    assert data.images.dtype == np.uint8
    assert data.class_names == tuple("0123456789")
    assert data.ids[3] == "mnist-test[3]"
    assert np.bincount(data.labels).min() >= 15
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert np.median(data.images) == 0, "white strokes on black"
    assert len({image.tobytes() for image in data.images}) == 300


def test_phantoms_test() -> None:
    data, world = phantoms_test(), phantoms(200)
    for name in ("images", "labels", "masks", "groups", "healthy"):
        assert np.array_equal(getattr(data, name), getattr(world, name))
        assert getattr(data, name).dtype == getattr(world, name).dtype
    assert data.class_names == ("healthy", "lesion")
    path = shipped_test_file((1, 32, 32), ("lesion", "healthy"))
    assert path is not None
    assert np.array_equal(load_labelled(path).images, data.images)


def test_a_model_of_digits_has_test_images_of_its_size() -> None:
    digits = tuple("0123456789")
    for data in (digits_test(), mnist_test()):
        path = shipped_test_file(data.images.shape[1:], digits[::-1])
        assert path is not None
        assert np.array_equal(load_labelled(path).images, data.images)
    assert shipped_test_file((1, 28, 28), digits[:9]) is None
    assert shipped_test_file((1, 28, 28), (*digits[:9], "nine")) is None
    assert shipped_test_file((3, 28, 28), digits) is None
    assert shipped_test_file((1, 14, 14), digits) is None
