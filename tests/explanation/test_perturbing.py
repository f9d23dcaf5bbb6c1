"""Deletion and insertion curves of scores whose curves are known."""

from typing import Any

import numpy as np
import pytest

from fastdc.explanation import deletion, insertion
from fastdc.support import Float32, InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (5, 2, 6, 8)).astype(np.float32)


def brightness(x: Float32) -> Float32:
    return np.asarray(x.mean((1, 2, 3)))


def test_the_curves_of_a_sum_are_sums_of_the_pixels_in_their_order() -> None:
    """The score is the mean pixel and the map the pixel itself, so deletion takes the brightest pixels first."""
    maps = IMAGES.mean(1)
    found = deletion(IMAGES, maps, brightness, baseline="black", steps=48)
    ordered = -np.sort(-maps.reshape(5, -1).astype(float), axis=1)
    left = (
        np.concatenate([ordered.sum(1, keepdims=True), ordered.sum(1, keepdims=True) - np.cumsum(ordered, 1)], 1) / 48
    )
    assert found.shares == pytest.approx(np.arange(49) / 48)
    assert found.scores == pytest.approx(left, abs=1e-6)
    assert found.areas == pytest.approx(np.trapezoid(left, found.shares, axis=1), abs=1e-6)
    back = insertion(IMAGES, maps, brightness, baseline="black", steps=48)
    assert back.scores == pytest.approx(left[:, :1] - left, abs=1e-6)


def test_the_best_order_has_the_smallest_deletion_and_the_largest_insertion_area() -> None:
    maps = IMAGES.mean(1)
    for other in (-maps, RNG.uniform(size=maps.shape)):
        for steps in (4, 48):
            options: dict[str, Any] = {"baseline": "black", "steps": steps}
            assert (
                deletion(IMAGES, maps, brightness, **options).areas
                < deletion(IMAGES, other, brightness, **options).areas
            ).all()
            assert (
                insertion(IMAGES, maps, brightness, **options).areas
                > insertion(IMAGES, other, brightness, **options).areas
            ).all()


def test_curves_begin_and_end_with_the_image_and_the_baseline() -> None:
    other = RNG.uniform(0, 1, IMAGES.shape).astype(np.float32)
    maps = RNG.normal(size=(5, 6, 8))
    gone, back = (curve(IMAGES, maps, brightness, baseline=other, steps=5) for curve in (deletion, insertion))
    assert gone.scores[:, [0, -1]] == pytest.approx(np.stack([brightness(IMAGES), brightness(other)], 1))
    assert back.scores[:, [-1, 0]] == pytest.approx(gone.scores[:, [0, -1]])
    for name, value in (("mean", IMAGES.mean((2, 3)).mean(1)), ("black", np.zeros(5))):
        assert deletion(IMAGES, maps, brightness, baseline=name).scores[:, -1] == pytest.approx(value, abs=1e-6)
    blurred = deletion(IMAGES, maps, lambda x: x.std((1, 2, 3)), baseline="blur").scores
    assert (blurred[:, -1] < 0.7 * blurred[:, 0]).all()


def test_levels_of_8_bits_are_images_too() -> None:
    levels = np.round(255 * IMAGES).astype(np.uint8)
    maps = IMAGES.mean(1)
    assert deletion(levels, maps, brightness).areas == pytest.approx(deletion(IMAGES, maps, brightness).areas, abs=2e-3)


def test_scores_may_be_tensors_of_a_graph() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.ones(1, requires_grad=True)
    found = deletion(IMAGES, IMAGES.mean(1), lambda x: weight * torch.from_numpy(x).mean((1, 2, 3)))
    np.testing.assert_allclose(
        found.areas, deletion(IMAGES, IMAGES.mean(1), lambda x: x.mean((1, 2, 3))).areas, rtol=1e-5
    )


BAD = [
    ({"images": IMAGES[0]}, "images must have shape (n, channels, height, width), got (2, 6, 8)"),
    ({"images": [[1, 2], [3]]}, "images must be an array, got list"),
    ({"images": IMAGES * 2}, "images as floats must be in [0, 1], got "),
    ({"images": IMAGES.astype(int)}, "images must be uint8 or floats in [0, 1], got int64"),
    ({"maps": np.zeros((5, 8, 6))}, "maps must have shape (5, 6, 8) for these images, got (5, 8, 6)"),
    ({"baseline": "grey"}, "baseline must be one of "),
    ({"baseline": IMAGES[:2]}, "baseline must have the shape of the images, (5, 2, 6, 8), got (2, 2, 6, 8)"),
    ({"steps": 49}, "steps must be a whole number from 1 to 48, got 49"),
    ({"predict": lambda x: x}, "predict must return 5 finite numbers, one for each image, got shape (5, 2, 6, 8)"),
    ({"predict": lambda x: ["a"] * 5}, "what predict returns must be an array of numbers, got list"),
    ({"predict": lambda x: x[:, 0, 0, 0] / 0}, "predict must return 5 finite numbers"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_errors_say_what_was_expected(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"images": IMAGES, "maps": IMAGES.mean(1), "predict": brightness, **change}
    with pytest.raises(InputError) as caught:
        deletion(**arguments)
    assert str(caught.value).startswith(message)
