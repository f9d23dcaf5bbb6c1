"""Sizes of images: sides or pairs, in pixels or by the factor of an autoencoder; all others are one line."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from fastdc.sources.image_size import MAX_SIDE, image_sides
from fastdc.support import InputError


@pytest.mark.parametrize(
    ("image_size", "trained", "wanted"),
    [
        (None, 8, (64, 64)),  # a config states samples, in latents of 8 pixels a side
        (None, [8, 12], (64, 96)),
        (32, 8, (32, 32)),  # a user states pixels
        ((32, 48), None, (32, 48)),
        ([32, 48], 8, (32, 48)),
        (np.int64(32), 8, (32, 32)),
        (MAX_SIDE, 8, (MAX_SIDE, MAX_SIDE)),
    ],
)
def test_sides_are_pixels(image_size: Any, trained: Any, wanted: tuple[int, int]) -> None:
    found = image_sides(image_size, trained, scale=8, multiple=16)
    assert found == wanted
    assert {type(side) for side in found} == {int}


@pytest.mark.parametrize(
    "image_size", [0, -16, 24, 16.0, True, "16", (16,), (16, 24), (16, 16, 16), (16, None), MAX_SIDE + 16, {}]
)
def test_other_sizes_are_refused(image_size: Any) -> None:
    expected = rf"\(--image-size\) must be a side or \(height, width\) of at most {MAX_SIDE}, divisible by 16, got "
    with pytest.raises(InputError, match=expected) as caught:
        image_sides(image_size, 16, multiple=16)
    assert str(caught.value).endswith(repr(image_size))


def test_a_config_without_a_usable_size_needs_one_from_the_user() -> None:
    with pytest.raises(InputError, match="trained on: give the image size \\(--image-size\\)"):
        image_sides(None, None, multiple=2)
    with pytest.raises(InputError, match=r"divisible by 16, got \(24, 24\)"):
        image_sides(None, 3, scale=8, multiple=16)
    with pytest.raises(InputError, match=r"got \('large', 'large'\)"):
        image_sides(None, "large", multiple=2)
