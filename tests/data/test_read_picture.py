"""A picture in its own size: the pixels that Pillow stores, upright and over white."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import fastdc
from fastdc.data import read_picture


def test_a_picture_keeps_its_size_and_pixels(tmp_path: Path, rng: np.random.Generator) -> None:
    levels = rng.integers(0, 256, (7, 11, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), levels.transpose(2, 0, 1))
    Image.fromarray(levels[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "grey.png"), np.stack([levels[..., 0]] * 3))


def test_a_picture_is_upright_and_over_white(tmp_path: Path, rng: np.random.Generator) -> None:
    picture = Image.fromarray(rng.integers(0, 256, (7, 11, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), upright.transpose(2, 0, 1))
    Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "clear.png"), np.full((3, 3, 4), 255))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(fastdc.InputError, match=r"text\.png: is no"):
        read_picture(tmp_path / "text.png")
    with pytest.raises(fastdc.InputError, match="does not exist"):
        read_picture(tmp_path / "nothing.png")
    Image.new("L", (40, 30)).save(tmp_path / "large.png")
    with pytest.raises(fastdc.InputError, match="pixels"):
        read_picture(tmp_path / "large.png", max_pixels=1000)
