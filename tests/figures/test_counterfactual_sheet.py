"""The sheet of counterfactuals: what its panels show, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.explanation import Counterfactuals, counterfactuals
from fastdc.explanation.map_pictures import GREEN, PURPLE
from fastdc.figures import counterfactual_sheet, explanation_sheet, score_sheet
from fastdc.support import Float32
from helpers.worlds import SHAPE, classifier, gaussian, unit_images

pytest.importorskip("matplotlib")
image = pytest.importorskip("PIL.Image")


def made(n: int = 3) -> Counterfactuals:
    return counterfactuals(classifier(gaussian(3)), unit_images(n), steps=2)


def pixels(path: Path) -> Float32:
    return np.asarray(np.asarray(image.open(path).convert("RGB")) / 255, np.float32)


def test_a_brighter_pixel_is_green_and_a_darker_one_purple(tmp_path: Path) -> None:
    """One image, whose pictures are known: input black, factual grey, and half of the counterfactual white."""
    black = np.zeros((1, *SHAPE), np.float32)
    half = black.copy()
    half[..., :2] = 1
    known = replace(made(1), images=black, factual=black + np.float32(0.5), counterfactual=half)
    drawn = pixels(counterfactual_sheet(tmp_path / "a.png", known, scale=0.5))
    green, purple = (np.abs(drawn - np.array(colour) / 255).max(axis=2) < 0.02 for colour in (GREEN, PURPLE))
    assert green.sum() > 500
    assert purple.sum() == pytest.approx(green.sum(), rel=0.1)
    assert np.flatnonzero(green.any(axis=0)).mean() < np.flatnonzero(purple.any(axis=0)).mean()
    assert (np.abs(drawn - 0.5).max(axis=2) < 0.01).sum() > 1000  # the factual reconstruction


def test_a_sheet_finds_its_scale_and_states_it(tmp_path: Path) -> None:
    """Of a difference of 1e-3, all is seen; its colours are those of a difference of 0.5."""
    grey = np.full((1, 1, *SHAPE[1:]), 0.5, np.float32)
    half = grey + np.where(np.arange(SHAPE[2]) < 2, 1e-3, -1e-3).astype(np.float32)
    known = replace(made(1), images=grey, factual=grey, counterfactual=half)
    drawn = pixels(counterfactual_sheet(tmp_path / "a.png", known))
    assert (np.abs(drawn - np.array(GREEN) / 255).max(axis=2) < 0.02).sum() > 500
    assert "±0.001" in counterfactual_sheet(tmp_path / "a.svg", known).read_text(encoding="utf-8")


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
    swapped: Any = (result, tmp_path / "a.png")
    for sheet in (counterfactual_sheet, explanation_sheet, score_sheet):
        with pytest.raises(InputError, match="first argument is the path"):
            sheet(*swapped)


def test_no_line_leaves_the_sheet(tmp_path: Path) -> None:
    """Of one image, the sheet is narrow."""
    counterfactual_sheet(tmp_path / "a.png", made(1), title="digits")
    drawn = pixels(tmp_path / "a.png").min(axis=2)
    assert (drawn[:, -20:] > 0.9).all()
    text = counterfactual_sheet(tmp_path / "a.svg", made(1)).read_text(encoding="utf-8")
    assert "of the new class" in text
    assert made(1).outcome.startswith("1 of 1 flipped, 1 factual reconstruction kept its class")


def test_the_own_class_is_no_failure(tmp_path: Path) -> None:
    result = counterfactuals(classifier(gaussian(3)), unit_images(2), steps=2, from_=[0, 1], to=0)
    text = counterfactual_sheet(tmp_path / "a.svg", result, columns=1).read_text(encoding="utf-8")
    assert "its own class, p" in text
    assert "of 1 flipped" in text
