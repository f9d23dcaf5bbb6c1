"""The error sheet: valid files of all three kinds, their content, and refusals."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastdc.figures.error_sheet import MAX_IMAGES, error_sheet
from fastdc.support import InputError

pytest.importorskip("matplotlib")

NAMES = ("ant", "bee", "cat")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
ERRORS = np.array([[1.0, 2.0, 1.5], [3.0, 2.0, np.nan], [1.0, 1.05, 1.001], [2.0, np.nan, np.nan]])


def texts(path: Path) -> list[str]:
    """The text elements of an SVG, in the order of drawing."""
    return ["".join(node.itertext()).strip() for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_png_is_an_image_of_sensible_size(tmp_path: Path) -> None:
    path = error_sheet(tmp_path / "sheet.png", IMAGES, ERRORS, NAMES)
    assert path == tmp_path / "sheet.png"
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert 800 < image.width < 3000
        assert 300 < image.height < 3000
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24) or []}
    assert (0x00, 0x72, 0xB2) in colours  # the winner's mark
    assert [item.name for item in tmp_path.iterdir()] == ["sheet.png"]  # no temporary file is left


def test_svg_says_what_was_predicted(tmp_path: Path) -> None:
    path = error_sheet(tmp_path / "sheet.svg", IMAGES, ERRORS, NAMES, true_labels=[0, 0, 2, 1], title="A title")
    found = texts(path)
    assert found[-6:-4] == ["A title", "4 images, 3 of 4 wrong"]
    headers = [text for text in found if text in NAMES or ", not " in text]
    assert headers[0] == "ant"
    assert [text for text in found if ", not " in text] == ["bee, not ant", "ant, not cat", "ant, not bee"]
    assert found.count("not run") == 3
    assert [text for text in found if re.fullmatch(r"\+.*%|.*x", text)] == ["+50%", "+50%", "+0.1%"]


def test_given_labels_and_abstentions(tmp_path: Path) -> None:
    path = error_sheet(
        tmp_path / "s.svg", IMAGES, ERRORS, NAMES, labels=[2, -1, 0, -1], true_labels=np.array([2, 1, 0, 0])
    )
    found = texts(path)
    assert "4 images, 0 of 4 wrong, 2 abstained" in found
    assert "abstains, true class bee" in found
    assert "abstains, true class ant" in found


def test_images_have_the_numbers_given(tmp_path: Path) -> None:
    found = texts(error_sheet(tmp_path / "s.svg", IMAGES, ERRORS, NAMES))
    assert [text for text in found if text[:1] == "#"] == ["#0", "#1", "#2", "#3"]
    found = texts(error_sheet(tmp_path / "s.svg", IMAGES, ERRORS, NAMES, numbers=[70, 3, 399, 0], max_images=3))
    assert [text for text in found if text[:1] == "#"] == ["#70", "#3", "#399"]
    for wrong in ([1, 2], [0.5] * 4):
        with pytest.raises(InputError, match=r"numbers must be integers of shape \(4,\), got"):
            error_sheet(tmp_path / "s.svg", IMAGES, ERRORS, NAMES, numbers=wrong)


def test_images_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    path = error_sheet(tmp_path / "s.svg", IMAGES, ERRORS, NAMES, max_images=2)
    assert "the first 2 of 4 images" in texts(path)
    assert "#1" in texts(path)
    assert "#2" not in texts(path)


def test_many_classes_show_the_best_ten_and_the_true_one(tmp_path: Path, rng: np.random.Generator) -> None:
    errors = rng.uniform(1, 2, (2, 100))
    errors[0, 50:] = np.nan
    order = np.argsort(errors, axis=1)
    truth = [int(order[0, 3]), int(order[1, 70])]
    names = [f"class {k}" for k in range(100)]
    found = texts(error_sheet(tmp_path / "s.svg", IMAGES[:2], errors, names, true_labels=truth))
    shown = [text for text in found if re.fullmatch(r"class \d+", text)]
    assert shown[:10] == [names[k] for k in order[0, :10]]
    assert shown[10:] == [names[k] for k in order[1, :10]] + [names[truth[1]]]
    errors[:, 4:] = np.nan  # classes that were never evaluated get no row when there are many
    found = texts(error_sheet(tmp_path / "s.svg", IMAGES[:2], errors, names))
    assert len([text for text in found if re.fullmatch(r"class \d+", text)]) == 2 * (1 + 4)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 1, 8, 8), 1), ((1, 3, 20, 31), 2), ((2, 1, 100, 40), 12), ((1, 3, 1, 1), 13)]
)
def test_shapes_and_suffixes(
    tmp_path: Path, rng: np.random.Generator, suffix: str, shape: tuple[int, ...], classes: int
) -> None:
    path = tmp_path / f"sheet{suffix}"
    images = rng.random(shape)
    error_sheet(path, images, rng.random((shape[0], classes)), [f"c{k}" for k in range(classes)])
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix.lower()]
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize(
    "errors", [[[0.0, 0.0]], [[0.0, 1.0]], [[-1.0, 2.0]], [[1e-320, 1.0]], [[1.0, 1e300]], [[3, 4]]]
)
def test_odd_errors_can_be_drawn(tmp_path: Path, errors: list[list[float]]) -> None:
    error_sheet(tmp_path / "s.png", IMAGES[:1], errors, ["a", "b"], true_labels=[1])


def test_pictures_are_drawn_as_they_are(tmp_path: Path) -> None:
    """A red picture gives a red patch of the sheet, upright: its top left pixel is the only green one."""
    images = np.zeros((1, 3, 2, 2), dtype=np.uint8)
    images[0, 0] = 255
    images[0, :, 0, 0] = (0, 255, 0)
    error_sheet(tmp_path / "s.png", images, [[1.0, 2.0]], ["a", "b"])
    with Image.open(tmp_path / "s.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    green = np.argwhere((pixels == (0, 255, 0)).all(axis=2)).mean(axis=0)
    red = np.argwhere((pixels == (255, 0, 0)).all(axis=2)).mean(axis=0)
    assert (green < red).all()


@pytest.mark.filterwarnings("error")
def test_hostile_names(tmp_path: Path, rng: np.random.Generator) -> None:
    """Mathematics, markup, control characters, unknown scripts and great length are all just text."""
    names = ["$\\frac", "<b>&amp;", "two\nlines\x00", "猫", "x" * 1000, ""]
    path = error_sheet(tmp_path / "s.svg", IMAGES[:1], rng.random((1, 6)), names, title="a $ \x07 title")
    found = texts(path)
    for text in ("$\\frac", "<b>&amp;", "two lines", "猫", "x" * 17 + "…"):
        assert text in found


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_files_are_reproducible(tmp_path: Path, suffix: str) -> None:
    paths = [error_sheet(tmp_path / f"{k}{suffix}", IMAGES, ERRORS, NAMES) for k in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_users_style_changes_nothing(tmp_path: Path) -> None:
    import matplotlib

    plain = error_sheet(tmp_path / "s.svg", IMAGES, ERRORS, NAMES).read_bytes()
    with matplotlib.rc_context({"lines.dash_capstyle": "round", "font.family": "serif", "image.origin": "lower"}):
        assert error_sheet(tmp_path / "s.svg", IMAGES, ERRORS, NAMES).read_bytes() == plain


@pytest.mark.parametrize("name", ["s.png", "s.svg"])
def test_an_interrupted_write_leaves_the_old_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        error_sheet(path, IMAGES, ERRORS, NAMES)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_arguments_are_not_written_to(tmp_path: Path) -> None:
    arrays: list[NDArray[np.generic]] = [IMAGES / 255, ERRORS.copy(), np.array([0, 1, 2, 0])]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.setflags(write=False)
    error_sheet(tmp_path / "s.png", arrays[0], arrays[1], NAMES, labels=arrays[2], true_labels=arrays[2])
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("name", ["s.jpg", "s", "s.html", ".png", "s.png.txt"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"a figure is written as \.png, \.svg or \.pdf, got suffix"):
        error_sheet(tmp_path / name, IMAGES, ERRORS, NAMES)


def test_an_old_sheet_survives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "s.png").write_bytes(b"old")
    with pytest.raises(InputError, match="errors must be finite"):
        error_sheet(tmp_path / "s.png", IMAGES, np.full((4, 3), np.inf), NAMES)
    assert (tmp_path / "s.png").read_bytes() == b"old"
    with pytest.raises(InputError, match=r"none/s\.png cannot be written: No such file"):
        error_sheet(tmp_path / "none" / "s.png", IMAGES, ERRORS, NAMES)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"folder\.png cannot be written"):
        error_sheet(tmp_path / "folder.png", IMAGES, ERRORS, NAMES)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["folder.png", "s.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[:, 0]}, r"images must have shape \(n, 1 or 3, h, w\), got \(4, 8, 8\)"),
        ({"images": np.zeros((4, 2, 8, 8))}, "images must have shape"),
        ({"images": IMAGES[:0], "errors": ERRORS[:0]}, "images must have shape"),
        ({"images": IMAGES * 1.0}, r"float in \[0, 1\]"),
        ({"images": np.full((4, 1, 8, 8), np.nan)}, r"float in \[0, 1\]"),
        ({"images": IMAGES.astype(int)}, r"float in \[0, 1\], got int64"),
        ({"errors": ERRORS[:3]}, r"errors must be numbers of shape \(4, 3\) \(images, classes\), got \(3, 3\)"),
        ({"errors": ERRORS.astype(str)}, "errors must be numbers"),
        ({"errors": np.full((4, 3), np.nan)}, "at least one evaluated class"),
        ({"class_names": NAMES[:2]}, r"errors must be numbers of shape \(4, 2\)"),
        ({"class_names": (), "errors": np.zeros((4, 0))}, "errors must be numbers of shape"),
        ({"labels": [0, 1, 2]}, r"labels must be integers of shape \(4,\), got int64 of shape \(3,\)"),
        ({"labels": [0.0, 1.0, 2.0, 0.0]}, "labels must be integers"),
        ({"labels": [0, 1, 2, 3]}, r"labels must be in -1\.\.2, found 0 to 3"),
        ({"true_labels": [0, 1, 2, -1]}, r"true_labels must be in 0\.\.2, found -1 to 2"),
        ({"max_images": 0}, "max_images must be a whole number from 1 to 400"),
        ({"max_images": MAX_IMAGES + 1}, "max_images must be a whole number from 1 to 400"),
    ],
)
def test_bad_arguments(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"images": IMAGES, "errors": ERRORS, "class_names": NAMES} | change
    with pytest.raises(InputError, match=message) as caught:
        error_sheet(tmp_path / "s.png", **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_wing_loads_no_matplotlib() -> None:
    code = "import sys, fastdc.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
