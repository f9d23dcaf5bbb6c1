"""A picture in its own size: the pixels that Pillow stores, upright and over white."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import fastdc
from fastdc.data import load_pictures, read_picture


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


def test_labelled_pictures_keep_their_sizes(tmp_path: Path, rng: np.random.Generator) -> None:
    sizes = {"train/cat/a.png": (5, 7, 3), "train/cat/b.png": (9, 4), "train/dog/c.png": (6, 6, 3)}
    sizes |= {"val/cat/d.png": (3, 3)}
    levels = {name: rng.integers(0, 256, size, dtype=np.uint8) for name, size in sizes.items()}
    for name, one in levels.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(tmp_path / name)
    found = load_pictures(tmp_path, natural="train")
    assert (found.class_names, found.labels.tolist(), len(found)) == (("cat", "dog"), [0, 0, 1], 3)
    assert [one.shape for one in found.pictures] == [(3, 5, 7), (3, 9, 4), (3, 6, 6)]
    np.testing.assert_array_equal(found.pictures[0], levels["train/cat/a.png"].transpose(2, 0, 1))
    np.testing.assert_array_equal(found.pictures[1], np.stack([levels["train/cat/b.png"]] * 3))
    assert found.ids[2].endswith("train/dog/c.png")
    (tmp_path / "train/cat/b.png").write_bytes(b"no picture")
    with pytest.raises(fastdc.InputError, match=r"1 of 3 images cannot be used: .*b\.png"):
        load_pictures(tmp_path, natural="train")
    left = load_pictures(tmp_path, natural="train", skip_bad=True)
    assert ([one.shape for one in left.pictures], left.labels.tolist()) == ([(3, 5, 7), (3, 6, 6)], [0, 1])


def test_labelled_arrays_become_pictures(tmp_path: Path, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (3, 5, 7), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=grey[:, None], labels=[1, 0, 1])
    found = load_pictures(tmp_path / "a.npz")
    assert (found.class_names, found.labels.tolist()) == (("0", "1"), [1, 0, 1])
    np.testing.assert_array_equal(np.stack(found.pictures), np.repeat(grey[:, None], 3, axis=1))
    np.savez(tmp_path / "b.npz", images=grey[:, None])
    with pytest.raises(fastdc.InputError, match="has no array named 'labels'"):
        load_pictures(tmp_path / "b.npz")
