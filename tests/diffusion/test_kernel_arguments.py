"""Every wrong argument of the kernels is a one-line InputError that names it; and views of arrays."""

import ctypes
import gc
import weakref
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastdc import InputError
from fastdc.diffusion import kernels
from helpers.oracle import make_case

N, K, SIZE = 3, 5, 12
CASE = make_case(SIZE, target=True)
B = len(CASE.cells)


def arguments(**changed: Any) -> dict[str, Any]:
    common = {"images": CASE.images, "cells": CASE.cells, "rows": CASE.rows, "streams": CASE.streams, "seed": 1}
    return {**common, **changed}


def call(op: str, **changed: Any) -> Any:
    if op == "add_noise":
        return kernels.add_noise(**arguments(**changed))
    if op == "denoising_error":
        return kernels.denoising_error(**{**arguments(network_output=CASE.output), **changed})
    maps = np.zeros((N, K, SIZE), np.float32)
    return kernels.error_map(**{**arguments(network_output=CASE.output, maps=maps), **changed})


def cell(b: int, image: int, label: int, draw: int) -> Any:
    table = CASE.cells.copy()
    table[b] = image, label, draw
    return table


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


ALL = ("add_noise", "denoising_error", "error_map")
ERRORS = ("denoising_error", "error_map")
BAD: list[tuple[tuple[str, ...], str, Any, str]] = [
    (ALL, "images", CASE.images.astype(np.float64), "^images: unsupported element type"),
    (ALL, "images", CASE.images.astype(np.complex64), "^images: unsupported element type"),
    (ALL, "images", CASE.images.astype(np.float16), "^images must be float32, got float16"),
    (ALL, "images", CASE.images.astype(">f4"), "^images: "),
    (ALL, "images", CASE.images[0], r"^images must have shape \(n, \.\.\.\), got \(12,\)"),
    (ALL, "images", CASE.images[:, :0], "^images must have 1 to .* pixels"),
    (ALL, "images", CASE.images.tolist(), "^images: expected an array that speaks DLPack .* got list"),
    (ALL, "images", None, "^images: expected an array that speaks DLPack .* got NoneType"),
    (ALL, "images", np.array(["a", "b"]), "^images: "),
    (ALL, "images", CASE.images[:2], r"^streams must have shape \(n,\) = \(2\), got \(3,\)"),
    (ALL, "cells", CASE.cells.astype(np.int64), "^cells must be int32, got int64"),
    (ALL, "cells", CASE.cells[:, :2], r"^cells must have shape \(B, 3\), got \(45, 2\)"),
    (ALL, "cells", CASE.cells[0], r"^cells must have shape \(B, 3\), got \(3,\)"),
    (ALL, "cells", cell(7, N, 0, 0), r"^cells\[7, 0\] \(image\) must be in \[0, 3\), got 3"),
    (ALL, "cells", cell(7, -1, 0, 0), r"^cells\[7, 0\] \(image\) .* got -1"),
    (ERRORS[1:], "cells", cell(0, 0, K, 0), r"^cells\[0, 1\] \(class\) must be in \[0, 5\), got 5"),
    (ALL, "cells", cell(44, 0, -1, 0), r"^cells\[44, 1\] \(class\) .* got -1"),
    (ALL, "cells", cell(1, 0, 0, 3), r"^cells\[1, 2\] \(draw\) must be in \[0, 3\), got 3"),
    (ALL, "cells", cell(1, 0, 0, -(2**31)), r"^cells\[1, 2\] \(draw\) .* got -2147483648"),
    (ALL, "rows", CASE.rows[:, :7], r"^rows must have shape \(J, 8\), got \(3, 7\)"),
    (ALL, "rows", CASE.rows.astype(np.float64), "^rows: unsupported element type"),
    (ALL, "rows", CASE.rows[:0], r"^cells\[0, 2\] \(draw\) must be in \[0, 0\), got 0"),
    (ALL, "streams", CASE.streams[:2], r"^streams must have shape \(n,\) = \(3\), got \(2,\)"),
    (ALL, "streams", CASE.streams.astype(np.int32), "^streams must be int64, got int32"),
    (ALL, "streams", -CASE.streams, r"^streams\[0\] must be in \[0, 2\^56\), got -7"),
    (ALL, "streams", CASE.streams + 1, r"^streams\[2\] must be in"),
    (ALL, "seed", -1, "^seed must be a whole number"),
    (ALL, "seed", 2**64, "^seed must be a whole number"),
    (ALL, "seed", 1.0, "^seed must be a whole number"),
    (ALL, "seed", "1", "^seed must be a whole number"),
    (ALL, "purpose", 256, "^purpose must be a whole number from 0 to 255, got 256"),
    (ALL, "purpose", -1, "^purpose must be"),
    (ALL, "stream", -1, "^stream must be"),
    (ALL, "antithetic", 1, "^antithetic must be True or False, got 1"),
    (ALL, "antithetic", None, "^antithetic must be True or False, got None"),
    (ALL, "stream", "main", "^stream must be"),
    (ALL[:2], "n_classes", K - 1, r"^cells\[4, 1\] \(class\) must be in \[0, 4\), got 4"),
    (ALL[:2], "n_classes", 0, "^n_classes must be a whole number"),
    (ALL[:2], "n_classes", 2**31, "^n_classes must be a whole number"),
    (ALL[:1], "dtype", "float64", "^dtype must be one of float32, float16, bfloat16, got 'float64'"),
    (ALL[:1], "dtype", None, "^dtype must be one of"),
    (ALL[:1], "out", np.empty((B, SIZE)), "^out: unsupported element type"),
    (ALL[:1], "out", np.empty((B, SIZE), np.int32), "^out must be float32, float16 or bfloat16, got int32"),
    (ALL[:1], "out", np.empty((B, SIZE), np.uint16), "^out must be float32, float16 or bfloat16, got uint16"),
    (ALL[:1], "out", np.empty((B - 1, SIZE), np.float32), "^out must hold 45 rows of 12 elements"),
    (ALL[:1], "out", np.empty((B, SIZE + 1), np.float32), "^out must hold 45 rows of 12 elements"),
    (ALL[:1], "out", np.empty((SIZE, B), np.float32).T, "^out: array of shape .* is not contiguous"),
    (ALL[:1], "out", read_only(np.empty((B, SIZE), np.float32)), "^out is read-only"),
    (ALL[:1], "out", np.empty(B * SIZE * 4 + 1, np.uint8)[1:].view(np.float32).reshape(B, SIZE), "^out: .* start at"),
    (ALL[:1], "timestep", np.empty(B), "^timestep: unsupported element type"),
    (ALL[:1], "timestep", np.empty(B - 1, np.float32), r"^timestep must have shape \(B,\) = \(45\), got \(44,\)"),
    (ALL[:1], "timestep", read_only(np.empty(B, np.float32)), "^timestep is read-only"),
    (ALL[:1], "labels", np.empty(B, np.int32), "^labels must be int64, got int32"),
    (ALL[:1], "labels", np.empty((B, 1), np.int64), r"^labels must have shape \(B,\) = \(45\), got \(45, 1\)"),
    (ALL[:1], "labels", read_only(np.empty(B, np.int64)), "^labels is read-only"),
    (ERRORS, "network_output", CASE.output.astype(np.float64), "^network_output: unsupported"),
    (ERRORS, "network_output", CASE.output.astype(np.int32), "^network_output must be float32, float16 or bfloat16"),
    (ERRORS, "network_output", CASE.output[1:], "^network_output must hold 45 rows of 12 elements"),
    (ERRORS, "network_output", CASE.output[:, 1:], "^network_output must hold 45 rows of 12 elements"),
    (ERRORS, "target", CASE.images[:2], "^target must hold 3 rows of 12 elements"),
    (ERRORS, "target", CASE.images.astype(np.float16), "^target must be float32, got float16"),
    (ERRORS, "target", 0.0, "^target: expected an array"),
    (ERRORS, "loss", "l3", "^loss must be one of l2, l1, huber(, residual)?, got 'l3'"),
    (("denoising_error",), "loss", "residual", "^loss must be one of l2, l1, huber, got 'residual'"),
    (ERRORS, "loss", None, "^loss must be one of"),
    (ERRORS, "loss", ["l2"], "^loss must be one of"),
    (ERRORS, "delta", float("nan"), "^delta must be positive and finite, got nan"),
    (ERRORS, "delta", 0.0, "^delta must be positive"),
    (ERRORS, "delta", "1", "^delta must be positive"),
    (ERRORS[:1], "out", np.empty(B), "^out: unsupported"),
    (ERRORS[:1], "out", np.empty(B - 1, np.float32), r"^out must have shape \(B,\) = \(45\), got \(44,\)"),
    (ERRORS[:1], "out", np.empty((B, 1), np.float32), r"^out must have shape \(B,\)"),
    (ERRORS[:1], "out", read_only(np.empty(B, np.float32)), "^out is read-only"),
    (ERRORS[1:], "maps", np.zeros((N, SIZE), np.float32), r"^maps must have shape \(n, K, \.\.\.\)"),
    (ERRORS[1:], "maps", np.zeros((N, K, SIZE)), "^maps: unsupported"),
    (ERRORS[1:], "maps", np.zeros((N - 1, K, SIZE), np.float32), "^maps must hold 3 rows of 60 elements"),
    (ERRORS[1:], "maps", np.zeros((N, K, SIZE - 1), np.float32), "^maps must hold 3 rows of 60 elements"),
    (ERRORS[1:], "maps", read_only(np.zeros((N, K, SIZE), np.float32)), "^maps is read-only"),
    (ERRORS[1:], "maps", np.zeros((SIZE, K, N), np.float32).T, "^maps: array of shape .* is not contiguous"),
]  # fmt: skip
FLAT = [(op, name, value, message) for names, name, value, message in BAD for op in names]


