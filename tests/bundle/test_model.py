"""Models: the checks when one is made, its views, and the names of the shipped ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import BundleError, InputError, Model
from fastdc.bundle.shipped import find_model, shipped_models
from helpers.worlds import fails_with, gaussian

MODEL = gaussian(3).model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_shape": (4, 4)}, "image_shape must be (channels, height, width), got (4, 4)"),
        ({"image_shape": (1, 0, 4)}, "image_shape"),
        ({"latent_shape": (1, 2, 2, 2)}, "latent_shape"),
        ({"latent_shape": (0, 2, 2)}, "latent_shape"),
        ({"class_names": ()}, "class_names must hold at least one name"),
        ({"value_range": (1.0, 1.0)}, "value_range must be (low, high) with low < high"),
        ({"class_of": (0, 1, 2)}, "0 prompts need a class each, got 3"),
        ({"prompts": ("a", "b", "c"), "class_of": (0, 1, 1)}, "every class in [0, 3) needs a prompt"),
        ({"prompts": ("a", "b", "c", "d"), "class_of": (0, 1, 2, 3)}, "every class in [0, 3)"),
    ],
)
def test_an_invalid_model_is_refused(change: dict[str, Any], named: str) -> None:
    fails_with(lambda: replace(MODEL, **change), named, kind=InputError)


def test_the_smallest_model_is_valid() -> None:
    smallest = replace(MODEL, image_shape=(1, 1, 1), class_names=("only",))
    assert (smallest.num_classes, smallest.sample_shape, smallest.conditions) == (1, (1, 1, 1), ("only",))


def test_latents_and_prompts_are_what_the_network_sees() -> None:
    model = replace(MODEL, latent_shape=(2, 1, 1), prompts=("p", "q", "r", "s"), class_of=(0, 1, 2, 2))
    assert (model.num_classes, model.sample_shape) == (3, (2, 1, 1))
    assert model.conditions == ("p", "q", "r", "s")


def of_range(low: float, high: float) -> Model:
    return replace(MODEL, value_range=(low, high))


def test_noise_in_pixels_scales_with_the_value_range() -> None:
    """An image in [0, 1] times (high - low): so is its noise."""
    assert [of_range(*bounds).noise_ratio(0.5) for bounds in ((-1, 1), (0, 1), (-2, 6))] == [1.0, 0.5, 4.0]


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (-2.0, 6.0)])
def test_pixels_are_mapped_onto_the_value_range_and_back(bounds: tuple[float, float]) -> None:
    unit = np.linspace(0, 1, 17, dtype=np.float32)
    pixels = of_range(*bounds).pixels
    x = pixels.from_unit(unit)
    assert x.dtype == np.float32
    assert (float(x[0]), float(x[-1])) == bounds
    np.testing.assert_array_equal(pixels.to_unit(x), unit)


def test_a_name_is_a_shipped_model_and_a_path_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert find_model("digits") != Path("digits")
    assert find_model("./digits") == Path("digits")
    assert find_model(tmp_path / "digits") == tmp_path / "digits"
    fails_with(lambda: find_model("digit"), "no model 'digit'", *shipped_models(), kind=BundleError)
