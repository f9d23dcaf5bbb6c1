"""The budget of an input: sizes are compared with it before anything is decoded, and memory stays near its size."""

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.data import DEFAULT_MAX_PIXELS, load_images, load_labelled, prepare
from fastdc.data.budget import Budget
from fastdc.support import InputError

SHAPE = (1, 8, 8)


def picture(path: Path, side: int = 40) -> Path:
    Image.new("L", (side, side), 9).save(path)
    return path


def test_one_image_is_bounded_in_every_kind_of_source(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 40, 40), np.uint8))
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((2, 40, 40), np.uint8), labels=[0, 1])
    for path in (picture(tmp_path / "a.png"), picture(tmp_path / "a.gif"), tmp_path / "a.npy", tmp_path / "a.npz"):
        assert len(load_images([path], SHAPE, max_pixels=1600)) >= 1
        with pytest.raises(
            InputError, match=r"a\.\w+.*40x40 = 1,600 pixels, the limit of one image is 1,599: raise --max-p"
        ):
            load_images([path], SHAPE, max_pixels=1599)
    with pytest.raises(InputError, match="the limit of one image is 1,599"):
        load_labelled(tmp_path / "a.npz", max_pixels=1599)
    for wrong in (0, 1.5, "many"):
        with pytest.raises(InputError, match="max_pixels must be a whole number"):
            load_images([tmp_path / "a.png"], SHAPE, max_pixels=wrong)  # type: ignore[arg-type]


def test_many_images_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of pictures that are each allowed, and an array that declares more than was meant."""
    monkeypatch.setattr("fastdc.data.budget._ALL", 256)  # a quick test
    said = "the images up to here have 1,259,300 pixels, the limit is 256 x 4,900"
    with pytest.raises(InputError, match=rf"a\.png: {said}"):
        load_images([picture(tmp_path / "a.png", 70)] * 300, SHAPE, max_pixels=4900)
    np.savez_compressed(tmp_path / "many.npz", images=np.zeros((257, 70, 70), np.uint8))
    with pytest.raises(InputError, match=f"images: {said}"):
        load_images([tmp_path / "many.npz"], SHAPE, max_pixels=4900)


def test_a_photo_collection_is_allowed() -> None:
    budget = Budget()
    budget.take(4000, 3000, "photos", count=22_000)
    with pytest.raises(InputError, match="the limit is 4096 x 67,108,864"):
        budget.take(4000, 3000, "photos", count=1_000)


def test_images_in_memory_are_bounded(tmp_path: Path) -> None:
    """Dots that become large images, and so many that their names alone would fill the memory."""
    np.save(tmp_path / "dots.npy", np.zeros((10, 1, 1, 1), np.uint8))
    with pytest.raises(InputError, match=r"10 images of 1x2048x2048 would take 40 MiB, the limit is 39\.06 MiB"):
        load_images([tmp_path / "dots.npy"], (1, 2048, 2048), max_pixels=40_000)
    with pytest.raises(InputError, match=r"66 images of 1x64x64 would take 0\.2578 MiB, the limit is 0\.2563 MiB"):
        prepare([np.zeros((64, 64), np.uint8)] * 100, (1, 64, 64), max_pixels=4200)
    np.savez_compressed(tmp_path / "n.npz", images=np.zeros((2**23, 1, 1, 1), np.uint8))
    with pytest.raises(InputError, match="8388608 images of 1x1x1 would take 8 GiB, the limit is 4 GiB"):
        load_images([tmp_path / "n.npz"], SHAPE)
    assert DEFAULT_MAX_PIXELS == 2**26


def test_a_million_small_images_are_allowed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "n.npz", images=np.zeros((2**20, 2, 2), np.uint8))
    assert load_images([tmp_path / "n.npz"], (1, 2, 2)).images.shape == (2**20, 1, 2, 2)


def npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text


def test_absurd_declarations_are_refused(tmp_path: Path) -> None:
    def write(name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
        with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
            archive.writestr(f"{name}.npy", content)
        return tmp_path / "a.npz"

    for content, message in (
        (npy(" " * 20_000), "has a header of 20000 bytes, the limit is 10000"),
        (npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**20}, 1, 1)}}"), "must be a plain array"),
        (npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': (1{'0' * 5000}, 1, 1)}}"), "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            load_images([write("images", content)], SHAPE)
    plain = io.BytesIO()
    np.save(plain, np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(InputError, match="must be stored or deflated"):
        load_images([write("images", plain.getvalue(), zipfile.ZIP_BZIP2)], SHAPE)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8), ids=np.zeros(2, "U2000"))
    with pytest.raises(InputError, match="ids: must have at most 1024 characters each"):
        load_images([tmp_path / "a.npz"], SHAPE)


def test_a_large_jpeg_is_decoded_at_half_its_size(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.arange(0, 128, 2, dtype=np.uint8), (64, 1))).save(tmp_path / "a.jpg", quality=95)
    full = load_images([tmp_path / "a.jpg"], SHAPE)
    half = load_images([tmp_path / "a.jpg"], SHAPE, max_pixels=2048)
    assert np.abs(full.images.astype(int) - half.images).max() <= 3
    assert half.notes[0] == "1 image of more than 2,048 pixels decoded at half the size"
    Image.new("L", (64, 64)).save(tmp_path / "p.jpg", progressive=True)  # is held as a whole while it is decoded
    for path, limit in (("p.jpg", 2048), ("a.jpg", 1000)):
        with pytest.raises(InputError, match="has 64x64 = 4,096 pixels"):
            load_images([tmp_path / path], SHAPE, max_pixels=limit)


def test_a_picture_inside_a_picture_is_bounded(tmp_path: Path) -> None:
    """An icon says that it is 16 x 16, and holds a PNG of 1000 x 1000, which Pillow decodes when it opens the icon."""
    png = io.BytesIO()
    Image.new("L", (1000, 1000)).save(png, "PNG")
    head = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 8, len(png.getvalue()), 22)
    (tmp_path / "a.ico").write_bytes(head + png.getvalue())
    assert len(load_images([tmp_path / "a.ico"], SHAPE, max_pixels=10**6)) == 1
    with pytest.raises(InputError, match=r"a\.ico: cannot be read as an image: Image size \(1000000 pixels\) exceeds"):
        load_images([tmp_path / "a.ico"], SHAPE, max_pixels=10**6 - 1)


def test_memory_stays_near_the_picture(tmp_path: Path) -> None:
    """A transparent picture of 16 million pixels in 65 kB: 64 MB decoded, and twice that with the converted one."""
    Image.new("RGBA", (4096, 4096), (9, 9, 9, 99)).save(tmp_path / "a.png")
    code = (
        "import sys, PIL.Image, numpy; from fastdc.data import load_images\n"
        "def peak(): return int(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))\n"
        "load_images([sys.argv[1]], (3, 64, 64)); before = peak()\n"
        "load_images([sys.argv[2]], (3, 64, 64)); print(peak() - before)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")
    small = picture(tmp_path / "b.png", 64)
    run = subprocess.run(
        [sys.executable, "-c", code, small, tmp_path / "a.png"], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) * 1024 < 12 * 4096**2
