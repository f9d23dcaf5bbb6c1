"""Values of more than 8 bits: they keep their precision, no picture is silently dark, and a window maps any range."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastdc.data import check_window, load_images, load_labelled, prepare
from fastdc.data.levels import Levels
from fastdc.support import InputError, UsualWindow
from helpers.pictures import write_png

RNG = np.random.default_rng(5)
SIDE = (6, 8)


def write_tiff(path: Path, values: NDArray[np.generic], photometric: int, order: str = "<") -> Path:
    """An uncompressed TIFF from (h, w, c) of any type; photometric 0: white is 0, 1: black is 0, 2: RGB."""
    h, w, c = values.shape
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    many = struct.pack(f"{order}{c}H", *[8 * values.dtype.itemsize] * c) + struct.pack(f"{order}{c}H", *[form] * c)
    at = 8 + 2 + 12 * 10 + 4
    tags = [(256, 3, 1, w), (257, 3, 1, h), (258, 3, c, at), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [(273, 4, 1, at + 4 * c), (277, 3, 1, c), (278, 3, 1, h), (279, 4, 1, len(data)), (339, 3, c, at + 2 * c)]
    entries = b""
    for tag, kind, count, value in tags:
        if tag in (258, 339) and c == 1:
            value = 8 * values.dtype.itemsize if tag == 258 else form  # noqa: PLW2901
        short = kind == 3 and count == 1
        entries += struct.pack(f"{order}HHI", tag, kind, count)
        entries += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(magic + struct.pack(f"{order}IH", 8, 10) + entries + bytes(4) + many + data)
    return path


def one(path: Path, channels: int = 1, **options: object) -> tuple[NDArray[Any], tuple[str, ...]]:
    with Image.open(path) as image:
        size = image.size
    read = load_images([path], (channels, size[1], size[0]), **options)  # type: ignore[arg-type]
    assert read.images.dtype == np.float32
    return read.images[0], read.notes


def wide(channels: int) -> NDArray[np.uint16]:
    values = RNG.integers(0, 65536, (*SIDE, channels)).astype(np.uint16)
    values[0, 0] = 65535
    return values


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_colour_keeps_its_precision(tmp_path: Path, suffix: str, order: str) -> None:
    """Pillow keeps 8 of the 16 bits."""
    values, path = wide(3), tmp_path / f"a.{suffix}"
    (write_png(path, values, 2) if suffix == "png" else write_tiff(path, values, 2, order))
    got, notes = one(path, 3)
    np.testing.assert_array_equal(got, (values.transpose(2, 0, 1) / 65535).astype(np.float32))
    assert notes[0].startswith("1 image of 16 bits read with 65535 as white, values ")
    grey, _ = one(path, 1)
    np.testing.assert_allclose(grey[0], values @ np.array([0.299, 0.587, 0.114]) / 65535, atol=2e-5)


@pytest.mark.parametrize("kind", [4, 6])
def test_16_bit_transparency_is_laid_over_white(tmp_path: Path, kind: int) -> None:
    values = wide(2 if kind == 4 else 4)
    colour, alpha = values[..., :-1] / 65535, values[..., -1:] / 65535
    got, notes = one(write_png(tmp_path / "a.png", values, kind), 1 if kind == 4 else 3)
    np.testing.assert_allclose(got, (colour * alpha + 1 - alpha).transpose(2, 0, 1), atol=1e-6)
    assert notes[0] == "1 image laid over white where transparent"
    values[..., -1] = 65535
    assert "transparent" not in " ".join(one(write_png(tmp_path / "a.png", values, kind), 3)[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_is_laid_over_white(tmp_path: Path, channels: int) -> None:
    values = wide(channels)
    values[1, :3] = values[2, 4]
    values[3, :2] = values[2, 4]
    values[3, 0, 0] ^= 1  # another colour, though its higher bytes are the same
    values[3, 1, -1] ^= 1
    key, kind = values[2, 4].copy(), 0 if channels == 1 else 2
    got, notes = one(write_png(tmp_path / "a.png", values, kind, key), channels)
    clear = (values == key).all(axis=-1)
    assert clear.sum() == 4
    expected = np.where(clear[..., None], 1, values / 65535).astype(np.float32)
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), atol=1e-7)
    assert notes[0] == "1 image laid over white where transparent"
    values[clear] = values[0, 0]
    assert "transparent" not in " ".join(one(write_png(tmp_path / "a.png", values, kind, key), channels)[1])


@pytest.mark.parametrize("bits", [9, 10, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_fewer_bits_in_16_are_not_read_as_black(tmp_path: Path, bits: int, channels: int) -> None:
    """A camera's 12 bits, stored in 16, would be a twentieth as bright."""
    top = 2**bits - 1
    values = RNG.integers(0, top + 1, (*SIDE, channels)).astype(np.uint16)
    values[0, 0] = top
    path = write_png(tmp_path / "xray.png", values, 0 if channels == 1 else 2)
    message = rf"xray\.png: the 16-bit values of this input are \d+ to {top} of 65535.* --window 0 {top} \(window="
    for load in (lambda: one(path), lambda: load_labelled(write_set(tmp_path, path), (1, 8, 8))):
        with pytest.raises(InputError, match=message):
            load()
    got, notes = one(path, channels, window=(0, top))
    np.testing.assert_allclose(got, values.transpose(2, 0, 1) / top, rtol=1e-6)
    assert notes == (f"1 image read through the window 0 to {top}, values {values.min()} to {top}",)
    assert one(path, channels, window=(0, 65535))[0].max() < 0.07  # dark on request


