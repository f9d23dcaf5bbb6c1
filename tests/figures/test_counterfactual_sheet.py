"""The sheet of counterfactuals: what its panels show, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdc import InputError
from fastdc.explanation import Counterfactuals, counterfactuals
from fastdc.figures import counterfactual_sheet
from fastdc.support import Float32
from helpers.worlds import SHAPE, classifier, gaussian, unit_images

pytest.importorskip("matplotlib")
image = pytest.importorskip("PIL.Image")


def made(n: int = 3) -> Counterfactuals:
    return counterfactuals(classifier(gaussian(3)), unit_images(n), steps=2)


def pixels(path: Path) -> Float32:
    return np.asarray(np.asarray(image.open(path).convert("RGB")) / 255, np.float32)


def test_a_brighter_pixel_is_red_and_a_darker_one_blue(tmp_path: Path) -> None:
    """One image, whose pictures are known: input black, factual grey, and half of the counterfactual white."""
    black = np.zeros((1, *SHAPE), np.float32)
    half = black.copy()
    half[..., :2] = 1
    known = replace(made(1), images=black, factual=black + np.float32(0.5), counterfactual=half)
    drawn = pixels(counterfactual_sheet(tmp_path / "a.png", known, scale=0.5))
    red, blue = (np.abs(drawn - np.array(colour) / 255).max(axis=2) < 0.02 for colour in ((103, 0, 31), (5, 48, 97)))
    assert red.sum() > 500
    assert blue.sum() == pytest.approx(red.sum(), rel=0.1)
    assert np.flatnonzero(red.any(axis=0)).mean() < np.flatnonzero(blue.any(axis=0)).mean()
    assert (np.abs(drawn - 0.5).max(axis=2) < 0.01).sum() > 1000  # the factual reconstruction


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    result = made()
    first = counterfactual_sheet(tmp_path / "a.png", result, title="digits $1$")
    second = counterfactual_sheet(tmp_path / "b.png", result, title="digits $1$")
    assert first.read_bytes() == second.read_bytes()
    svg = counterfactual_sheet(tmp_path / "a.svg", result, columns=1, max_images=2).read_text(encoding="utf-8")
    assert "the first 2 of 3 images" in svg
    assert "class 0" in svg


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    result = made()
    for options in ({"columns": 0}, {"scale": 0.0}, {"max_images": 101}):
        with pytest.raises(InputError, match=next(iter(options))):
            counterfactual_sheet(tmp_path / "a.png", result, **options)
    with pytest.raises(InputError, match="nothing to draw"):
        counterfactual_sheet(tmp_path / "a.png", result[:0])
    with pytest.raises(InputError, match="suffix"):
        counterfactual_sheet(tmp_path / "a.gif", result)
