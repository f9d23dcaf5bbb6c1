"""Image files, folders and labelled sets: every mode, every conversion and its note, and the ways a file can be bad.

Arrays (.npy, .npz) are in test_arrays.py.
"""

import inspect
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, __version__, features

from fastdc.data import load_images, load_labelled
from fastdc.data.image_files import FORMATS
from fastdc.support.exceptions import InputError

GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def save(path: Path, array: NDArray[np.generic], exif: Image.Exif | None = None) -> Path:
    Image.fromarray(array).save(path, exif=exif or b"")
    return path


def one(path: Path, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    loaded = load_images([path], shape)
    assert loaded.images.shape == (1, *shape)
    return loaded.images[0], loaded.notes


def test_exact_images_are_unchanged_and_silent(tmp_path: Path) -> None:
    image, notes = one(save(tmp_path / "a.png", GREY))
    np.testing.assert_array_equal(image[0], GREY)
    assert notes == ()
    image, notes = one(save(tmp_path / "b.png", RGB), (3, 8, 8))
    np.testing.assert_array_equal(image, RGB.transpose(2, 0, 1))
    assert notes == ()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_keeps_its_grey_values(tmp_path: Path, mode: str, channels: int) -> None:
    """A grey picture, stored in any mode and opaque, comes back as itself; only JPEG's colours may lose 2."""
    if mode == "YCbCr" and int(__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 does not read the TIFF files of this mode that it writes")
    path = tmp_path / "image.tiff"
    want = np.where(GREY > 127, 255, 0).astype(np.uint8) if mode == "1" else GREY
    if mode.startswith("I"):
        dtype = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
        image = Image.fromarray((GREY.astype(dtype) * 257).astype(dtype))
    elif mode == "F":
        image = Image.fromarray(GREY.astype(np.float32) / 255)
    else:
        source = Image.fromarray(want)
        image = (source.convert("RGB") if mode in {"CMYK", "YCbCr"} else source).convert(mode)
    assert image.mode == mode
    image.save(path)
    got, notes = one(path, (channels, 8, 8))
    deep = mode == "F" or mode.startswith("I")
    assert got.dtype == (np.float32 if deep else np.uint8)
    levels = want.astype(np.float32) / np.float32(255) if deep else want.astype(int)  # as of an 8-bit picture
    for channel in got:
        np.testing.assert_allclose(channel.astype(levels.dtype), levels, atol=2 if mode == "YCbCr" else 0)
    texts = {"CMYK": "converted from CMYK to RGB", "F": "of float values read with 1", "P": "converted from palette"}
    texts |= dict.fromkeys(("I", "I;16", "I;16B"), "of 16 bits read with 65535 as white, values ")
    assert mode not in texts or any(texts[mode] in note for note in notes)
    grey = mode in {"1", "L", "LA", "F"} or mode.startswith("I")
    if grey == (channels == 3):
        assert "1 image repeated from grey to RGB" in notes or "1 image converted from RGB to grey" in notes


def test_png_of_16_bits_uses_the_whole_range(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 257 * 3], [65535, 256 * 200, 40000]], dtype=np.uint16)
    image, notes = one(save(tmp_path / "deep.png", levels), (1, 2, 3))
    np.testing.assert_array_equal(image[0], (levels / 65535).astype(np.float32))
    assert notes == ("1 image of 16 bits read with 65535 as white, values 0 to 65535",)


