"""Arrays as image sources: layouts round trip, headers are checked before data is read, nothing is unpickled."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fastdc.data import load_images, load_labelled
from fastdc.data.arrays import MAX_CLASSES
from fastdc.data.convert import Pixels, fit
from fastdc.data.notes import Notes
from fastdc.support.exceptions import InputError

SHAPE = (1, 8, 8)
STACK = np.random.default_rng(1).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)


def save(path: Path, array: NDArray[np.generic]) -> Path:
    np.save(path, array)
    return path


def header(shape: str, dtype: str = "|u1", version: int = 1) -> bytes:
    """The start of a .npy file that declares any shape and dtype."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy_bytes(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@given(
    sides=st.fixed_dictionaries(
        {"n": st.integers(1, 6), "c": st.sampled_from([1, 3]), "h": st.integers(5, 12), "w": st.integers(5, 12)}
    ),
    layout=st.sampled_from(["nchw", "nhwc", "nhw", "chw", "hwc", "hw"]),
    dtype=st.sampled_from(["u1", "<f2", "<f4", "<f8", ">f4"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_layouts_round_trip(tmp_path: Path, sides: dict[str, int], layout: str, dtype: str, seed: int) -> None:
    """Images in any layout, memory order and dtype come back bit for bit as (n, c, h, w), with stable ids."""
    sides = {axis: side if axis in layout else 1 for axis, side in sides.items()}
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, [sides[axis] for axis in "nchw"], dtype=np.uint8)
    values: NDArray[np.generic] = levels if dtype == "u1" else (levels / 255).astype(dtype)
    axes = [axis for axis in "nchw" if axis not in layout] + list(layout)  # absent axes have length 1
    stored = values.transpose(["nchw".index(axis) for axis in axes]).reshape([sides[axis] for axis in layout])
    stored = stored.copy(order="F" if seed % 2 else "C")
    np.save(tmp_path / "a.npy", stored)
    np.savez_compressed(tmp_path / "a.npz", images=stored)
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        loaded = load_images([path], (sides["c"], sides["h"], sides["w"]))
        assert loaded.images.dtype == (np.uint8 if dtype == "u1" else np.float32)
        np.testing.assert_array_equal(loaded.images, values.astype(loaded.images.dtype))
        assert loaded.ids == tuple(f"{path}[{i}]" for i in range(sides["n"]))
        assert all("read as" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("stored", "target", "want"),
    [
        ((3, 8, 8), (1, 8, 8), 3),  # exactly three grey images
        ((3, 8, 8), (3, 8, 8), 1),  # exactly one RGB image
        ((20, 20, 3), (1, 8, 8), 1),  # twenty grey images 3 pixels wide are no images
        ((4, 3, 3, 8), (3, 3, 8), 4),  # (n, h, w, c) does not fit: the last axis is 8
        ((2, 8, 8), (1, 8, 8), 2),
        ((1, 8, 8), (3, 8, 8), 1),
        ((2, 4, 8, 8), (4, 8, 8), 2),  # four channels are accepted where the model has four
    ],
)
def test_layout_choices(tmp_path: Path, stored: tuple[int, ...], target: tuple[int, int, int], want: int) -> None:
    assert len(load_images([save(tmp_path / "a.npy", np.zeros(stored, dtype=np.uint8))], target)) == want


@pytest.mark.parametrize(
    ("stored", "target"),
    [((3, 8, 8), (1, 16, 16)), ((5, 3, 3, 3), (3, 3, 3)), ((3, 3, 3), (1, 9, 9)), ((20, 64), (1, 8, 8))],
)
def test_ambiguous_layouts(tmp_path: Path, stored: tuple[int, ...], target: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"a\.npy: shape .* is ambiguous"):
        load_images([save(tmp_path / "a.npy", np.zeros(stored, dtype=np.uint8))], target)


def test_labels_settle_an_ambiguous_layout(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8), dtype=np.uint8), labels=[0, 1, 1])
    loaded = load_images([tmp_path / "a.npz"], (1, 16, 16))
    assert loaded.images.shape == (3, 1, 16, 16)
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.labels, [0, 1, 1])


