"""``prepare``: what people have in hand becomes the array that the command line makes of the same picture."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastdc import InputError
from fastdc.data import load_images, prepare
from helpers.pictures import write_png
from helpers.worlds import fails_with

GREY, RGB = (1, 8, 8), (3, 8, 8)
RNG = np.random.default_rng(3)
PHOTO = Image.fromarray(RNG.integers(0, 256, (40, 25, 3), np.uint8))


def bits(image: NDArray[Any]) -> tuple[Any, ...]:
    return image.dtype, image.shape, image.tobytes()


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pictures(folder: Path) -> list[Path]:
    """Files of many modes and sizes; each stores its picture without loss of what Pillow holds."""
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(RNG.integers(0, 65536, (30, 20)).astype(np.uint16))
    clear = PHOTO.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    return [
        saved(folder / "rgb.png", PHOTO),
        saved(folder / "turned.jpg", PHOTO, exif=turned, quality=95),
        saved(folder / "palette.png", PHOTO.convert("P")),
        saved(folder / "grey.png", PHOTO.convert("L")),
        saved(folder / "grey-alpha.png", PHOTO.convert("LA")),
        saved(folder / "clear.png", clear),
        saved(folder / "cmyk.tiff", PHOTO.convert("CMYK")),
        saved(folder / "bilevel.png", PHOTO.convert("1")),
        saved(folder / "deep.png", deep),
        saved(folder / "float.tiff", Image.fromarray(RNG.random((12, 30), np.float32))),
        saved(folder / "exact.png", PHOTO.crop((0, 0, 8, 8))),
        saved(folder / "strip.png", PHOTO.resize((400, 9))),
    ]


@pytest.mark.parametrize("shape", [GREY, RGB, (3, 6, 11)])
def test_pictures_are_what_the_command_line_makes_of_their_files(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    files = pictures(tmp_path)
    for file in files:
        want = bits(load_images([file], shape).images)
        forms: dict[str, Any] = {"path": file, "text": str(file), "bytes": file.read_bytes(), "list": [file]}
        forms["bytearray"] = bytearray(forms["bytes"])
        with Image.open(file) as lazy, Image.open(file) as decoded:
            decoded.load()
            forms |= {"open": lazy, "decoded": decoded, "copy": decoded.copy(), "pair": [(decoded, 3)]}
            for form, given in forms.items():
                assert bits(prepare(given, shape)) == want, (file.name, form)
    whole = load_images(files, shape)
    images = [Image.open(file) for file in files]
    encoded = [file.read_bytes() for file in files]
    for mixed in (files, tuple(map(str, files)), images, encoded, [*images[:5], *files[5:]]):
        np.testing.assert_array_equal(prepare(mixed, shape), whole.images)
    np.testing.assert_array_equal(prepare(tmp_path, shape), load_images([tmp_path], shape).images)


def test_a_picture_is_resized_to_its_shorter_side_and_cropped_to_the_centre() -> None:
    """Against Pillow alone."""
    wide = PHOTO.resize((32, 16))
    want = np.asarray(wide.resize((16, 8), Image.Resampling.BICUBIC).crop((4, 0, 12, 8))).transpose(2, 0, 1)
    np.testing.assert_array_equal(prepare(wide, RGB), want[None])


def test_colour_of_16_bits_keeps_them_and_the_users_image_is_left_alone(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    file = write_png(tmp_path / "deep.png", values, 2)
    with Image.open(file) as image:
        np.testing.assert_allclose(prepare(image, RGB)[0], values.transpose(2, 0, 1) / 65535, rtol=0, atol=2**-24)
        assert (image.mode, image.size) == ("RGB", (8, 8))
        np.testing.assert_array_equal(np.asarray(image), values >> 8)


def test_a_large_jpeg_is_halved_as_its_file_is(tmp_path: Path) -> None:
    file = saved(tmp_path / "large.jpg", PHOTO.resize((200, 100)))
    want = load_images([file], RGB, max_pixels=6000)
    assert "decoded at half the size" in want.notes[0]
    with Image.open(file) as image:
        np.testing.assert_array_equal(prepare(image, RGB, max_pixels=6000), want.images)
        assert image.size == (200, 100)
        image.load()
        fails_with(lambda: prepare(image, RGB, max_pixels=6000), "limit of one image is 6,000", kind=InputError)


def test_an_animations_present_frame_is_read_and_stays_the_present_one(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 90, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as image:
        image.seek(1)
        assert int(prepare(image, GREY).mean()) == 90
        assert image.tell() == 1


def test_notes_are_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    with caplog.at_level(logging.INFO, "fastdc.data"):
        prepare([PHOTO, PHOTO], GREY, on_note=told.append)
    assert told == ["2 images converted from RGB to grey", "2 images resized and centre-cropped to 8x8 from 25x40"]
    assert caplog.messages == told


# --- arrays -----------------------------------------------------------------------------------------------------------

STACK = RNG.integers(0, 256, (4, 3, 8, 8), np.uint8)


def test_axes_are_brought_into_order() -> None:
    for given, want in (
        (STACK, STACK),
        (STACK.transpose(0, 2, 3, 1), STACK),
        (STACK[0], STACK[:1]),
        (STACK[0].transpose(1, 2, 0), STACK[:1]),
        (list(STACK), STACK),
        ([image.transpose(1, 2, 0) for image in STACK], STACK),
        ([STACK[:3], STACK[3]], STACK),
        ((batch for batch in np.split(STACK, 2)), STACK),
        ([(STACK[:2], np.zeros(2, int)), [STACK[2:], ["cat", "dog"]]], STACK),
        ([[STACK[:2]], [STACK[2:]]], STACK),
        ([list(STACK[:2]), list(STACK[2:])], STACK),
    ):
        np.testing.assert_array_equal(prepare(given, RGB, resize=False), want)
    grey = STACK[:, 0]
    for given, want in ((grey, grey[:, None]), (grey[0], grey[:1, None]), (grey[:1], grey[:1, None])):
        np.testing.assert_array_equal(prepare(given, GREY, resize=False), want)
    np.testing.assert_array_equal(prepare(grey[..., None], GREY, resize=False), grey[:, None])


def test_an_array_in_order_is_not_copied() -> None:
    assert np.shares_memory(prepare(STACK, RGB), STACK)
    assert np.shares_memory(prepare(STACK.transpose(0, 2, 3, 1), RGB), STACK)


@pytest.mark.parametrize(
    ("dims", "shape", "says"),
    [
        ((3, 8, 8), GREY, ['3 grey images 8x8 (layout="NHW" or images[:, None])', '1 RGB image 8x8 (layout="CHW"']),
        ((3, 3, 3), (3, 3, 3), ['(layout="CHW")', '(layout="HWC")']),
        ((5, 3, 3, 3), (3, 3, 3), ['(layout="NCHW")', '(layout="NHWC")']),
        ((2, 2, 2, 2), (2, 2, 2), ['2 2-channel images 2x2 (layout="NCHW")', '(layout="NHWC")']),
    ],
)
@pytest.mark.parametrize("resize", [True, False])
def test_a_shape_with_two_meanings_is_refused_with_both(
    dims: tuple[int, ...], shape: tuple[int, int, int], says: list[str], resize: bool
) -> None:
    images = np.zeros(dims, np.uint8)
    says = [f"images of shape {dims} may be", *says]
    fails_with(lambda: prepare(images, shape, resize=resize), *says, kind=InputError)


def test_what_the_message_offers_is_clear() -> None:
    three, cube = STACK[0], RNG.integers(0, 256, (5, 3, 3, 3), np.uint8)
    for clear in (prepare(three, GREY, layout="NHW"), prepare(three[:, None], GREY)):
        np.testing.assert_array_equal(clear, three[:, None])
    for one in (prepare(three, GREY, layout="CHW"), prepare(three, GREY, layout="NCHW"), prepare(three[None], GREY)):
        np.testing.assert_array_equal(one, prepare(Image.fromarray(three.transpose(1, 2, 0)), GREY))
    np.testing.assert_array_equal(prepare(cube, (3, 3, 3), layout="NCHW"), cube)
    for layout in ("NHWC", "HWC"):
        np.testing.assert_array_equal(prepare(cube[0], (3, 3, 3), layout=layout), cube[:1].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(prepare(cube, (3, 3, 3), layout="NHWC"), cube.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_rows_of_flattened_images_are_not_one_wide_image(rows: int) -> None:
    flat = RNG.integers(0, 256, (rows, 64), np.uint8)
    says = f"shape {(rows, 64)} is ambiguous: reshape it to {(rows, *GREY)} if it is flattened images"
    fails_with(lambda: prepare(flat, GREY), says, kind=InputError)
    fails_with(lambda: prepare([(flat, np.arange(rows))], GREY), says, kind=InputError)
    want = prepare(Image.fromarray(flat), GREY)
    np.testing.assert_array_equal(prepare(flat, GREY, layout="HW"), want)
    np.testing.assert_array_equal(prepare(flat[None], GREY), want)


def test_one_meaning_in_two_spellings_is_clear() -> None:
    """One grey image is the same as (n, h, w) and as (c, h, w); an image of one pixel is the same in any order."""
    assert prepare(np.full((1, 8, 8), 7, np.uint8), GREY).shape == (1, *GREY)
    assert prepare(np.full((5, 1, 1, 1), 7, np.uint8), (1, 1, 1)).shape == (5, 1, 1, 1)


@pytest.mark.parametrize("kind", ["array", "list"])
def test_an_array_of_another_size_is_refused_by_name_of_the_function_that_resizes(kind: str) -> None:
    small = RNG.integers(0, 256, (2, 3, 16, 16), np.uint8)
    given = small if kind == "array" else [STACK[0], small[1]]
    where = "images" if kind == "array" else "images[1]"
    way = "fastdc.data.prepare(images, (3, 8, 8)) resizes"
    fails_with(lambda: prepare(given, RGB, resize=False), f"{where} must have shape", way, kind=InputError)
    says = ("must have shape (n, 1, 8, 8)", "converts their channels")
    fails_with(lambda: prepare(given, GREY, resize=False, layout="NCHW"), *says, kind=InputError)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in (small if kind == "array" else given)]
    np.testing.assert_array_equal(prepare(given, RGB), prepare(pictures, RGB))
    np.testing.assert_array_equal(prepare(given, GREY, layout="NCHW"), prepare(pictures, GREY))


def test_flattened_images_are_refused_with_the_way_out() -> None:
    fails_with(lambda: prepare(np.zeros((5, 64)), GREY, resize=False), "to (5, 1, 8, 8)", kind=InputError)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_stay_in_0_to_1(dtype: str) -> None:
    images = (STACK / 256).astype(dtype)
    np.testing.assert_array_equal(prepare(images, RGB), images.astype(np.float32))
    fails_with(lambda: prepare(images * 255, RGB), "float images must be in [0, 1]", "window=(0, 255)", kind=InputError)
    fails_with(lambda: prepare([images[0], images[1] * -1], RGB), "float images[1] must be in", kind=InputError)
    assert prepare(images * 2 - 1, RGB, bounded=False).min() < 0
    np.testing.assert_array_equal(prepare([STACK[0], images[1]], RGB)[0], (STACK[0] / np.float32(255)))


def test_a_window_maps_other_numbers_and_is_never_guessed() -> None:
    levels = RNG.integers(0, 4096, (2, 8, 8)).astype(np.uint16)
    fails_with(lambda: prepare(levels, GREY), "uint16 from", "window=(0, 4095)", kind=InputError)
    want = (levels / 4095).astype(np.float32)[:, None]
    np.testing.assert_array_equal(prepare(levels, GREY, window=(0, 4095)), want)
    np.testing.assert_array_equal(prepare(list(levels), GREY, window=(0, 4095)), want)
    normed = np.linspace(-1, 1, 64).reshape(1, 8, 8)
    fails_with(lambda: prepare(normed, GREY), "window=(-1, 1)", kind=InputError)
    np.testing.assert_allclose(prepare(normed, GREY, window=(-1, 1))[0], (normed + 1) / 2, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(prepare(STACK, RGB, window=(0, 4095)), STACK)  # 8 bits have a meaning
    twelve = Image.fromarray(levels[0])
    fails_with(lambda: prepare(twelve, GREY), "nearly black", "window=(0, 4095)", kind=InputError)
    np.testing.assert_array_equal(prepare(twelve, GREY, window=(0, 4095)), want[:1])


# --- torch ------------------------------------------------------------------------------------------------------------


def test_tensors_loaders_and_data_sets() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data
    tensor = torch.from_numpy(STACK)
    labels = torch.zeros(4, dtype=torch.long)
    pairs = data.TensorDataset(tensor, labels)

    class Pictures(data.Dataset):  # type: ignore[name-defined,misc]
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(STACK[index].transpose(1, 2, 0)), 3

    for given in (
        tensor,
        tensor.permute(0, 2, 3, 1),
        list(tensor),
        pairs,
        data.DataLoader(pairs, batch_size=3),
        data.DataLoader(data.TensorDataset(tensor), batch_size=3),
        data.DataLoader(tensor, batch_size=3),
        data.DataLoader(Pictures(), batch_size=3, collate_fn=lambda rows: tuple(zip(*rows, strict=True))),
        Pictures(),
        [(tensor[:2], {"boxes": 3}, "name"), (tensor[2:], torch.zeros(2, 10))],
    ):
        np.testing.assert_array_equal(prepare(given, RGB, resize=False), STACK)
    half = (tensor / 255).to(torch.bfloat16)
    np.testing.assert_array_equal(prepare(half, RGB), half.float().numpy())
    hollow = torch.empty(STACK.shape, device="meta")
    fails_with(lambda: prepare(hollow, RGB), "images must be plain tensors", "meta", kind=InputError)
    fails_with(lambda: prepare(tensor.float().to_sparse(), RGB), "plain tensors", "sparse", kind=InputError)


# --- refusals ---------------------------------------------------------------------------------------------------------


def endless() -> Iterator[Any]:
    while True:
        yield STACK


def test_bad_items_are_named(tmp_path: Path) -> None:
    good = STACK[0]
    broken = PHOTO.tobytes()[:50]
    closed = Image.open(saved(tmp_path / "closed.png", PHOTO))
    closed.close()
    missing = tmp_path / "missing.png"
    png = saved(tmp_path / "a.png", PHOTO).read_bytes()
    (tmp_path / "cut.png").write_bytes(png[:200])
    circle: list[Any] = []
    circle.append([circle, circle])
    given: Any
    for given, says in (
        ([good, broken], ["images[1]: is not an image in a format"]),
        (png[:200], ["images: cannot be read as an image"]),
        (tmp_path / "cut.png", ["cut.png: cannot be read as an image"]),
        ([good, closed], ["images[1]: its file was closed", "image.load()"]),
        ([good, missing], ["missing.png: does not exist"]),
        ([str(tmp_path / "a.png"), missing], ["missing.png: does not exist"]),
        ("", ["source must be a path"]),
        ([good, 5], ["images[1] must be an array", "got int 5"]),
        ([[1, 2], [3]], ["images[0]", "got int 1"]),
        ([good, None], ["images[1]", "NoneType"]),
        ([], ["images is empty"]),
        (iter(()), ["images is empty"]),
        (np.zeros((0, 8, 8)), ["there is no image in it"]),
        ([(good, good, "cat")], ["images[0] must be images, or (images, labels)"]),
        ([(PHOTO, PHOTO)], ["images[0] must be images, or (images, labels)"]),
        ([[good, good[0]]], ["images[0] must be images, or (images, labels)"]),
        ([(tmp_path / "a.png", "cat")], ["images[0] must be images, or (images, labels)"]),
        ([[tmp_path / "a.png", "cat"]], ["cat: does not exist"]),
        (io.BytesIO(png), ["an open file: pass its content"]),
        ([STACK.astype(object)], ["images[0] must be uint8", "object"]),
        ([STACK == 0], ["images[0] must be uint8", "bool"]),
        (Image.new("L", (0, 5)), ["images: is an image without pixels, 0x5"]),
        ({"image": good}, ["images must be", "dict"]),
        (circle, ["images[0] must be images"]),
        ([[[[[good], [good]]]]], ["images[0][0] must be images"]),
    ):
        fails_with(lambda given=given: prepare(given, RGB), *says, kind=InputError)  # type: ignore[misc]


def test_what_is_given_is_bounded() -> None:
    large = Image.new("L", (300, 300))
    for given in (large, [large], saved_bytes(large), endless()):
        fails_with(lambda given=given: prepare(given, RGB, max_pixels=80_000), "limit", kind=InputError)  # type: ignore[misc]


def saved_bytes(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("layout", ["nchw", "NWHC", "", 5, "NCHWD"])
def test_other_layouts_are_refused(layout: Any) -> None:
    says = "layout must be one of NCHW, NHWC, NHW, CHW, HWC, HW"
    fails_with(lambda: prepare(STACK, RGB, layout=layout), says, kind=InputError)
    fails_with(lambda: prepare(PHOTO, RGB, layout=layout), says, kind=InputError)


def test_a_layout_of_another_number_of_axes_is_refused() -> None:
    fails_with(lambda: prepare(STACK, RGB, layout="HW"), "must have the axes HW", kind=InputError)


@pytest.mark.parametrize("kind", ["path", "list", "iterable", "npz"])
def test_a_stated_layout_holds_for_files_of_arrays(tmp_path: Path, kind: str) -> None:
    """Three grey images or one RGB image: the file alone says the first."""
    file = tmp_path / ("three.npz" if kind == "npz" else "three.npy")
    np.savez(file, images=STACK[0]) if kind == "npz" else np.save(file, STACK[0])
    given: dict[str, Any] = {"list": [file], "iterable": (one for one in [file])}
    want = prepare(STACK[0], GREY, layout="CHW")
    np.testing.assert_array_equal(prepare(given.get(kind, file), GREY, layout="CHW"), want)
    np.testing.assert_array_equal(load_images([file], GREY, layout="NHW").images, STACK[0][:, None])
    for call in (lambda: prepare(file, GREY, layout="NCWH"), lambda: load_images([file], GREY, layout="NCWH")):
        fails_with(call, "layout must be one of NCHW", kind=InputError)
    fails_with(lambda: prepare(file, GREY, layout="HW"), "three", "must have the axes HW", kind=InputError)


def test_masked_values_are_refused_and_other_subclasses_are_plain_arrays() -> None:
    floats = STACK.astype(np.float32) / np.float32(255)
    floats[0, 0, 0, 0] = 1e20
    hidden = np.ma.masked_greater(floats, 1)
    for given in (hidden, [hidden[0]], np.ma.masked_less(STACK, 9)):
        fails_with(lambda given=given: prepare(given, RGB), "masked values cannot", "filled(0)", kind=InputError)  # type: ignore[misc]
    whole = prepare(np.ma.masked_array(STACK), RGB)
    assert type(whole) is np.ndarray
    np.testing.assert_array_equal(whole, STACK)
    memory = STACK.view(np.recarray)
    assert type(prepare(memory, RGB)) is np.ndarray


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8"])
def test_floats_of_any_byte_order_are_read(kind: str) -> None:
    floats = (STACK / 255).astype(kind)
    np.testing.assert_array_equal(prepare(floats, RGB), floats.astype(np.float32))


@pytest.mark.parametrize("kind", [str, object])
def test_an_array_of_paths_is_a_list_of_them(tmp_path: Path, kind: type) -> None:
    files = [saved(tmp_path / f"{k}.png", PHOTO.rotate(k)) for k in range(3)]
    np.testing.assert_array_equal(prepare(np.array(list(map(str, files)), kind), RGB), prepare(files, RGB))


def test_two_images_beside_each_other_in_a_batch_are_not_twice_as_many() -> None:
    """A loader of (image, mask) collates them into lists."""
    fails_with(lambda: prepare([[STACK, STACK]], RGB), "images[0] must be images, or (images, labels)", kind=InputError)
