"""The plot of noise levels: a valid file with a line for each kind, the same bytes every time."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.certification import share
from fastdc.figures import level_sheet
from fastdc.matching import LevelAnalysis

pytest.importorskip("matplotlib")


def test_a_plot_has_a_line_for_each_kind(tmp_path: Path) -> None:
    kinds = ("same _$shape$", "any wrong text")
    ends = {kind: tuple(share(k, 40) for k in (22, 39, 30)) for kind in kinds}
    levels = np.array([[0.1, 0.4], [0.5, 2.0], [2.5, np.inf]])
    found = LevelAnalysis("a model", levels, (4, 4, 4), kinds, (40, 1), ends, ends)
    path = level_sheet(tmp_path / "levels.svg", found)
    words = {"".join(node.itertext()).strip() for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")}
    assert {"a model", "same _$shape$ (40 images)", "any wrong text (1 image)"} <= words
    content = path.read_bytes()
    assert level_sheet(path, found).read_bytes() == content
    assert level_sheet(tmp_path / "levels.png", found, title="t").stat().st_size > 1000


def test_kinds_that_agree_do_not_hide_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("colour", "shape", "any wrong text")
    ends = {kind: tuple(share(k, 5) for k in (5, 4)) for kind in kinds}
    figures: list[Any] = []
    monkeypatch.setattr(
        sys.modules["fastdc.figures.level_sheet"], "write_figure", lambda figure, _: figures.append(figure)
    )
    levels = np.array([[0.1, 0.4], [0.5, 2.0]])
    level_sheet(tmp_path / "levels.png", LevelAnalysis("m", levels, (4, 4), kinds, (5, 5, 5), ends, ends))
    for axes in figures[0].axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() != "None"]
        assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 3
        first, second, third = (np.asarray(line.get_xdata()) for line in lines)
        assert (first < second).all()
        assert (second < third).all()
        assert second == pytest.approx([0.2, 1.0])
        assert "95 % intervals" in axes.get_xlabel()
