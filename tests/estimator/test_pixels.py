"""Rows, images and their scales, without a model."""

from typing import Any

import numpy as np
import pytest

from fastdc.support import InputError

pytest.importorskip("sklearn")

from fastdc.estimator.classes import name_of, training_names
from fastdc.estimator.pixels import Layout, Scale, as_rows, layout_of, levels, read_shape


@pytest.mark.parametrize(
    ("shape", "wanted", "seen"),
    [
        ((5, 8, 6), None, (1, 8, 6)),
        ((5, 3, 8, 6), None, (3, 8, 6)),
        ((5, 8, 6, 3), None, (3, 8, 6)),
        ((5, 3, 8, 3), None, (3, 8, 3)),
        ((5, 3, 8, 3), (3, 3, 8), (3, 3, 8)),
        ((5, 4, 8, 8), (4, 8, 8), (4, 8, 8)),
        ((5, 8, 8, 4), (4, 8, 8), (4, 8, 8)),
        ((5, 3, 3, 3), (3, 3, 3), (3, 3, 3)),
    ],
)
def test_images_become_rows_with_the_channels_first(shape: Any, wanted: Any, seen: Any) -> None:
    images = np.arange(np.prod(shape)).reshape(shape)
    rows, found = as_rows(images, wanted)
    assert found == seen
    channels_first = images[:, None] if images.ndim == 3 else images
    if shape[1:] != seen and images.ndim == 4:
        channels_first = images.transpose(0, 3, 1, 2)
    assert np.array_equal(rows, channels_first.reshape(5, -1))


def test_what_is_no_stack_of_images_stays() -> None:
    for given in ([[1, 2]], np.zeros((3, 4)), np.zeros(3), np.zeros((1, 1, 1, 1, 1))):
        assert as_rows(given, None)[0] is given
    with pytest.raises(InputError, match=r"1 or 3 channels, got shape \(2, 5, 5, 5\)"):
        as_rows(np.zeros((2, 5, 5, 5)), None)


@pytest.mark.parametrize(
    ("features", "shape"),
    [(1, (1, 2, 2)), (4, (1, 2, 2)), (5, (1, 3, 3)), (9, (1, 3, 3)), (10, (1, 4, 4)), (64, (1, 8, 8))],
)
def test_rows_are_padded_to_the_next_square(features: int, shape: tuple[int, int, int]) -> None:
    layout = layout_of(features, None, None, None)
    assert layout.shape == shape
    rows = np.arange(2 * features).reshape(2, features) + 1
    images = layout.images(rows, flat=True)
    assert images.shape == (2, *shape)
    assert np.array_equal(images.reshape(2, -1)[:, :features], rows)
    assert not images.reshape(2, -1)[:, features:].any()


def test_rows_with_the_channels_last_are_read_so() -> None:
    stated = read_shape((4, 5, 3))
    assert stated == ((3, 4, 5), True)
    layout = layout_of(60, None, stated, None)
    pixels = np.arange(120).reshape(2, 4, 5, 3)
    assert np.array_equal(layout.images(pixels.reshape(2, 60), flat=True), pixels.transpose(0, 3, 1, 2))
    rows, _ = as_rows(pixels, layout.shape)
    assert np.array_equal(layout.images(rows, flat=False), pixels.transpose(0, 3, 1, 2))
    assert read_shape((3, 4, 5)) == ((3, 4, 5), False)
    assert read_shape([4, 5]) == ((1, 4, 5), False)
    assert Layout((1, 1, 2), 2) == layout_of(2, (1, 1, 2), None, None)
    for odd in ("8x8", (8,), (8, 0), (2, 8, 8), (8, 8, True, 1)):
        with pytest.raises(InputError, match="image_shape must be"):
            read_shape(odd)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        (np.array([[0, 9]], np.uint8), (0, 255)),
        (np.array([[0.0, 0.2]]), (0, 1)),
        (np.array([[0, 1]]), (0, 1)),
        (np.array([[0.5, 1.5]]), (0.5, 1.5)),
        (np.array([[-3, 12]]), (-3, 12)),
        (np.array([[4.0, 4.0]]), (4, 8)),
        (np.array([[-7, -7]]), (-7, 0)),
    ],
)
def test_the_scale_is_that_of_the_data(values: Any, ends: tuple[float, float]) -> None:
    scale = Scale.of(values, None)
    assert (scale.low, scale.high) == ends
    assert scale.learned
    unit = scale.unit(values)
    if unit.dtype == np.uint8:
        assert np.array_equal(unit, values)
    else:
        assert np.allclose(unit, (values - ends[0]) / (ends[1] - ends[0]))
        beyond = scale.unit(np.array([[ends[0] - 5.0, ends[1] + 5.0]]))
        assert beyond.tolist() == [[0, 1]]


def test_scales_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="must span a finite range"):
        Scale.of(np.array([[-1.7e308, 1.7e308]]), None)
    for odd in ((1, 0), (0, np.inf), (np.nan, 1), "01", (0, 1, 2), 5):
        with pytest.raises(InputError, match="value_range must be"):
            Scale.of(np.zeros((1, 1)), odd)
    for fitted, later in ((np.uint8, np.float64), (np.int64, np.uint8)):
        with pytest.raises(InputError, match="expected one type, or value_range"):
            Scale.of(np.array([[0, 9]], fitted), None).unit(np.array([[0, 9]], later))
    stated = Scale.of(np.array([[0, 9]], np.int64), (0, 10))
    assert stated.unit(np.array([[0, 5]], np.uint8)).tolist() == [[0, 0.5]]


def test_levels_are_the_nearest_of_256() -> None:
    assert levels(np.array([0, 0.4 / 255, 0.6 / 255, 1], np.float32)).tolist() == [0, 0, 1, 255]
    whole = np.array([7], np.uint8)
    assert levels(whole) is whole


def test_names_of_labels() -> None:
    assert [name_of(label) for label in (np.int8(3), 3.0, np.float32(2), "cat", 0.5, np.str_("x"), True)] == [
        *("3", "3", "2", "cat", "0.5", "x", "True")
    ]
    assert training_names([-1, 1]) == ("-1", "1")
    assert training_names(["a\nb", "c"]) == ("0", "1")
    assert training_names(["", "c"]) == ("0", "1")