@pytest.mark.parametrize(("op", "name", "value", "message"), FLAT, ids=[f"{op}-{n}-{m}" for op, n, _, m in FLAT])
def test_bad_input_is_named(op: str, name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(op, **{name: value})
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("op", ALL)
def test_the_arguments_that_the_bad_ones_differ_from_are_good(op: str) -> None:
    call(op, seed=np.uint64(2**64 - 1), purpose=np.int32(255), stream=0, antithetic=np.True_)


def test_nothing_is_written_before_all_is_checked() -> None:
    out, labels = np.full((B, SIZE), 7, np.float32), np.full(B, 7, np.int64)
    with pytest.raises(InputError, match=r"^timestep"):
        call("add_noise", out=out, labels=labels, timestep=np.empty(B, np.int32))
    with pytest.raises(InputError, match=r"^cells\[44"):
        call("add_noise", out=out, labels=labels, cells=cell(44, 0, 0, 9))
    assert (out == 7).all()
    assert (labels == 7).all()


class _Tensor(ctypes.Structure):
    """The header of DLManagedTensorVersioned and DLTensor of dlpack.h, up to the device."""

    _fields_ = (
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
    )  # fmt: skip


class Elsewhere:
    """An array that claims to be on another device; it must not reach a kernel."""

    def __init__(self, array: Any, device: tuple[int, int]) -> None:
        self._array, self._device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> Any:
        capsule = self._array.__dlpack__(max_version=(1, 0))
        pointer: Callable[..., int] = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)  # type: ignore[attr-defined]
        tensor = _Tensor.from_address(pointer(capsule, b"dltensor_versioned"))
        tensor.device_type, tensor.device_id = self._device
        return capsule