def test_npz_members_are_used(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=STACK, labels=np.arange(5, dtype=np.uint8), ids=np.array(list("vwxyz")), other=np.array([{}]))
    loaded = load_images([path], SHAPE)
    assert loaded.ids == ("v", "w", "x", "y", "z")
    assert loaded.labels is not None
    assert loaded.labels.dtype == np.int64
    data = load_labelled(path)
    assert data.class_names == ("0", "1", "2", "3", "4")
    assert data.ids == loaded.ids
    np.testing.assert_array_equal(data.images, STACK)


def test_class_names_are_those_that_every_source_brings(tmp_path: Path) -> None:
    named, other, bare = (tmp_path / f"{name}.npz" for name in ("named", "other", "bare"))
    labels = np.array([0, 1, 0, 1, 1])
    np.savez(named, images=STACK, labels=labels, class_names=np.array(["cat", "dog"]))
    np.savez(other, images=STACK, labels=labels, class_names=np.array(["dog", "cat"]))
    np.savez(bare, images=STACK, labels=labels)
    image = tmp_path / "image.png"
    Image.fromarray(STACK[0, 0]).save(image)
    assert load_images([named], SHAPE).class_names == ("cat", "dog")
    assert load_images([named, named], SHAPE).class_names == ("cat", "dog")
    for rest in (other, bare, image):
        assert load_images([named, rest], SHAPE).class_names is None


def test_labelled_npz_with_names_floats_and_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=STACK[:, 0] / 255, labels=[0, 0, 2, 2, 0], class_names=["cat", "dog", "owl"])
    data = load_labelled(path)
    np.testing.assert_array_equal(data.images, STACK)  # k / 255 rounds back to k
    assert data.class_names == ("cat", "dog", "owl")
    assert data.notes == ("5 images rounded from float to 8 bits",)
    assert load_labelled(path, size=4).images.shape == (5, 1, 4, 4)
    assert load_labelled(path, (3, 4, 6)).images.shape == (5, 3, 4, 6)


def test_mixing_files_and_floats_gives_float32(tmp_path: Path) -> None:
    Image.fromarray(STACK[0, 0]).save(tmp_path / "a.png")
    np.savez(tmp_path / "b.npz", images=STACK[1:3] / 255, labels=[1, 2])
    loaded = load_images([tmp_path / "a.png", tmp_path / "b.npz"], SHAPE)
    assert loaded.images.dtype == np.float32
    np.testing.assert_allclose(loaded.images, STACK[:3] / 255, rtol=2**-23)
    assert loaded.labels is None
    assert loaded.notes == (
        "1 image scaled from 0..255 to [0, 1]",
        "2 labels ignored because other images have none",
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 4), (3, 8, 8), (3, 5, 6), (1, 4, 8)])
def test_conversion_does_not_write_to_its_input(
    dtype: type[np.uint8 | np.float32], shape: tuple[int, int, int]
) -> None:
    for channels in (1, 3):
        images: Pixels = np.random.default_rng(3).integers(0, 2, (2, channels, 8, 8)).astype(dtype)
        before = images.copy()
        images.setflags(write=False)
        assert fit(images, shape, "images", Notes()).shape == (2, *shape)
        np.testing.assert_array_equal(images, before)