@pytest.mark.parametrize(
    ("value", "dtype"), [(-1, np.int32), (65536, np.int32), (np.nan, np.float32), (1.5, np.float32)]
)
def test_wide_values_without_a_meaning(tmp_path: Path, value: float, dtype: type) -> None:
    with pytest.raises(InputError, match=r"wide\.tiff: values must be (in \[0, 65535\]|in \[0, 1\]|finite), found"):
        load_images([save(tmp_path / "wide.tiff", np.full((4, 4), value, dtype=dtype))], (1, 4, 4))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str, channels: int) -> None:
    alpha = np.array([[0, 255], [128, 255]], dtype=np.uint8)
    grey = np.array([[10, 10], [0, 200]], dtype=np.uint8)
    path = tmp_path / "clear.png"
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8), "P")
        image.putpalette(np.repeat(grey.reshape(-1), 3).tobytes())
        image.save(path, transparency=alpha.tobytes())
    else:
        save(path, np.dstack([grey] * (len(mode) - 1) + [alpha]))
    got, notes = one(path, (channels, 2, 2))
    for channel in got:
        np.testing.assert_allclose(channel.astype(int), [[255, 10], [127, 200]], atol=1)
    assert "1 image laid over white where transparent" in notes


def test_rgb_to_grey_is_pillows_luma(tmp_path: Path) -> None:
    image, notes = one(save(tmp_path / "a.png", RGB))
    np.testing.assert_array_equal(image[0], np.asarray(Image.fromarray(RGB).convert("L")))
    assert notes == ("1 image converted from RGB to grey",)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (20, 31), (31, 20), (5, 7), (3, 3), (8, 13), (1, 200), (640, 480)])
@pytest.mark.parametrize("target", [(8, 8), (6, 10)])
def test_resize_covers_then_crops(
    tmp_path: Path, rng: np.random.Generator, size: tuple[int, int], target: tuple[int, int]
) -> None:
    """Equal to resizing the whole image and cropping, on white noise, where every rounding shows.

    The strips are resized by their windows alone: one row high, they have one pass that rounds anything away.
    """
    (height, width), (h, w) = size, target
    array = rng.integers(0, 256, size, dtype=np.uint8)
    got, notes = one(save(tmp_path / "a.png", array), (1, h, w))
    scale = max(h / height, w / width)
    rows, columns = max(h, int(height * scale + 1e-9)), max(w, int(width * scale + 1e-9))
    whole = np.asarray(Image.fromarray(array).resize((columns, rows), Image.Resampling.BICUBIC))
    top, left = round((rows - h) / 2), round((columns - w) / 2)
    want = whole[top : top + h, left : left + w]
    np.testing.assert_array_equal(got[0], want)
    verbs = ["resized"] * ((rows, columns) != size) + ["centre-cropped"] * ((rows, columns) != target)
    done = f"1 image {' and '.join(verbs)} to {w}x{h} from {width}x{height}"
    lost = "1 image shrunk by more than a factor of 4 per side: small details are lost"
    assert notes == (done,) * (size != target) + (lost,) * (scale < 1 / 4)


