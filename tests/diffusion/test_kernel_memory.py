"""Views of plain memory, and views exported as DLPack."""

import ctypes
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastdc import _C, InputError
from fastdc.diffusion import kernels
from helpers.oracle import DTYPES, make_case
from helpers.worlds import fails_with


class Owner:
    """An object whose end can be observed."""


def memory_of(array: Any, **more: Any) -> kernels.TensorView:
    return kernels.view_memory(array.ctypes.data, array.shape, array.dtype.name, **{"owner": array, **more})


@pytest.mark.parametrize("dtype", [*DTYPES, "int32", "int64"])
def test_a_view_of_memory_is_the_view_of_its_array(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(DTYPES.get(dtype, dtype))
    view = memory_of(array)
    assert (view.shape, view.dtype, view.is_cuda, view.read_only) == ((2, 3, 4), dtype, False, False)
    assert view.pointer == array.ctypes.data
    assert kernels.view(view) is view
    if dtype != "bfloat16":  # which NumPy's DLPack does not have
        seen = np.from_dlpack(view)
        assert seen.ctypes.data == array.ctypes.data
        np.testing.assert_array_equal(seen, array)
        assert seen.dtype == array.dtype


def test_the_kernels_accept_it() -> None:
    case = make_case(60, "shuffled", "bfloat16")
    out = np.zeros((45, 60), np.float32)
    arrays = [memory_of(array) for array in (case.images, case.cells, case.rows, case.streams)]
    kernels.add_noise(*arrays, seed=case.seed, purpose=case.purpose, out=memory_of(out))
    np.testing.assert_array_equal(out, case.add_noise())
    errors = np.zeros(45, np.float32)
    view = memory_of(case.output)
    kernels.denoising_error(view, *arrays, seed=case.seed, purpose=case.purpose, out=memory_of(errors))
    np.testing.assert_array_equal(errors, case.denoising_error())


def test_torch_accepts_it() -> None:
    torch = pytest.importorskip("torch")
    for dtype in DTYPES:
        array = np.arange(6, dtype=np.float32).reshape(2, 3).astype(DTYPES[dtype])
        tensor = torch.from_dlpack(memory_of(array))
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert tensor.data_ptr() == array.ctypes.data


def test_memory_lives_as_long_as_everything_made_from_it() -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    memory = (ctypes.c_float * 4)(1, 2, 3, 4)
    view = kernels.view_memory(ctypes.addressof(memory), (4,), "float32", owner=owner)
    array = np.from_dlpack(view)
    del owner, view
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(array, np.float32([1, 2, 3, 4]))  # type: ignore[arg-type]
    del array
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 9)])
def test_an_unused_capsule_leaks_nothing(version: tuple[int, int] | None) -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    memory = np.zeros(4, np.float32)
    view = memory_of(memory, owner=owner)
    name = "dltensor_versioned" if version and version[0] else "dltensor"
    assert f'"{name}"' in repr(view.__dlpack__(max_version=version))
    del owner, view
    gc.collect()
    assert alive() is None


def test_copies_and_other_devices_are_refused() -> None:
    view = memory_of(np.zeros(4, np.float32))
    assert view.__dlpack_device__() == (1, 0)
    assert np.from_dlpack(view).shape == (4,)
    for asked in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            view.__dlpack__(**asked)
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    read_only = kernels.view(array)
    assert not np.from_dlpack(read_only).flags.writeable
    with pytest.raises(InputError, match="read-only"):
        read_only.__dlpack__()


def test_the_device_of_memory_is_not_checked() -> None:
    view = kernels.view_memory(1 << 40, (2, 3), "float16", device=3)
    assert view.is_cuda
    assert view.__dlpack_device__() == (2, 3)
    case = make_case(60, "shuffled")
    with pytest.raises(InputError, match="another device"):
        kernels.add_noise(
            case.images, view_like(case.cells), case.rows, case.streams, seed=0, out=np.zeros((45, 60), "f4")
        )


def view_like(array: Any) -> kernels.TensorView:
    return kernels.view_memory(1 << 40, array.shape, array.dtype.name, device=0)


