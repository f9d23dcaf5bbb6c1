"""csrc/kernels_cuda.cu run on the CPU, thread by thread, against the CPU kernels.

The file is compiled as C++ against tests/helpers/cuda_emulation/cuda_runtime.h, whose header describes the limits of
this emulation. It does not replace tests/diffusion/test_cuda.py on a device: it uses neither nvcc nor a GPU.
"""

import ctypes
import dataclasses
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc.diffusion import kernels
from helpers.cuda_cases import (
    DELTA,
    DTYPES,
    LAYOUTS,
    N_CLASSES,
    SEED,
    SIZES,
    Case,
    dtype_for,
    error_tolerance,
    make_case,
)
from helpers.paths import ROOT

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-ignored-attributes"]

pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs a C++ compiler and ucontext (Linux)"
)

GUARD = 64  # elements before and after an output that must stay untouched
ORDERS = {"ascending": 0, "descending": 1, "interleaved": 2}  # in which the emulated threads of a block take turns


class _Step(ctypes.Structure):
    """fastdc::Step of csrc/kernels.h."""

    _fields_ = (
        ("images", ctypes.c_void_p),
        ("n_images", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("cells", ctypes.c_void_p),
        ("n_cells", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("n_draws", ctypes.c_int64),
        ("n_classes", ctypes.c_int64),
        ("streams", ctypes.c_void_p),
        ("seed", ctypes.c_uint64),
        ("purpose", ctypes.c_uint32),
        ("noise_shift", ctypes.c_uint32),
    )


class Output:
    """An array with guard bands that must stay untouched, its data aligned to 64 bytes plus `shift` elements."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], shift: int = 0) -> None:
        count = int(np.prod(shape))
        self._bytes = np.full((count + 2 * GUARD) * dtype.itemsize + 64, 0xA5, np.uint8)
        self._begin = -self._bytes.ctypes.data % 64 + (GUARD + shift) * dtype.itemsize
        self._end = self._begin + count * dtype.itemsize
        self.array: npt.NDArray[Any] = self._bytes[self._begin : self._end].view(dtype).reshape(shape)

    def check_guards(self) -> None:
        assert (self._bytes[: self._begin] == 0xA5).all()
        assert (self._bytes[self._end :] == 0xA5).all()


def shifted(array: npt.NDArray[Any], shift: int) -> npt.NDArray[Any]:
    copy = Output(array.shape, array.dtype, shift)
    copy.array[...] = array
    return copy.array


def at_the_edge(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy whose last byte is followed by memory that cannot be read: reading past the end kills the process."""
    pages = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(memory.ctypes.data + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = memory[pages - array.nbytes : pages].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Emulated:
    """The launchers, on NumPy arrays. `shift` misaligns F and u by that many elements.

    `antithetic` is for all calls that follow.
    """

    antithetic = False

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in ("philox_normal", "add_noise", "denoising_error", "error_map"):
            getattr(library, name).restype = ctypes.c_char_p

    def _call(self, name: str, *arguments: object) -> None:
        message = getattr(self._library, name)(*arguments)
        if message is not None:
            raise RuntimeError(message.decode())
        assert self._library.current_device() == 0  # as before the call, though the arrays are on device 1

    def set_order(self, order: str) -> None:
        self._library.set_order(ORDERS[order])

    @staticmethod
    def _pointer(array: npt.NDArray[Any] | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if array is None else array.ctypes.data)

    def _step(self, case: Case, n_classes: int) -> _Step:
        return _Step(
            self._pointer(case.images), *case.images.shape, self._pointer(case.cells), len(case.cells),
            self._pointer(case.rows), len(case.rows), n_classes, self._pointer(case.streams), SEED, 1,
            int(self.antithetic),
        )  # fmt: skip

    def philox_normal(
        self, streams: npt.NDArray[np.int64], draws: npt.NDArray[np.int32], size: int, shift: int = 0
    ) -> npt.NDArray[Any]:
        out = Output((len(streams), size), np.dtype(np.float32), shift)
        self._call(
            "philox_normal", self._pointer(streams), self._pointer(draws), ctypes.c_int64(len(streams)),
            ctypes.c_int64(size), ctypes.c_uint64(SEED), ctypes.c_uint32(1), self._pointer(out.array),
        )  # fmt: skip
        out.check_guards()
        return out.array

    def add_noise(
        self, case: Case, dtype: str, *, shift: int = 0, n_classes: int = N_CLASSES
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        u = Output((len(case.cells), case.images.shape[1]), DTYPES[dtype], shift)
        timestep = Output((len(case.cells),), np.dtype(np.float32))
        labels = Output((len(case.cells),), np.dtype(np.int64))
        outputs = [u, timestep, labels]
        self._call(
            "add_noise", ctypes.byref(self._step(case, n_classes)), list(DTYPES).index(dtype),
            *(self._pointer(output.array) for output in outputs),
        )  # fmt: skip
        for output in outputs:
            output.check_guards()
        return u.array, timestep.array, labels.array

    def denoising_error(
        self, case: Case, dtype: str, loss: str, *, target: bool = False, shift: int = 0, n_classes: int = N_CLASSES
    ) -> npt.NDArray[Any]:
        errors = Output((len(case.cells),), np.dtype(np.float32))
        self._call(
            "denoising_error", ctypes.byref(self._step(case, n_classes)), kernels.LOSSES.index(loss),
            ctypes.c_float(DELTA), list(DTYPES).index(dtype),
            self._pointer(shifted(case.output, shift) if shift else case.output),
            self._pointer(case.target if target else None), self._pointer(errors.array),
        )  # fmt: skip
        errors.check_guards()
        return errors.array

    def error_map(self, case: Case, dtype: str, loss: str, *, target: bool, shift: int = 0) -> npt.NDArray[Any]:
        maps = Output((len(case.images), N_CLASSES, case.images.shape[1]), np.dtype(np.float32), shift)
        maps.array[...] = 0.25
        self._call(
            "error_map", ctypes.byref(self._step(case, N_CLASSES)), kernels.MAP_LOSSES.index(loss),
            ctypes.c_float(DELTA), list(DTYPES).index(dtype), self._pointer(case.output), self._pointer(case.target if
            target else None), self._pointer(maps.array),
        )  # fmt: skip
        maps.check_guards()
        return maps.array


def compile_library(sources: Path, folder: Path) -> ctypes.CDLL:
    """Compiles kernels_cuda.cu of `sources` into a shared library in `folder`."""
    emulation = ROOT / "tests" / "helpers" / "cuda_emulation"
    library = folder / "emulation.so"
    include = ["-I", str(emulation), "-I", str(sources), "-I", str(ROOT / "csrc")]
    files = ["-x", "c++", str(sources / "kernels_cuda.cu"), str(emulation / "emulation.cpp")]
    subprocess.run([str(COMPILER), *FLAGS, *WARNINGS, *include, "-o", str(library), *files], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module", params=["grid", "strided grid"])
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The kernels unchanged, and with grids of at most 2 x 2 blocks, so that every loop over the grid repeats."""
    folder = tmp_path_factory.mktemp("emulation")
    sources = ROOT / "csrc"
    if request.param == "strided grid":
        for name in ("kernels_cuda.cu", "quads.cuh"):
            shutil.copy(sources / name, folder)
        header = folder / "quads.cuh"
        text = header.read_text()
        for limit in ("kMaxGridX = 0x7FFFFFFF", "kMaxGridY = 0xFFFF"):
            assert text.count(limit) == 1
            text = text.replace(limit, limit.split(" = ")[0] + " = 2")
        header.write_text(text)
        sources = folder
    return Emulated(compile_library(sources, folder))


def cpu_noise(
    case: Case, dtype: str, *, antithetic: bool = False
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    timestep, labels = np.empty(len(case.cells), np.float32), np.empty(len(case.cells), np.int64)
    u = kernels.add_noise(
        case.images, case.cells, case.rows, case.streams, seed=SEED, purpose=1, dtype=dtype,
        timestep=timestep, labels=labels,
        out=np.empty((len(case.cells), case.images.shape[1]), DTYPES[dtype]), antithetic=antithetic,
    )  # fmt: skip
    return u, timestep, labels


def cpu_error(case: Case, loss: str, *, target: bool, antithetic: bool = False) -> npt.NDArray[np.float32]:
    errors: npt.NDArray[np.float32] = kernels.denoising_error(
        case.output, case.images, case.cells, case.rows, case.streams, seed=SEED, purpose=1, loss=loss, delta=DELTA,
        target=case.target if target else None, antithetic=antithetic,
    )  # fmt: skip
    return errors


def assert_same_bits(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_philox_normal_has_the_cpu_bits(emulated: Emulated, size: int) -> None:
    streams = np.array([0, 1, 2**40 + 17, kernels.MAX_STREAM, 5], np.int64)
    draws = np.array([0, 2**31 - 1, 3, 4, 5], np.int32)
    expected = kernels.philox_normal(streams, draws, size, seed=SEED, purpose=1)
    assert_same_bits(emulated.philox_normal(streams, draws, size), expected)
    assert_same_bits(emulated.philox_normal(streams, draws, size, shift=1), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [3, 64, 783, 3072])
def test_add_noise_has_the_cpu_bits(emulated: Emulated, size: int, layout: str) -> None:
    dtype = dtype_for(size, layout)
    case = make_case(size, layout, dtype, limit=30)
    for actual, expected in zip(emulated.add_noise(case, dtype), cpu_noise(case, dtype), strict=True):
        assert_same_bits(actual, expected)
    assert_same_bits(emulated.add_noise(case, dtype, shift=1)[0], cpu_noise(case, dtype)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_denoising_error_is_the_cpu_error_up_to_the_order_of_the_sum(
    emulated: Emulated, size: int, layout: str
) -> None:
    dtype = dtype_for(size, layout)
    case = make_case(size, layout, dtype, limit=20)
    loss = kernels.LOSSES[(size + LAYOUTS.index(layout)) % 3]
    actual = emulated.denoising_error(case, dtype, loss, target=layout == "mixed")
    expected = cpu_error(case, loss, target=layout == "mixed")
    np.testing.assert_allclose(actual, expected, rtol=error_tolerance(size), atol=0)
    assert_same_bits(emulated.denoising_error(case, dtype, loss, target=layout == "mixed", shift=1), actual)


@pytest.mark.parametrize("loss", kernels.LOSSES)
@pytest.mark.parametrize("target", [False, True])
def test_every_loss_with_and_without_target(emulated: Emulated, loss: str, target: bool) -> None:
    case = make_case(783, "mixed", limit=40)
    expected = cpu_error(case, loss, target=target)
    actual = emulated.denoising_error(case, "float32", loss, target=target)
    np.testing.assert_allclose(actual, expected, rtol=error_tolerance(783), atol=0)


@pytest.mark.parametrize("size", [65, 3072])
def test_an_error_depends_on_nothing_but_its_cell(emulated: Emulated, size: int) -> None:
    case = make_case(size, "mixed")
    together = emulated.denoising_error(case, "float32", "l2")
    for b in range(0, len(case.cells), 7):
        alone = Case(case.images, case.cells[b : b + 1], case.rows, case.streams, case.output[b : b + 1], case.target)
        assert_same_bits(emulated.denoising_error(alone, "float32", "l2"), together[b : b + 1])


@pytest.mark.parametrize("size", [64, 3072])
def test_barriers_make_the_order_of_threads_irrelevant(emulated: Emulated, size: int) -> None:
    case = make_case(size, "mixed")
    results = []
    for order in ORDERS:
        emulated.set_order(order)
        results.append(emulated.denoising_error(case, "float32", "l1").tobytes())
    emulated.set_order("ascending")
    assert len(set(results)) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [3, 64, 783])
def test_error_map_has_the_cpu_bits(emulated: Emulated, size: int, layout: str) -> None:
    dtype = dtype_for(size, layout)
    case = make_case(size, layout, dtype)
    loss = kernels.MAP_LOSSES[LAYOUTS.index(layout) % 4]
    expected = np.full((len(case.images), N_CLASSES, size), 0.25, np.float32)
    for target in (False, True):
        expected[...] = 0.25
        kernels.error_map(
            case.output, case.images, case.cells, case.rows, case.streams, expected, seed=SEED, purpose=1, loss=loss,
            delta=DELTA, target=case.target if target else None,
        )  # fmt: skip
        assert_same_bits(emulated.error_map(case, dtype, loss, target=target), expected)
    assert_same_bits(emulated.error_map(case, dtype, loss, target=True, shift=1), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [3, 64, 783])
def test_antithetic_pairs_share_the_noise_of_the_cpu(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, size: int, layout: str
) -> None:
    monkeypatch.setattr(emulated, "antithetic", True)
    dtype = dtype_for(size, layout)
    case = make_case(size, layout, dtype, limit=30)
    for actual, expected in zip(emulated.add_noise(case, dtype), cpu_noise(case, dtype, antithetic=True), strict=True):
        assert_same_bits(actual, expected)
    errors = cpu_error(case, "l1", target=True, antithetic=True)
    actual = emulated.denoising_error(case, dtype, "l1", target=True)
    np.testing.assert_allclose(actual, errors, rtol=error_tolerance(size), atol=0)
    maps = np.full((len(case.images), N_CLASSES, size), 0.25, np.float32)
    kernels.error_map(
        case.output, case.images, case.cells, case.rows, case.streams, maps, seed=SEED, purpose=1, loss="l2",
        antithetic=True,
    )  # fmt: skip
    assert_same_bits(emulated.error_map(case, dtype, "l2", target=False), maps)


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("value", [-1, 100])
def test_cells_outside_the_tables_become_nan_and_touch_nothing_else(
    emulated: Emulated, column: int, value: int
) -> None:
    good = make_case(64, "runs", limit=20)
    cells = good.cells.copy()
    bad = [3, 4, 9]
    cells[bad, column] = value
    case = Case(good.images, cells, good.rows, good.streams, good.output, good.target)
    keep = np.setdiff1d(np.arange(20), bad)

    u, timestep, labels = emulated.add_noise(case, "float16")
    expected_u, expected_timestep, expected_labels = cpu_noise(good, "float16")
    assert np.isnan(u[bad]).all()
    assert np.isnan(timestep[bad]).all()
    assert (labels[bad] == 0).all()
    assert_same_bits(u[keep], expected_u[keep])
    assert_same_bits(timestep[keep], expected_timestep[keep])
    assert_same_bits(labels[keep], expected_labels[keep])

    errors = emulated.denoising_error(case, "float32", "l2")
    assert np.isnan(errors[bad]).all()
    assert_same_bits(errors[keep], emulated.denoising_error(good, "float32", "l2")[keep])

    only_good = Case(
        good.images, np.ascontiguousarray(good.cells[keep]), good.rows, good.streams,
        np.ascontiguousarray(good.output[keep]), good.target,
    )  # fmt: skip
    maps = emulated.error_map(case, "float32", "l2", target=False)
    assert_same_bits(maps, emulated.error_map(only_good, "float32", "l2", target=False))


@pytest.mark.parametrize("size", [3, 64, 783])
def test_nothing_is_read_past_the_end_of_an_input(emulated: Emulated, size: int) -> None:
    case = make_case(size, "mixed", limit=21)
    edge = Case(*(at_the_edge(getattr(case, field.name)) for field in dataclasses.fields(Case)))
    assert_same_bits(emulated.add_noise(edge, "float32")[0], emulated.add_noise(case, "float32")[0])
    for target in (False, True):
        expected = emulated.denoising_error(case, "float32", "l2", target=target)
        assert_same_bits(emulated.denoising_error(edge, "float32", "l2", target=target), expected)
        expected = emulated.error_map(case, "float32", "l2", target=target)
        assert_same_bits(emulated.error_map(edge, "float32", "l2", target=target), expected)


def test_empty_tables_launch_nothing(emulated: Emulated) -> None:
    case = make_case(64, "runs", limit=0)
    assert emulated.philox_normal(np.empty(0, np.int64), np.empty(0, np.int32), 8).shape == (0, 8)
    assert emulated.philox_normal(case.streams, np.zeros(3, np.int32), 0).shape == (3, 0)
    assert emulated.add_noise(case, "float32")[0].shape == (0, 64)
    assert emulated.denoising_error(case, "float32", "l2").shape == (0,)
    assert (emulated.error_map(case, "float32", "l2", target=False) == 0.25).all()
