"""Plots of certified accuracy: valid files, the lines and names in them, and refusals."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.certification import ABSTAIN, Certificate, Records, records_of
from fastdc.figures import plot_curves
from fastdc.support import InputError

pytest.importorskip("matplotlib")

SVG = "{http://www.w3.org/2000/svg}"


def records(*rows: tuple[int, int, float]) -> Records:
    """Records of (true class, prediction, radius)."""
    made = [Certificate(predict, radius, 0.9, 95, 100, 10, 1000, 2.5) for _, predict, radius in rows]
    return records_of(made, [label for label, _, _ in rows])


FIVE = records((1, 1, 0.5), (2, 2, 0.25), (2, 0, 0.75), (0, ABSTAIN, 0.0), (0, 0, 0.5))
TWO = records((1, 1, 0.5), (2, 2, 0.25))


def test_a_plot_has_a_line_and_a_name_for_each_file(tmp_path: Path) -> None:
    path = plot_curves(tmp_path / "curves.svg", [FIVE, TWO], names=["a", "_$b$\n"])
    root = ET.parse(path)
    texts = {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}
    assert {"a, average radius 0.250", "$b$, average radius 0.375"} <= texts
    assert {"certified accuracy, %  (band: 95 % interval)", "radius (L2, pixels in [0, 1])"} <= texts
    content = path.read_bytes()
    assert plot_curves(path, [FIVE, TWO], names=["a", "_$b$\n"]).read_bytes() == content  # no date, no random names
    assert list(tmp_path.iterdir()) == [path]


def test_the_curve_goes_through_the_certified_accuracy(tmp_path: Path) -> None:
    """The steps of the line of `FIVE`: 60 % to radius 0.25, 40 % to 0.5, then 0."""
    content = plot_curves(tmp_path / "curves.svg", [FIVE]).read_text()
    (line,) = (node for node in ET.fromstring(content).iter(f"{SVG}path") if "#0072b2; stroke-width: 1.6" in
               node.get("style", "") and "L" in node.get("d", "") and node.get("clip-path"))  # fmt: skip
    numbers = [float(word) for word in line.get("d", "").split() if word not in "ML"]
    x, y = np.array(numbers).reshape(-1, 2).T
    radius, height = (x - x[0]) / (x[-1] - x[0]) * 0.5, (y[-1] - y) / (y[-1] - y[0]) * 60
    found = sorted({(round(r, 3), round(h, 1)) for r, h in zip(radius.tolist(), height.tolist(), strict=True)})
    assert found == [(0.0, 60.0), (0.25, 40.0), (0.25, 60.0), (0.5, 0.0), (0.5, 40.0)]


def test_a_plot_as_png(tmp_path: Path) -> None:
    with Image.open(plot_curves(tmp_path / "curves.PNG", [records((1, ABSTAIN, 0.0))])) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 600


def test_the_users_style_changes_nothing(tmp_path: Path) -> None:
    import matplotlib

    plain = plot_curves(tmp_path / "a.svg", [FIVE]).read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "font.family": "serif"}):
        assert plot_curves(tmp_path / "a.svg", [FIVE]).read_bytes() == plain


def test_a_plot_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a figure is written as \.png, \.svg or \.pdf, got suffix '\.bmp'"):
        plot_curves(tmp_path / "curves.bmp", [FIVE])
    with pytest.raises(InputError, match="cannot be written: No such file"):
        plot_curves(tmp_path / "none" / "curves.png", [FIVE])
    with pytest.raises(InputError, match="is unknown"):
        plot_curves(tmp_path / "curves.png", [records((-1, 1, 0.5))])
    assert list(tmp_path.iterdir()) == []