def test_empty_memory_needs_no_pointer() -> None:
    assert np.from_dlpack(kernels.view_memory(0, (0, 7), "int32")).shape == (0, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (4,), "float32"), "must have a pointer"),
        ((2, (4,), "float32"), "multiple of 4"),
        ((4, (4,), "int64"), "multiple of 8"),
        ((1, (4,), "float16"), "multiple of 2"),
        ((16, (4,), "float64"), "dtype must be"),
        ((16, (4,), "uint16"), "dtype must be"),
        ((16, (-1,), "float32"), "extent"),
        ((16, (2**62, 2**62), "float32"), "larger than memory"),
        ((16, (2**61, 2), "float32"), "larger than memory"),
        ((-16, (4,), "float32"), "pointer"),
        ((16.0, (4,), "float32"), "pointer"),
        ((16, (4, 1.5), "float32"), "extent"),
    ],
)
def test_bad_memory_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        kernels.view_memory(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", [-1, 2**15, 1.0, "cuda"])
def test_bad_devices_are_refused(device: Any) -> None:
    with pytest.raises(InputError, match="device"):
        kernels.view_memory(16, (4,), "float32", device=device)
    if device == -1:
        with pytest.raises(InputError, match="device_id"):
            _C.view_of_memory(16, (4,), "float32", 1, 1, None)
        with pytest.raises(InputError, match="device_type"):
            _C.view_of_memory(16, (4,), "float32", 10, 0, None)


# --- arguments that must not end the interpreter ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.dtype("f4"), None, 4, "float64", b"float32"])
def test_other_types_of_elements_are_refused_with_an_owner(dtype: Any) -> None:
    array = np.zeros(4, np.float32)
    with pytest.raises(InputError, match="dtype must be one of float32, float16, bfloat16, int32, int64, got "):
        kernels.view_memory(array.ctypes.data, (4,), dtype, owner=array)


@pytest.mark.parametrize("position", range(6))
def test_the_native_function_refuses_what_it_cannot_convert(position: int) -> None:
    """With an owner, this once ended the interpreter."""
    owner = Owner()
    gone = weakref.ref(owner)
    arguments: list[Any] = [np.zeros(4, np.float32).ctypes.data, [4], "float32", 1, 0, owner]
    if position < 5:
        arguments[position] = object()
        with pytest.raises(TypeError):
            _C.view_of_memory(*arguments)
    else:
        view = _C.view_of_memory(*arguments)
        del view
    del arguments, owner
    gc.collect()
    assert gone() is None


def over(whole: Any, dtype: Any, shape: tuple[int, ...], *, at: int = 0) -> Any:
    """An array that lies over the bytes of another one, from byte `at`."""
    return np.frombuffer(whole, dtype, int(np.prod(shape)), at).reshape(shape)


def refused(call: Callable[[], Any], output: str, other: str) -> None:
    fails_with(call, f"{output} overlaps {other}: expected memory of its own", kind=InputError)


@pytest.mark.parametrize("name", ["images", "cells", "rows", "streams", "network_output", "target"])
def test_an_output_over_an_input_is_refused_by_every_kernel(name: str) -> None:
    n, size, k, cells = 3, 8, 4, 12
    memory = bytearray(4096)  # the input in question lies at its beginning
    arrays: dict[str, Any] = {
        "images": np.zeros((n, size), np.float32),
        "cells": np.zeros((cells, 3), np.int32),
        "rows": np.ones((2, 8), np.float32),
        "streams": np.arange(n),
        "network_output": np.zeros((cells, size), np.float32),
        "target": np.zeros((n, size), np.float32),
    }
    shared = over(memory, arrays[name].dtype, arrays[name].shape)
    shared[...] = arrays[name]
    arrays[name] = shared
    last = shared.nbytes - 8  # outputs begin in the last bytes of the input
    step = (arrays["images"], arrays["cells"], arrays["rows"], arrays["streams"])
    output, target = arrays["network_output"], arrays["target"]
    errors, maps = over(memory, np.float32, (cells,), at=last), over(memory, np.float32, (n, k, size), at=last)
    refused(lambda: kernels.denoising_error(output, *step, seed=1, out=errors, target=target), "out", name)
    refused(lambda: kernels.error_map(output, *step, maps, seed=1, target=target), "maps", name)
    if name in ("network_output", "target"):
        return
    noised, beside = over(memory, np.float32, (cells, size), at=last), np.zeros((cells, size), np.float32)
    labels = over(memory, np.int64, (cells,), at=last)
    refused(lambda: kernels.add_noise(*step, seed=1, out=noised), "out", name)
    refused(lambda: kernels.add_noise(*step, seed=1, out=beside, timestep=errors), "timestep", name)
    refused(lambda: kernels.add_noise(*step, seed=1, out=beside, labels=labels), "labels", name)


def test_outputs_over_each_other_are_refused() -> None:
    case = make_case(60, "shuffled")
    step = (case.images, case.cells, case.rows, case.streams)
    memory = bytearray(45 * 60 * 4 + 8 * 45)
    out, labels, beside = over(memory, np.float32, (45, 60)), over(memory, np.int64, (45,)), np.empty((45, 60), "f4")
    late = over(memory, np.float32, (45,), at=45 * 60 * 4 - 4)
    refused(lambda: kernels.add_noise(*step, seed=1, out=out, timestep=late), "out", "timestep")
    refused(lambda: kernels.add_noise(*step, seed=1, out=out, labels=labels), "out", "labels")
    early = over(memory, np.float32, (45,), at=45 * 8 - 4)
    refused(lambda: kernels.add_noise(*step, seed=1, out=beside, labels=labels, timestep=early), "timestep", "labels")


def test_noise_over_its_own_names_is_refused_and_beside_them_is_not() -> None:
    memory = bytearray(200)
    streams, draws = over(memory, np.int64, (4,)), over(memory, np.int32, (4,))
    plain = np.zeros(4, np.int64)
    last = over(memory, np.float32, (4, 4), at=28)
    refused(lambda: kernels.philox_normal(streams, np.zeros(4, np.int32), 4, seed=1, out=last), "out", "streams")
    last = over(memory, np.float32, (4, 4), at=12)
    refused(lambda: kernels.philox_normal(plain, draws, 4, seed=1, out=last), "out", "draws")
    beside = over(memory, np.float32, (4, 4), at=16)  # it begins where the draws end
    kernels.philox_normal(plain, draws, 4, seed=1, out=beside)
    assert beside.any()
