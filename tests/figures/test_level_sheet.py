"""The plot of noise levels: a valid file with a line for each kind, the same bytes every time."""

import xml.etree.ElementTree as ET
from pathlib import Path

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