def test_a_very_long_strip_is_no_bomb(tmp_path: Path) -> None:
    """Resizing 100,000 x 1 to cover 256 x 256 would take 25.6 million columns; only the crop is computed."""
    image, _ = one(save(tmp_path / "strip.png", np.full((1, 100_000), 7, dtype=np.uint8)), (1, 256, 256))
    assert (image == 7).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.T,
        6: np.rot90(array, 1),
        7: array[::-1, ::-1].T,
        8: np.rot90(array, -1),
    }[orientation]
    image, notes = one(save(tmp_path / "turned.png", np.ascontiguousarray(stored), exif=exif), (1, 2, 3))
    np.testing.assert_array_equal(image[0], array)
    assert notes == (("1 image turned upright by the EXIF orientation",) if orientation > 1 else ())


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    frames = [Image.fromarray(np.full((8, 8), level, dtype=np.uint8)) for level in (50, 100, 150)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    image, notes = one(path)
    assert (image == 50).all()
    assert "1 image read as its first frame" in notes


def test_jpeg(tmp_path: Path) -> None:
    image, _ = one(save(tmp_path / "a.jpg", np.full((16, 16, 3), 90, dtype=np.uint8)), (3, 8, 8))
    assert np.abs(image.astype(int) - 90).max() <= 2


def test_folder_order_ids_and_skips(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a.png", "c/d/e.png", ".hidden.png", ".git/x.png", "b/._2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name, GREY)
    for name in ("notes.txt", "b/labels.csv", "model.onnx", "x.py", "b/two\nlines"):
        (tmp_path / name).write_text("text")
    loaded = load_images([tmp_path], (1, 8, 8))
    assert loaded.ids == tuple(f"{tmp_path}/{name}" for name in ("a.png", "b/10.PNG", "b/2.png", "c/d/e.png"))
    assert len(loaded) == 4
    assert loaded.labels is None
    (note,) = loaded.notes
    assert note.startswith("5 files skipped, not an image (")
    assert note.endswith(" and 2 more)")
    assert "\n" not in note


def test_links_are_followed_once(tmp_path: Path) -> None:
    """Data sets link their folders; a circular link, or a second name of a folder, adds nothing."""
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    save(tmp_path / "set" / "a" / "1.png", GREY)
    save(tmp_path / "far" / "2.png", GREY)
    (tmp_path / "set" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "a" / "circle").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "3.png").symlink_to(tmp_path / "far" / "2.png")
    loaded = load_images([tmp_path / "set"], (1, 8, 8))
    assert [Path(name).name for name in loaded.ids] == ["3.png", "1.png", "2.png"]
    assert loaded.notes == (f"1 folder skipped, read under another name ({tmp_path}/set/a/circle)",)
    assert load_labelled(tmp_path / "set").class_names == ("a", "b")
    (tmp_path / "set" / "4.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "set" / "5.png")
    with pytest.raises(InputError, match=r"4\.png: is a link that leads nowhere; .*5\.png: is not a file"):
        load_images([tmp_path / "set"], (1, 8, 8))
    (tmp_path / "set" / "4.png").unlink()
    with pytest.raises(InputError, match=r"5\.png: is not a file"):  # reading it would wait for ever
        load_images([tmp_path / "set"], (1, 8, 8))


def test_a_part_longer_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    """A JPEG 2000 announces a header of 4 GB, for which Python would make room before it reads."""
    if not features.check("jpg_2000") or not Path("/proc/self/statm").exists():
        pytest.skip("no JPEG 2000, or memory cannot be limited to a little more than is used")
    code = (
        "import resource, sys; from fastdc.data import load_images; import PIL.Image; PIL.Image.init()\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))\n"
        "try: load_images([sys.argv[1]], (1, 8, 8))\nexcept ValueError as error: print(error)"
    )
    path = save(tmp_path / "a.jp2", RGB)
    data = bytearray(path.read_bytes())
    at = data.index(b"jp2h")
    data[at - 4 : at] = struct.pack(">I", 2**32 - 99)
    path.write_bytes(data)
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "a.jp2: cannot be read as an image: Expected to read 4294967189 bytes" in run.stdout


def test_ids_are_the_paths_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", GREY)
    monkeypatch.chdir(tmp_path)
    assert load_images(["a.png", tmp_path / "a.png"], (1, 8, 8)).ids == ("a.png", f"{tmp_path}/a.png")
    assert load_images("a.png", (1, 8, 8)).ids == ("a.png",)  # a single path will do
    assert load_images(["."], (1, 8, 8)).ids == ("a.png",)


def test_notes_are_counted_once_per_kind_and_reported(tmp_path: Path) -> None:
    for i, side in enumerate((16, 16, 12, 20, 24)):
        save(tmp_path / f"{i}.png", np.zeros((side, side, 3), dtype=np.uint8))
    heard: list[str] = []
    loaded = load_images([tmp_path], (1, 8, 8), on_note=heard.append)
    assert loaded.notes == (
        "5 images converted from RGB to grey",
        "5 images resized to 8x8 from 16x16, 12x12, 20x20 and 1 more",
    )
    assert tuple(heard) == loaded.notes


def png_header(width: int, height: int) -> bytes:
    """A PNG that only declares its size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def whole_png(tmp_path: Path) -> bytes:
    return save(
        tmp_path / "whole.png", np.random.default_rng(2).integers(0, 256, (64, 64), dtype=np.uint8)
    ).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"this is text\n", "is not an image in a format that fastdc reads"),
        ("empty.png", b"", "is not an image in a format that fastdc reads"),
        ("random.jpg", bytes(range(256)), "is not an image in a format that fastdc reads"),
        ("jpeg.jpg", b"\xff\xd8\xff\xe0" + bytes(40), "cannot be read as an image|is not an image"),
        (
            "bomb.png",
            png_header(100_000, 100_000),
            "has 100000x100000 = 10,000,000,000 pixels, the limit of one image is 67,108,864",
        ),
        (
            "warned.png",
            png_header(12_000, 12_000),
            "has 12000x12000 = 144,000,000 pixels, the limit",
        ),  # Pillow only warns about this one
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "is not an image"),
        ("no_suffix", b"GIF89a", "cannot be read as an image|is not an image"),
        ("name\nof two lines.png", b"text", r"name\?of two lines\.png: is not an image"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_images([tmp_path / name], (1, 8, 8))
    assert "\n" not in str(caught.value)
    assert name[:4] in str(caught.value)


def iptc_field(tag: tuple[int, int], data: bytes) -> bytes:
    return bytes([0x1C, *tag]) + struct.pack(">H", len(data)) + data


@pytest.mark.parametrize("name", ["photo.png", "photo.iim", "photo"])
def test_no_picture_starts_a_program(tmp_path: Path, name: str) -> None:
    """An IPTC file holds PostScript, which Pillow hands to Ghostscript: here to one that only leaves a trace."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    head = [((3, 60), b"\x01\x00"), ((3, 20), b"\x08"), ((3, 30), b"\x08"), ((3, 120), b"\x05"), ((8, 10), program)]
    (tmp_path / name).write_bytes(b"".join(iptc_field(tag, data) for tag, data in head) + bytes(5))
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    code = (
        "import sys; from fastdc.data import load_images\n"
        "try: load_images([sys.argv[1]], (1, 8, 8))\nexcept ValueError as error: print(error)"
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True, env=env, check=True
    )
    assert "is not an image in a format that fastdc reads (AVIF, BMP, " in run.stdout
    assert not (tmp_path / "ran").exists()


def test_only_listed_formats_are_opened() -> None:
    """Pillow's other readers are not asked, and those that are asked open nothing inside a file by its content."""
    Image.init()
    for name in FORMATS:
        if name in Image.OPEN:
            source = Path(inspect.getfile(Image.OPEN[name][0])).read_text(encoding="utf-8")
            opens = [line for line in source.splitlines() if "Image.open(" in line and ">>>" not in line]
            # JPEG's is in load_djpeg, which nothing calls; WebP's is in a docstring.
            assert len(opens) <= (name in ("JPEG", "WEBP")), (name, opens)
    assert set(FORMATS).isdisjoint({"EPS", "IPTC", "ICNS", "WMF", "SPIDER", "FITS", "MPEG"})


@pytest.mark.parametrize("keep", [20, 60, 1000, 3000])
def test_truncated_png(tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut.png").write_bytes(whole_png(tmp_path)[:keep])
    with pytest.raises(InputError, match=r"cut\.png: (cannot be read as an image|is not an image)"):
        load_images([tmp_path / "cut.png"], (1, 8, 8))


def test_corrupt_png(tmp_path: Path) -> None:
    data = bytearray(whole_png(tmp_path))
    data[2000:2100] = bytes(100)
    (tmp_path / "corrupt.png").write_bytes(data)
    with pytest.raises(InputError, match=r"corrupt\.png: cannot be read as an image"):
        load_images([tmp_path / "corrupt.png"], (1, 8, 8))


def test_one_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", GREY)
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(InputError, match=r"b\.png: is not an image"):
        load_images([tmp_path], (1, 8, 8))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "no images were given"),
        (["nowhere.png"], r"nowhere\.png: does not exist"),
        (["empty"], "empty: there are no images in this folder"),
        ([""], "a source must be a path"),
        ([3], "a source must be a path"),
        (["a\0b"], r"a\?b: (does not exist|embedded null)"),
        (7, "sources must be a list of paths, got int"),
        (np.zeros((1, 8, 8)), "sources must be a list of paths, got ndarray"),
        (["/dev/null"], "is neither a file nor a folder"),
        (["nowhere.npy"], r"nowhere\.npy: does not exist"),
    ],
)
def test_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: object, message: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_images(sources, (1, 8, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 8), (1, 0, 8), (1, 8.5, 8), "abc", None, (1, 10**6, 10**6), (2, 8, 8)])
def test_bad_shapes(tmp_path: Path, shape: object) -> None:
    save(tmp_path / "a.png", GREY)
    with pytest.raises(InputError, match=r"shape must|GiB|2 are wanted"):
        load_images([tmp_path / "a.png"], shape)  # type: ignore[arg-type]