CUDA, OPENCL = (2, 0), (4, 0)
OUTPUTS = {"out": np.empty((B, SIZE), np.float32), "timestep": np.empty(B, np.float32), "labels": np.empty(B, np.int64)}


@pytest.mark.parametrize("name", ["cells", "rows", "streams", *OUTPUTS])
def test_arrays_on_different_devices_are_refused(name: str) -> None:
    array = {**arguments(), **OUTPUTS}[name]
    with pytest.raises(InputError, match=f"^{name} is on another device than images$"):
        call("add_noise", **{name: Elsewhere(array, CUDA)})


@pytest.mark.parametrize("name", ["streams", "draws"])
def test_noise_on_different_devices_is_refused(name: str) -> None:
    good: dict[str, Any] = {"streams": np.arange(3), "draws": np.arange(3, dtype=np.int32)}
    good[name] = Elsewhere(good[name], CUDA)
    with pytest.raises(InputError, match=f"^{name} is on another device than out$"):
        kernels.philox_normal(**good, size=4, seed=0, out=np.empty((3, 4), np.float32))


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(InputError, match=r"^images: array on DLPack device type 4: expected CPU or CUDA$"):
        call("add_noise", images=Elsewhere(CASE.images, OPENCL))


def test_a_view_of_cuda_memory_needs_an_output() -> None:
    view = kernels.view(Elsewhere(CASE.images, CUDA))
    assert view.is_cuda
    with pytest.raises(InputError, match=r"^out must be given for views of CUDA arrays$"):
        call("add_noise", images=view)


def test_views_describe_their_array() -> None:
    view = kernels.view(np.zeros((2, 3, 4), np.float16))
    assert (view.shape, view.dtype, view.is_cuda, view.read_only) == ((2, 3, 4), "float16", False, False)
    assert kernels.view(view) is view
    assert kernels.view(np.zeros(3, ml_dtypes.bfloat16)).dtype == "bfloat16"
    assert kernels.view(read_only(np.zeros((), np.int64))).read_only
    assert kernels.view(np.zeros((0, 6), np.float32)[:, ::2]).shape == (0, 3)
    with pytest.raises(InputError, match=r"^array: .* is not contiguous"):
        kernels.view(np.zeros((4, 6), np.float32)[:, ::2])


def test_views_keep_memory_alive_and_see_updates() -> None:
    images = CASE.images.copy()
    expected = call("add_noise", images=images + 1)
    alive = weakref.ref(images)
    view = kernels.view(images)
    images += 1
    del images
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(call("add_noise", images=view), expected)
    del view
    gc.collect()
    assert alive() is None


def test_views_serve_every_argument() -> None:
    views = {name: kernels.view(array) for name, array in arguments().items() if name != "seed"}
    np.testing.assert_array_equal(call("add_noise", **views), call("add_noise"))
    np.testing.assert_array_equal(call("denoising_error", **views), call("denoising_error"))
    out = np.empty((B, SIZE), np.float32)
    call("add_noise", **views, out=kernels.view(out))
    np.testing.assert_array_equal(out, call("add_noise"))
