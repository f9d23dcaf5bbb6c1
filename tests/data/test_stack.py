"""Where converted images go: into memory, or if they are large into a temporary file that leaves nothing behind."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.data import load_images, load_labelled, stack
from fastdc.support import InputError

SHAPE = (1, 8, 8)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    for k, name in enumerate(("a", "b")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
            image.save(tmp_path / "set" / name / f"{k}{i}.png")
    return tmp_path / "set"


def test_large_inputs_are_the_same_from_a_temporary_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if floats come late, which makes a second file, and if images are left out."""
    Image.fromarray(np.full((8, 8), 0.25, np.float32)).save(folder / "b/late.tiff")
    (folder / "a/bad.png").write_bytes(b"no picture")
    want, labelled = load_images([folder], SHAPE, skip_bad=True), load_labelled(folder, skip_bad=True)
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(stack, "IN_MEMORY", 100)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    got = load_images([folder], SHAPE, skip_bad=True)
    assert type(got.images) is np.ndarray
    np.testing.assert_array_equal(got.images, want.images)
    assert got.images.dtype == np.float32
    assert (got.ids, got.left_out) == (want.ids, want.left_out)
    assert f"converted images kept in a temporary file, 6e-07 GiB in {place}" in got.notes
    got.images[0] = 0  # as an array in memory
    np.testing.assert_array_equal(load_labelled(folder, skip_bad=True).images, labelled.images)
    assert os.listdir(place) == []


def test_a_full_disk_is_said_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stack, "IN_MEMORY", 100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"images take .* GiB, and no temporary file .*: set TMPDIR to a folder with"):
        load_images([folder], SHAPE)