def class_folder(root: Path, sides: dict[str, tuple[int, ...]]) -> Path:
    for name, shape in sides.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        save(root / name, np.full(shape, 10 * len(name), dtype=np.uint8))
    return root


def test_labelled_folder(tmp_path: Path) -> None:
    root = class_folder(
        tmp_path, {"cat/1.png": (8, 8), "ant/x/2.png": (8, 8), "ant/1.png": (8, 8), ".no/1.png": (9, 9)}
    )
    (root / "README").write_text("text")
    data = load_labelled(root)
    assert data.class_names == ("ant", "cat")
    assert data.ids == tuple(f"{root}/{name}" for name in ("ant/1.png", "ant/x/2.png", "cat/1.png"))
    np.testing.assert_array_equal(data.labels, [0, 0, 1])
    np.testing.assert_array_equal(data.images[:, 0, 0, 0], [90, 110, 90])
    assert data.images.shape == (3, 1, 8, 8)
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64
    assert data.notes == ("1 file skipped, not in a class folder (README)",)


def test_labelled_folder_that_disagrees(tmp_path: Path) -> None:
    root = class_folder(tmp_path, {"a/1.png": (8, 8), "b/2.png": (8, 10), "b/3.png": (9, 9)})
    with pytest.raises(InputError, match=r"b/2\.png is 10x8 and .*a/1\.png is 8x8: give size=8 to resize"):
        load_labelled(root)
    assert load_labelled(root, size=4).images.shape == (3, 1, 4, 4)
    assert load_labelled(root, (3, 5, 6)).images.shape == (3, 3, 5, 6)
    class_folder(root, {"b/1.png": (8, 8, 3)})
    for size in (None, 8):
        with pytest.raises(InputError, match=r"b/1\.png is RGB and .*a/1\.png is grey: give shape="):
            load_labelled(root, size=size)
    assert load_labelled(root, (1, 8, 8)).images.shape == (4, 1, 8, 8)


def test_bad_labelled_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no sub-folders"):
        load_labelled(tmp_path)
    root = class_folder(tmp_path / "set", {"a/1.png": (8, 8)})
    (root / "b").mkdir()
    with pytest.raises(InputError, match="b: there are no images in this folder"):
        load_labelled(root)
    with pytest.raises(InputError, match="labelled images are a folder with one sub-folder per class"):
        load_labelled(root / "a/1.png")
    with pytest.raises(InputError, match="does not exist"):
        load_labelled(tmp_path / "none")
    with pytest.raises(InputError, match="either shape or size"):
        load_labelled(root, (1, 8, 8), size=8)
    for size in (0, -3, 8.5):
        with pytest.raises(InputError, match="size must be a whole number of at least 1"):
            load_labelled(root, size=size)  # type: ignore[arg-type]
