"""The phantoms: each lesion is where its mask says and nowhere else, and the texture has the promised spectrum."""

import numpy as np
import pytest

from fastdc.data import Phantoms
from fastdc.support import InputError
from fastdc.testing import phantom_images, phantoms


@pytest.fixture(scope="module")
def world() -> Phantoms:
    return phantoms(400, seed=5)


def test_shapes_and_shares(world: Phantoms) -> None:
    assert world.images.shape == (400, 1, 32, 32)
    assert world.images.dtype == np.uint8
    assert (world.masks.shape, world.healthy.shape) == ((400, 32, 32), (400, 1, 32, 32))
    assert world.class_names == ("healthy", "lesion")
    assert abs(world.labels.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / 400)
    assert abs((world.groups == "a").mean() - 0.5) < 4 * np.sqrt(0.25 / 400)
    assert len({image.tobytes() for image in world.images}) == 400


def test_a_lesion_is_the_difference_to_the_healthy_image_and_its_mask_is_where_that_is_at_least_half(
    world: Phantoms,
) -> None:
    added = world.images[:, 0].astype(int) - world.healthy[:, 0]
    ill = world.labels == 1
    assert not added[~ill].any()
    assert not world.masks[~ill].any()
    assert added[ill].min() >= 0
    for difference, mask in zip(added[ill], world.masks[ill], strict=True):
        assert 9 <= mask.sum() <= 40
        assert difference[mask].min() >= difference.max() / 2 - 1  # a level of rounding
        assert difference[~mask].max() <= difference.max() / 2 + 1
        assert difference.max() >= 0.07 * 0.75 * 255 - 1, "the smallest contrast, on the scanner with less gain"


def test_scanner_b_gives_less_contrast_and_more_noise(world: Phantoms) -> None:
    images = world.healthy[:, 0].astype(float)
    contrast = images.max((1, 2)) - images.min((1, 2))
    grain = (images[:, 1:, 1:] - images[:, 1:, :-1] - images[:, :-1, 1:] + images[:, :-1, :-1])[:, :3, :3].std((1, 2))
    first = world.groups == "a"
    assert contrast[first].mean() > 1.1 * contrast[~first].mean()
    assert grain[first].mean() < 0.7 * grain[~first].mean()


def test_the_texture_has_a_power_spectrum_of_one_over_f_cubed() -> None:
    """The slope of the power of periodic fields between low and middle frequencies, in logarithms."""
    side = 2 * phantom_images.SIDE
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    rng = np.random.default_rng(0)
    power = np.mean([np.abs(np.fft.fft2(phantom_images.texture(rng))) ** 2 for _ in range(50)], axis=0)
    band = (frequency > 0.04) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-3, abs=0.1)


def test_the_seed_the_split_and_the_index_determine_an_image(world: Phantoms) -> None:
    again = phantoms(30, seed=5)
    for name in ("images", "labels", "masks", "groups", "healthy"):
        assert np.array_equal(getattr(again, name), getattr(world, name)[:30])
    for other in (phantoms(30, "val", seed=5), phantoms(30, seed=6)):
        assert not np.array_equal(other.images, again.images)


def test_all_or_none_can_have_a_lesion_in_otherwise_the_same_images(world: Phantoms) -> None:
    none, every = phantoms(20, seed=5, positive=0), phantoms(20, seed=5, positive=1)
    assert np.array_equal(none.images, world.healthy[:20])
    assert np.array_equal(every.healthy, world.healthy[:20])
    assert (none.labels.sum(), every.labels.sum()) == (0, 20)
    assert every.masks.any((1, 2)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count"),
        ({"count": 2, "split": "tests"}, "split"),
        ({"count": 2, "positive": 1.5}, "positive"),
        ({"count": 2, "seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        phantoms(**arguments)  # type: ignore[arg-type]