@given(at=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.booleans(), name=st.sampled_from(["a.npy", "a.npz"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_input_error_or_harmless(tmp_path: Path, at: int, value: int, cut: bool, name: str) -> None:
    """With any one byte changed, or the end cut off anywhere: a one-line InputError, or images of the right shape."""
    (tmp_path / "a.npy").write_bytes(npy_bytes(STACK))
    npz(tmp_path / "a.npz", images=npy_bytes(STACK), labels=npy_bytes(np.arange(5)))
    data = bytearray((tmp_path / name).read_bytes())
    at %= len(data)
    data[at] = value
    (tmp_path / name).write_bytes(data[:at] if cut else data)
    try:
        shape, message = load_images([tmp_path / name], SHAPE).images.shape[1:], ""
    except InputError as error:
        shape, message = SHAPE, str(error)
    assert shape == SHAPE
    assert "\n" not in message


def test_float_images_are_converted_like_levels(tmp_path: Path) -> None:
    """Resize, crop and luma on floats agree with the 8-bit path to its rounding, and stay in [0, 1]."""
    levels = np.random.default_rng(2).integers(0, 2, (2, 3, 20, 31), dtype=np.uint8) * np.uint8(255)
    floats = load_images([save(tmp_path / "f.npy", levels / 255)], SHAPE).images
    rounded = load_images([save(tmp_path / "u.npy", levels)], SHAPE).images
    assert floats.min() >= 0
    assert floats.max() <= 1
    assert np.abs(floats * 255 - rounded).max() <= 2  # the 8-bit path rounds after luma and after each resize pass


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((2, 8, 8), dtype=np.int64),
            r"must be uint8, or float in \[0, 1\]; got int64, found 0 to 0: give .* --window 0 1 ",
        ),
        (np.zeros((2, 8, 8), dtype=bool), "got bool"),
        (np.zeros((2, 8, 8), dtype=complex), "got complex128"),
        (np.array([["a"]]), "must be uint8"),
        (np.array([[{}]]), "holds Python objects, which fastdc never unpickles"),
        (np.zeros((2, 8), dtype=[("a", "u1")]), "must be a plain array"),
        (np.zeros(8, dtype=np.uint8), r"got shape \(8,\)"),
        (np.uint8(3), r"got shape \(\)"),
        (np.zeros((1, 1, 1, 8, 8), dtype=np.uint8), r"got shape \(1, 1, 1, 8, 8\)"),
        (np.zeros((0, 8, 8), dtype=np.uint8), "holds no images"),
        (np.zeros((2, 5, 8, 8), dtype=np.uint8), r"no axis of shape \(2, 5, 8, 8\) can be the channels"),
        (
            np.full((2, 8, 8), 255.0),
            r"values must be in \[0, 1\], found 255 to 255: give .* --window 0 255 ",
        ),
        (np.linspace(-1, 1, 64).reshape(1, 8, 8), r"found -1 to 1: map \[-1, 1\] by"),
        (np.linspace(-3, 3, 64).reshape(1, 8, 8), r"found -3 to 3: give .* --window -3 3 "),
        (np.full((2, 8, 8), np.nan), "found NaN or infinity"),
        (np.full((2, 8, 8), np.inf), "found NaN or infinity"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_arrays(tmp_path: Path, array: NDArray[np.generic], message: str, packed: bool) -> None:
    path = tmp_path / ("bad.npz" if packed else "bad.npy")
    if packed:
        np.savez(path, images=array)
    else:
        np.save(path, array)
    with pytest.raises(InputError, match=message) as caught:
        load_images([path], SHAPE)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("member", ["images", "labels", "ids", "class_names"])
def test_nothing_is_unpickled(tmp_path: Path, member: str) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    members = {"images": npy_bytes(STACK), "labels": npy_bytes(np.arange(5))} | {member: header("(5,)", "|O") + trap}
    path = npz(tmp_path / "trap.npz", **members)
    with pytest.raises(InputError, match=f"{member}: holds Python objects"):
        load_labelled(path)
    (tmp_path / "plain.npz").write_bytes(trap)
    (tmp_path / "plain.npy").write_bytes(trap)
    for name in ("plain.npz", "plain.npy"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as"):
            load_images([tmp_path / name], SHAPE)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a .npy file"),
        (b"text", "cannot be read as a .npy file"),
        (npy_bytes(STACK)[:100], "cannot be read as a .npy file"),
        (npy_bytes(STACK)[:-1], "is truncated: 320 bytes of data are declared and 319 are there"),
        (header("(1000000, 1, 1000, 1000)"), "is truncated: 1000000000000 bytes of data are declared and 0 are there"),
        (header("(-1, 8, 8)"), "must be a plain array"),
        (header("(2, 8, 8"), "cannot be read as a .npy file"),
        (header("__import__('os')"), "cannot be read as a .npy file"),
        (header("(" * 60), "cannot be read as a .npy file"),
        (header("(2, 8, 8)", version=3), r"format 3\.0 is not supported"),
        (header("(2, 8, 8)", version=2) + bytes(127), "is truncated"),
        (header("(2, 8, 8)", dtype="|V0"), "must be a plain array"),
    ],
)
def test_bad_npy_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(InputError, match=rf"bad\.npy: {message}"):
        load_images([tmp_path / "bad.npy"], SHAPE)
    with pytest.raises(InputError, match=rf"bad\.npz: images: {message}|bad\.npz: cannot be read as an .npz file"):
        load_images([npz(tmp_path / "bad.npz", images=content)], SHAPE)


def test_small_images_cannot_blow_up(tmp_path: Path) -> None:
    """A megabyte of 1 x 1 images, each to become 1024 x 1024, is refused before anything is resized."""
    path = save(tmp_path / "dots.npy", np.zeros((10**6, 1, 1, 1), dtype=np.uint8))
    with pytest.raises(InputError, match=r"1000000 images of .* GiB"):
        load_images([path], (3, 1024, 1024))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"pictures": STACK}, "has no array named 'images'; it holds pictures"),
        ({}, "has no array named 'images'; it holds nothing"),
        ({"images": STACK}, "has no array named 'labels'"),
        ({"images": STACK, "labels": np.arange(4)}, "means 5 images, but there are 4 labels"),
        ({"images": STACK, "labels": np.zeros(0, dtype=int)}, "means 5 images, but there are 0 labels"),
        ({"images": STACK, "labels": np.arange(5) - 1}, r"labels must be in 0\.\.99999, found -1 to 3"),
        ({"images": STACK, "labels": np.full(5, MAX_CLASSES)}, r"labels must be in 0\.\.99999"),
        ({"images": STACK, "labels": np.arange(5.0)}, "labels must be integers of shape"),
        ({"images": STACK, "labels": np.zeros((5, 2), dtype=int)}, r"labels has 2 labels per image, shape \(5, 2\)"),
        ({"images": STACK, "labels": np.zeros(5, dtype=bool)}, "labels must be integers of shape"),
        (
            {"images": STACK, "labels": np.arange(5), "class_names": ["a"] * 3},
            r"labels must be in 0\.\.2, found 0 to 4",
        ),
        ({"images": STACK, "labels": np.arange(5), "class_names": ["a"] * 5}, "class_names must be different"),
        (
            {"images": STACK, "labels": np.arange(5), "class_names": [*"abcd", ""]},
            "must be different and not empty",
        ),
        ({"images": STACK, "labels": np.arange(5), "class_names": np.arange(5)}, "class_names: must be strings"),
        ({"images": STACK, "labels": np.arange(5), "ids": ["a", "b"]}, r"ids: must be strings of shape \(5,\)"),
    ],
)
def test_bad_npz(tmp_path: Path, members: dict[str, NDArray[np.generic]], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **members)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        load_labelled(tmp_path / "bad.npz")


def test_corrupt_archive(tmp_path: Path) -> None:
    """A flipped byte of stored data is caught by the archive's checksum."""
    np.savez(tmp_path / "a.npz", images=STACK)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(STACK.tobytes()) + 5] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz: cannot be read as an \.npz file: Bad CRC-32"):
        load_images([tmp_path / "a.npz"], SHAPE)


def test_labelled_needs_an_npz(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"or an \.npz file"):
        load_labelled(save(tmp_path / "a.npy", STACK))
