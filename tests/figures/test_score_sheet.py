"""The plot of a score: counts and names are there, for few classes and for many."""

from pathlib import Path

import numpy as np
import pytest

from fastdc import InputError
from fastdc.figures import score_sheet
from fastdc.scoring import Score, score

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def scored(k: int) -> Score:
    rng = np.random.default_rng(0)
    truth, p = rng.integers(0, k, 90), rng.dirichlet(np.ones(k), 90)
    return score(truth, p, [f"<{i}>$x$\n" for i in range(k)])


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_plot_is_written_and_repeats(tmp_path: Path, suffix: str) -> None:
    first, second = (score_sheet(tmp_path / f"{name}{suffix}", scored(3), title="t") for name in "ab")
    assert first.stat().st_size > 1000
    assert first.read_bytes() == second.read_bytes()


def test_the_plot_names_classes_and_counts(tmp_path: Path) -> None:
    found = scored(3)
    text = score_sheet(tmp_path / "a.svg", found, title="digits & more").read_text(encoding="utf-8")
    for words in ("&lt;0&gt;$x$", "digits &amp; more", found.accuracy.percent(), "ECE"):
        assert words in text
    for count in found.confusion.ravel():
        assert f">{count}</text>" in text


def test_many_classes_have_no_names(tmp_path: Path) -> None:
    assert "&lt;7&gt;" in score_sheet(tmp_path / "a.svg", scored(30)).read_text(encoding="utf-8")
    assert "&lt;7&gt;" not in score_sheet(tmp_path / "b.svg", scored(80)).read_text(encoding="utf-8")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got suffix"):
        score_sheet(tmp_path / "a.gif", scored(3))