def write_set(tmp_path: Path, path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name / path.name).write_bytes(path.read_bytes())
    return tmp_path / "set"


def test_the_range_is_that_of_the_whole_input(tmp_path: Path) -> None:
    dark = write_png(tmp_path / "dark.png", np.full((4, 4, 1), 900, np.uint16), 0)
    bright = write_png(tmp_path / "light.png", np.full((4, 4, 1), 60000, np.uint16), 0)
    read = load_images([dark, bright], (1, 4, 4))
    assert read.notes == (
        "2 images of 16 bits read with 65535 as white, values 900 to 60000"
        "; 1 of them stays below 4096: is its white less (--window)?",
    )
    fourteen = write_png(tmp_path / "raw.png", np.full((4, 4, 1), 16000, np.uint16), 0)
    (note,) = one(fourteen)[1]
    assert note.endswith("values 16000 to 16000; dark, unless --window 0 16383 gives their white")
    assert (one(write_png(tmp_path / "black.png", np.zeros((4, 4, 1), np.uint16), 0))[0] == 0).all()


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("i2", -1024, 3071), ("i4", -5, 70000), ("u4", 0, 4_000_000_000), ("f4", -1.5, 2.5), ("i1", -128, 127)],
)
def test_a_window_maps_any_range(tmp_path: Path, dtype: str, low: float, high: float) -> None:
    values = np.linspace(low, high, 48).astype(dtype).reshape(*SIDE, 1)
    path = write_tiff(tmp_path / "ct.tiff", values, 1)
    with pytest.raises(
        InputError, match=r"ct\.tiff: values must be in \[0, \d+\], found .*: give the black and the white"
    ):
        one(path)
    got, _ = one(path, window=(low, high))
    np.testing.assert_allclose(got[0], (values[..., 0] - np.float64(low)) / (high - low), atol=1e-6)
    middle = (low + (high - low) / 4, high - (high - low) / 4)
    narrow, notes = one(path, window=middle)
    np.testing.assert_allclose(
        narrow[0], np.clip((values[..., 0] - middle[0]) / (middle[1] - middle[0]), 0, 1), atol=1e-6
    )
    assert notes[0].endswith(", those outside clipped")


def test_signed_16_bits_are_white_at_32767(tmp_path: Path) -> None:
    values = np.array([0, 16000, 32767], "i2").reshape(1, 3, 1)
    np.testing.assert_allclose(one(write_tiff(tmp_path / "a.tiff", values, 1))[0][0, 0], [0, 16000 / 32767, 1])


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_where_white_is_zero_the_picture_is_turned(tmp_path: Path, dtype: str) -> None:
    """Many X-rays are stored so; Pillow turns those of 8 bits only."""
    values = np.linspace(0, 1, 48).reshape(*SIDE, 1)
    stored = (values * 65535).astype("u2") if dtype == "u2" else values.astype("f4")
    got, _ = one(write_tiff(tmp_path / "a.tiff", stored, 0))
    np.testing.assert_allclose(got[0], 1 - values[..., 0], atol=2e-5)


