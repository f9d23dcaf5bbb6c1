"""User images into model images, and the noise streams that follow from their pixels."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastdc import InputError, Model
from fastdc.diffusion import EDMSchedule
from fastdc.diffusion.parameterization import Parameterization
from fastdc.inference.images import check_streams, streams_of, to_model_range
from helpers.worlds import SHAPE, Float32, fails_with, gaussian, permutations, unit_images

MODEL = gaussian().model


def model_of(low: float, high: float) -> Model:
    return Model("m", (1, 2, 3), ("a",), EDMSchedule(), Parameterization("sample"), value_range=(low, high))


def refused(images: Any, *parts: str) -> None:
    fails_with(lambda: to_model_range(images, MODEL), "images", *parts, kind=InputError)


def test_bytes_and_floats_give_the_same_bits() -> None:
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.resize(levels, (16, *SHAPE))
    from_bytes = to_model_range(pixels, MODEL)
    np.testing.assert_array_equal(to_model_range(pixels.astype(np.float32) / np.float32(255), MODEL), from_bytes)
    np.testing.assert_array_equal(to_model_range(pixels / 255, MODEL), from_bytes)
    assert from_bytes.dtype == np.float32
    # x = u8 / 255 * 2 - 1 up to two roundings of numbers below 2: half an ulp of 2^-23 each.
    np.testing.assert_allclose(from_bytes, pixels / 255 * 2 - 1, rtol=0, atol=2.0**-23)
    assert (from_bytes.min(), from_bytes.max()) == (-1, 1)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-3.5, 0.25)])
def test_the_models_range_is_reached_exactly(low: float, high: float) -> None:
    ends = np.zeros((2, 1, 2, 3), np.uint8)
    ends[1] = 255
    x = to_model_range(ends, model_of(low, high))
    assert (x[0] == np.float32(low)).all()
    assert (x[1] == np.float32(high)).all()


@given(images=hnp.arrays(np.float32, (2, *SHAPE), elements=st.floats(0, 1, width=32)))
def test_floats_in_range_are_taken_and_left_alone(images: Float32) -> None:
    before = images.copy()
    images.setflags(write=False)
    x = to_model_range(images, MODEL)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_allclose(x, 2.0 * images - 1, rtol=0, atol=2.0**-23)
    assert not np.shares_memory(x, images)
    assert x.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_type_is_taken(dtype: type[np.floating[Any]]) -> None:
    images = (np.arange(32).reshape(2, *SHAPE) / 32).astype(dtype)  # exact in all of them
    np.testing.assert_array_equal(to_model_range(images, MODEL), images.astype(np.float32) * 2 - 1)


def test_any_memory_layout_gives_the_same_images() -> None:
    images = unit_images(6)
    want = to_model_range(images, MODEL)
    np.testing.assert_array_equal(to_model_range(np.asfortranarray(images), MODEL), want)
    np.testing.assert_array_equal(to_model_range(np.repeat(images, 2, axis=0)[::2], MODEL), want)
    np.testing.assert_array_equal(to_model_range(images[::-1], MODEL), want[::-1])


def test_torch_tensors_are_taken() -> None:
    torch = pytest.importorskip("torch")
    images = np.arange(32, dtype=np.float32).reshape(2, *SHAPE) / 32
    want = to_model_range(images, MODEL)
    tensor = torch.from_numpy(images)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        np.testing.assert_array_equal(to_model_range(tensor.to(dtype), MODEL), want)
    np.testing.assert_array_equal(to_model_range(tensor.clone().requires_grad_(True), MODEL), want)
    np.testing.assert_array_equal(to_model_range(torch.nn.Parameter(tensor), MODEL), want)
    levels = torch.arange(32, dtype=torch.uint8).reshape(2, *SHAPE)
    np.testing.assert_array_equal(to_model_range(levels, MODEL), to_model_range(levels.numpy(), MODEL))
    refused(tensor.to(torch.int32), "int32")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite_is_refused_with_its_image(value: float, dtype: type[np.floating[Any]]) -> None:
    images = unit_images(7).astype(dtype)
    images[5, 0, 1, 2] = value
    refused(images, "finite", str(np.float32(value)), "image 5")


def test_values_out_of_range_are_refused() -> None:
    images = unit_images(2)
    refused(images * 255, "[0, 1]", "divide by the value of white, such as (images / 255)")
    refused(images * 2 - 1, "[0, 1]")
    refused(images * np.float32(1.2), "[0, 1]")
    refused(images.astype(np.float64) * 1e300, "[0, 1]")
    images[1, 0, 2, 2] = -1e-6
    refused(images, "[0, 1]", "-1e-06")


@pytest.mark.parametrize(
    ("dtype", "top", "white"), [("u2", 4095, 4095), ("u2", 3000, 4095), ("i8", 255, 255), ("i4", 65535, 65535)]
)
def test_other_integers_are_refused_with_a_way_out(dtype: str, top: int, white: int) -> None:
    """Read as uint8 they would wrap around."""
    images = (unit_images(2) * top).astype(dtype)
    images[0, 0, 0, :2] = 0, top
    kind = np.dtype(dtype).name
    refused(images, f"got {kind} from 0 to {top}: divide by", f"(images / {white}).astype('float32')")
    assert to_model_range((images / white).astype("float32"), MODEL).shape == images.shape
    refused(images.astype("i8") - 1, "map black to 0 and white to 1")
    refused(images == 0, "got bool")


def test_rounding_beyond_one_is_forgiven() -> None:
    """In float64, arithmetic on levels may end an ulp above 1; in float32 that is 1."""
    images = np.full((1, *SHAPE), 1 + 2.0**-52)
    assert to_model_range(images, MODEL).max() == 1


@pytest.mark.parametrize(
    "shape", [(0, 1, 4, 4), (16,), (2, 16), (2, 1, 4, 5), (2, 3, 4, 4), (4, 5), (0, 4, 4), (), (1, 1, 1, 4, 4)]
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    refused(np.zeros(shape, np.uint8), "empty" if shape == (0, 1, 4, 4) else "(n, 1, 4, 4)")


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint16, bool, complex, "U1", object])
def test_other_types_are_refused(dtype: Any) -> None:
    refused(np.zeros((2, *SHAPE), dtype), "uint8", str(np.dtype(dtype)))


@pytest.mark.parametrize("images", [None, 5, 0.5, {"image": 1}, {1, 2}, object(), lambda: 1])
def test_what_is_no_image_is_refused(images: object) -> None:
    refused(images, type(images).__name__)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_streams_follow_the_image_wherever_it_stands() -> None:
    x = to_model_range(unit_images(20), MODEL)
    streams = streams_of(x)
    assert streams.dtype == np.int64
    assert len(set(streams.tolist())) == 20
    assert (streams >= 0).all()
    assert (streams < 2**56).all()
    for order in permutations(20):
        np.testing.assert_array_equal(streams_of(x[order]), streams[order])
    np.testing.assert_array_equal(np.concatenate([streams_of(x[:7]), streams_of(x[7:])]), streams)
    np.testing.assert_array_equal(streams_of(np.asfortranarray(x)), streams)


def test_equal_images_share_a_stream_and_one_pixel_tells_them_apart() -> None:
    images = np.repeat(unit_images(1), 3, axis=0)
    images[2, 0, 3, 3] = np.nextafter(images[2, 0, 3, 3], np.float32(1)) if images[2, 0, 3, 3] < 0.25 else 0
    first, second, third = streams_of(to_model_range(images, MODEL)).tolist()
    assert first == second != third


def test_streams_are_a_fixed_function_of_the_pixels() -> None:
    """Part of what a seed reproduces: the first 56 bits of BLAKE2b (here of 64 zero bytes), little endian."""
    assert streams_of(np.zeros((1, *SHAPE), np.float32)).tolist() == [33330573770617027]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_users_streams_are_taken(dtype: type[np.integer[Any]]) -> None:
    streams = check_streams(np.array([3, 1, 3], dtype), 3)
    assert streams.dtype == np.int64
    assert streams.tolist() == [3, 1, 3]


def test_users_streams_may_be_any_list_of_56_bits() -> None:
    assert check_streams([0, 2**56 - 1], 2).tolist() == [0, 2**56 - 1]


@pytest.mark.parametrize(
    "streams", [[1, 2], [1, 2, 3, 4], [[1, 2, 3]], 3, [1.0, 2.0, 3.0], [True, False, True], ["1", "2", "3"]]
)
def test_streams_of_a_wrong_shape_or_type_are_refused(streams: Any) -> None:
    fails_with(lambda: check_streams(streams, 3), "3 whole numbers", kind=InputError)


@pytest.mark.parametrize("streams", [[0, -1], [0, 2**56], [0, 2**63], [0, 2**70], [[0], [1, 2]], None])
def test_streams_out_of_range_are_refused(streams: Any) -> None:
    fails_with(lambda: check_streams(streams, 2), "streams", kind=InputError)
