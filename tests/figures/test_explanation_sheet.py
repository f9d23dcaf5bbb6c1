"""The sheet of explanations: what it draws, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdc.support import InputError
from helpers.worlds import classifier, gaussian

pytest.importorskip("matplotlib")

from fastdc.figures import explanation_sheet
from fastdc.figures.explanation_sheet import _errors

WORLD = gaussian(4)
IMAGES = ((WORLD.sample(np.arange(3)) + 1) / 2).astype(np.float32)
MADE = classifier(WORLD).explain(IMAGES, rule="full", draws=16)


def test_a_sheet_names_classes_and_repeats(tmp_path: Path) -> None:
    first = explanation_sheet(tmp_path / "a.svg", MADE, title="$a & <b>").read_text()
    for text in ("$a &amp; &lt;b&gt;", "class 0, probability", "error above the smallest", "16 draws", "image 2"):
        assert text in first
    assert explanation_sheet(tmp_path / "b.svg", MADE, title="$a & <b>").read_text() == first
    few = explanation_sheet(tmp_path / "c.svg", MADE, max_images=1).read_text()
    assert "image 0" in few
    assert "image 1" not in few
    assert "the first 1 of 3 images" in few
    assert "the first" not in first


def test_undecided_errors_fill_no_axis(tmp_path: Path) -> None:
    middle = np.clip((WORLD.means[:2].mean(axis=0, keepdims=True) + 1) / 2, 0, 1).astype(np.float32)
    found = classifier(WORLD).explain(middle, classes=0, against=1, rule="full", draws=64)
    assert found[0].undecided
    assert "undecided" in explanation_sheet(tmp_path / "a.svg", found).read_text()
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    _errors(axes, replace(found[0], errors={"class 0": 1.0, "class 1": 1.0 + 1e-9}))
    assert axes.get_xlim()[1] > 1e-3
    assert len(axes.get_xticks()) <= 6


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    assert explanation_sheet(tmp_path / f"a.{suffix}", MADE[:1]).stat().st_size > 3000


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        explanation_sheet(tmp_path / "a.gif", MADE)
    with pytest.raises(InputError, match="max_images must be"):
        explanation_sheet(tmp_path / "a.png", MADE, max_images=0)