def test_the_window_of_a_model_is_for_values_without_another_meaning(tmp_path: Path) -> None:
    """As a user's is, but for floats in [0, 1]; it is noted once, and not if there is nothing to read through it."""
    shape = (1, 4, 4)
    usual, values = UsualWindow(0.0, 1000.0), np.arange(0, 1600, 100).reshape(4, 4)
    want = np.clip(values / 1000.0, 0, 1).astype(np.float32)
    said = "read through the model's window 0 to 1000, values 0 to 1500, those outside clipped (--window gives another)"
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tiff")
    np.save(tmp_path / "c.npy", values.astype(np.uint16))
    np.save(tmp_path / "d.npy", values.astype(np.float64))
    loaded = load_images([tmp_path / name for name in ("a.png", "b.tiff", "c.npy", "d.npy")], shape, window=usual)
    np.testing.assert_array_equal(loaded.images[:, 0], [want] * 4)
    assert loaded.notes == (f"4 images {said}",)
    for given in (values.astype(np.uint16), values.astype(np.float32)):
        np.testing.assert_array_equal(prepare(given, shape, window=usual)[0, 0], want)
    unit = (values / 1500).astype(np.float32)
    Image.fromarray(unit).save(tmp_path / "unit.tiff")
    np.save(tmp_path / "unit.npy", unit)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "8.png")
    for name in ("unit.tiff", "unit.npy", "8.png"):
        own = load_images(tmp_path / name, shape)
        through = load_images(tmp_path / name, shape, window=usual)
        np.testing.assert_array_equal(through.images, own.images)
        assert through.notes == own.notes
        assert (load_images(tmp_path / name, shape, window=(0, 1000)).images != own.images).any() == (name != "8.png")
    np.testing.assert_array_equal(prepare(unit, shape, window=usual)[0, 0], unit)
    dim = load_images([tmp_path / "unit.tiff", tmp_path / "unit.npy"], shape, window=UsualWindow(0.0, 0.5))
    np.testing.assert_allclose(dim.images[:, 0], [np.clip(2 * unit, 0, 1)] * 2, atol=1e-7)


def test_what_was_seen_is_not_copied_for_every_picture() -> None:
    """Each DICOM file may have a range of its own: a copy of all for each would take time with their square."""
    levels, values = Levels(), np.arange(4.0)
    state = levels._state
    for k in range(3):
        levels.begin()
        levels.see(values, 0.0, 4.0 + k, f"{k}")
    assert levels._state is state
    seen = dict(state)
    levels.begin()
    levels.see(values + 1, 0.0, 4.0, "known")
    levels.see(values + 2, 0.0, 4.0, "known")
    levels.see(values, 0.0, 9.0, "new")
    levels.unit(values, 65535.0, "new")
    assert len(state) == 5
    levels.forget()
    assert (levels._state, list(levels._state)) == (seen, list(seen))
    levels.forget()
    assert levels._state == seen


def test_a_file_that_states_its_white_is_believed(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5\n3 1\n4095\n" + np.array([0, 100, 4095], ">u2").tobytes())
    np.testing.assert_allclose(one(tmp_path / "a.pgm")[0][0, 0], [0, 100 / 4095, 1], atol=1e-6)
    np.testing.assert_allclose(one(tmp_path / "a.pgm", window=(0, 200))[0][0, 0], [0, 0.5, 1], atol=1e-6)
    (tmp_path / "a.ppm").write_bytes(b"P6\n1 1\n4095\n" + np.array([0, 100, 4095], ">u2").tobytes())
    read = load_images([tmp_path / "a.ppm"], (3, 1, 1))
    assert (read.images.ravel().tolist(), read.notes) == ([0, 6, 255], ("1 image reduced to 8 bits",))
    with pytest.raises(InputError, match=r"a\.ppm: no window can be given for colour in PPM"):
        load_images([tmp_path / "a.ppm"], (3, 1, 1), window=(0, 200))


def test_a_turned_16_bit_picture_is_upright(tmp_path: Path) -> None:
    values = wide(1)[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(values))).save(tmp_path / "a.png", exif=exif)
    read = load_images([tmp_path / "a.png"], (1, *SIDE))
    np.testing.assert_array_equal(read.images[0, 0], (values / 65535).astype(np.float32))
    assert "1 image turned upright by the EXIF orientation" in read.notes


def test_levels_and_deep_pictures_mix(tmp_path: Path) -> None:
    """A picture of 8 bits is the same number whether its neighbour has 16 or not."""
    grey = RNG.integers(0, 256, SIDE, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    write_png(tmp_path / "b.png", (grey.astype(np.uint16) * 257)[..., None], 0)
    read = load_images([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png"], (1, *SIDE))
    for image in read.images:
        np.testing.assert_array_equal(image[0], grey.astype(np.float32) / np.float32(255))
    assert "2 images scaled from 0..255 to [0, 1]" in read.notes


@pytest.mark.parametrize("dtype", ["u2", "i4", "i8", "u8", "f8"])
def test_arrays_of_other_numbers_need_a_window(tmp_path: Path, dtype: str) -> None:
    values = np.linspace(0, 3000, 96).astype(dtype).reshape(2, *SIDE)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", images=values, labels=[0, 1])
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        with pytest.raises(
            InputError, match=r"found 0 to 3000: give .* such as --window 0 4095 \(window=\(0, 4095\)\)"
        ):
            load_images([path], (1, *SIDE))
        read = load_images([path], (1, *SIDE), window=(0, 3000))
        np.testing.assert_allclose(read.images[:, 0], values / 3000, atol=1e-6)
        assert read.notes == ("2 images read through the window 0 to 3000, values 0 to 3000",)
    held = load_labelled(tmp_path / "a.npz", window=(0, 3000))
    np.testing.assert_allclose(held.images[:, 0], values / 3000 * 255, atol=0.51)


def test_a_window_leaves_8_bits_alone(tmp_path: Path) -> None:
    Image.fromarray(np.full(SIDE, 77, np.uint8)).save(tmp_path / "a.png")
    read = load_images([tmp_path / "a.png"], (1, *SIDE), window=(0, 4095))
    assert (read.images == 77).all()
    assert read.notes == ("window 0 to 4095 not used: no image has more than 8 bits",)


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (0,), 4095, "ab", (0, np.nan), (0, np.inf), (None, 1)])
def test_bad_windows(window: object) -> None:
    with pytest.raises(InputError, match="window must"):
        check_window(window)


def test_kinds_that_would_lose_bits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sgi").write_bytes(
        struct.pack(">HBBHHHHll", 474, 0, 2, 2, 2, 2, 1, 0, 65535).ljust(512, b"\0") + bytes(8)
    )
    with pytest.raises(InputError, match=r"a\.sgi: SGI of 16 bits is not read"):
        load_images([tmp_path / "a.sgi"], (1, 2, 2))
    write_tiff(tmp_path / "a.tiff", wide(4), 5)
    with pytest.raises(InputError, match=r"a\.tiff: CMYK;16. is not read"):
        load_images([tmp_path / "a.tiff"], (3, *SIDE))


def test_colour_profiles_and_gammas_are_noted(tmp_path: Path) -> None:
    from PIL import ImageCms

    image = Image.fromarray(np.full((*SIDE, 3), 77, np.uint8))
    image.save(tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert load_images([tmp_path / "srgb.png"], (3, *SIDE)).notes == ()
    image.save(tmp_path / "lab.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes())
    assert load_images([tmp_path / "lab.png"], (3, *SIDE)).notes == (
        "1 image read as sRGB, without their colour profile",
    )


def test_dark_pictures_among_bright_ones_are_counted(tmp_path: Path) -> None:
    for name, most in (("a", 65535), ("b", 4000), ("c", 900)):
        Image.fromarray(np.linspace(0, most, 64).reshape(8, 8).astype(np.uint16)).save(tmp_path / f"{name}.png")
    read = load_images([tmp_path], (1, 8, 8))
    assert read.notes[0].endswith("values 0 to 65535; 2 of them stay below 4096: is their white less (--window)?")


def test_a_window_of_many_levels_is_refused_in_one_line() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InputError, match=r"^window must be two numbers, black and white, got \[\[.*\.\.\.[\]]*$"):
        check_window(deep)
