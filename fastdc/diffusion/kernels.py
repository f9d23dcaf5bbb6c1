"""The four kernels as functions on arrays: noise, noising, denoising error and error map. The only importer of ``_C``.

Arrays are anything that speaks DLPack (NumPy, torch on CPU or CUDA, CuPy, JAX) or a :class:`TensorView` made once with
:func:`view` for a hot loop. All arrays of a call are on one device; CUDA work is enqueued on ``stream`` (a CUDA stream
handle; default: torch's current stream when torch tensors are given, else the legacy default stream) without a
synchronisation. Inputs that are not contiguous are copied; outputs must be contiguous.

Symbols: B cells, n images of D pixels, J draws, K classes.

* cells: int32 (B, 3), each (image, class, draw): evaluate that class for that image under that draw.
* rows: float32 (J, 8), a coefficient row per draw in the order of :data:`ROW_FIELDS`, see ``parameterization``.
* streams: int64 (n,) in [0, 2^56): names the noise of each image; equal streams see equal noise.
* seed: int in [0, 2^64). purpose: int in [0, 256), one of the ``PURPOSE_`` constants.

Antithetic draws 2i and 2i + 1 share the noise e of number i instead of having one each, and ge and c are negated in the
second's row, so that it sees -e (``plan``). A kernel told ``antithetic`` makes noise j >> 1 for draw j and no more.

The noise of (seed, stream, draw, purpose) is Philox4x32-10 (Salmon et al., SC'11) with Box-Muller, the same bits on
every CPU instruction set and on CUDA; ``csrc/philox.h`` states the layout, fixed within a major version.
"""

import importlib.util
from typing import Any, TypeAlias

import numpy as np

from fastdc.support import InputError

try:
    from fastdc import _C
    from fastdc._C import Ledger, TensorView
except ImportError:
    if importlib.util.find_spec("fastdc._C") is not None:  # it is there, and something else is wrong
        raise
    raise ImportError("fastdc._C, the compiled part, is missing: 'pip install -e .', or leave the sources") from None

_Step: TypeAlias = tuple[TensorView, TensorView, TensorView, TensorView, int]
Array: TypeAlias = Any
"""Anything that speaks DLPack, or a TensorView."""

ROW_FIELDS = ("gx", "ge", "a", "b", "c", "d", "weight", "timestep")
"""Columns of a coefficient row: u = gx x + ge e; r = a F + b x + c e + d z; error = weight * mean rho(r)."""

LOSSES = ("l2", "l1", "huber")
"""rho: square, absolute value, or Huber with threshold delta."""

MAP_LOSSES = (*LOSSES, "residual")
"""What maps may hold besides: the residual itself, which is the denoised image where a row makes it that."""

PURPOSE_DIFFUSION = 0
PURPOSE_SELECTION = 1
PURPOSE_ESTIMATION = 2

MAX_STREAM = 2**56 - 1
_DTYPES = ("float32", "float16", "bfloat16")
_CPU, _CUDA = 1, 2  # DLPack's device types


def view(array: Array) -> TensorView:
    """A reusable view of a contiguous array, for hot loops: what a call takes is looked at once.

    The view keeps the array alive and sees its current contents. NumPy arrays of ml_dtypes' bfloat16 are understood.

    Raises:
        InputError: Not a contiguous CPU or CUDA array of float32, float16, bfloat16, int32 or int64.
    """
    return _view(array, "array")


def view_memory(
    pointer: int, shape: tuple[int, ...], dtype: str, *, device: int | None = None, owner: object = None
) -> TensorView:
    """A view of plain memory, row-major; gives itself on as DLPack, without synchronising anything.

    Args:
        pointer: Address of the first element, a multiple of the element's size; it is not checked further.
        shape: Extents.
        dtype: "float32", "float16", "bfloat16", "int32" or "int64".
        device: CUDA device, or None for memory that the CPU can read.
        owner: Kept alive as long as the view, and whatever was made of it.

    Raises:
        InputError: An argument is off.
    """
    whole = [_whole("an extent of shape", extent, 2**63) for extent in shape]
    kind, index = (_CPU, 0) if device is None else (_CUDA, _whole("device", device, 2**15))
    return _C.view_of_memory(_whole("pointer", pointer, 2**64), whole, dtype, kind, index, owner)


def _view(array: Array, name: str, *, copy: bool = False) -> TensorView:
    if isinstance(array, TensorView):
        return array
    try:
        if copy and _is_torch(array):
            array = array.detach().contiguous()
        elif copy and isinstance(array, np.ndarray) and not (array.flags.c_contiguous and array.flags.aligned):
            array = array.copy()
        if isinstance(array, np.ndarray) and array.dtype.name == "bfloat16":
            return TensorView(array.view(np.uint16), "bfloat16")
        if _is_torch(array) and array.is_cuda:  # torch gives no DLPack of a device that is not its current one
            import torch

            with torch.cuda.device(array.device):
                return TensorView(array)
        return TensorView(array)
    except Exception as error:  # a producer of DLPack says "no" with whatever exception it likes
        raise InputError(f"{name}: {str(error).partition(chr(10))[0]}") from None


def _input(array: Array, name: str) -> TensorView:
    """A view of the input `name`, copied first if it is not contiguous or requires grad."""
    return array if isinstance(array, TensorView) else _view(array, name, copy=True)


def _step(images: Array, cells: Array, rows: Array, streams: Array, seed: int) -> _Step:
    x, table = _input(images, "images"), _input(cells, "cells")
    return x, table, _input(rows, "rows"), _input(streams, "streams"), _whole("seed", seed, 2**64)


def _is_torch(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "torch"


def _empty_like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    if _is_torch(array):
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=array.device)
    if isinstance(array, TensorView) and array.is_cuda:
        raise InputError("out must be given for views of CUDA arrays")
    if dtype == "bfloat16":
        import ml_dtypes

        return np.empty(shape, dtype=ml_dtypes.bfloat16)
    return np.empty(shape, dtype=dtype)


def _stream_of(stream: int | None, *arrays: Array) -> int:
    if stream is not None:
        return _whole("stream", stream, 2**64)
    for array in arrays:
        if _is_torch(array) and array.is_cuda:
            import torch

            return int(torch.cuda.current_stream(array.device).cuda_stream)
    return 0


def _whole(name: str, value: int | np.integer[Any], end: int, start: int = 0) -> int:
    if type(value) is int and start <= value < end:
        return value
    if isinstance(value, np.integer) and start <= value < end:
        return int(value)
    raise InputError(f"{name} must be a whole number in [{start}, {end}), got {value!r}")


def _flag(name: str, value: bool | np.bool_) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise InputError(f"{name} must be True or False, got {value!r}")


def _form(loss: str, delta: float, known: tuple[str, ...] = LOSSES) -> tuple[str, float]:
    if loss not in known:
        raise InputError(f"loss must be one of {', '.join(known)}, got {loss!r}")
    if not isinstance(delta, (float, int, np.floating)) or not delta > 0:
        raise InputError(f"delta must be a positive number, got {delta!r}")
    return loss, float(delta)


def philox_normal(
    streams: Array,
    draws: Array,
    size: int,
    *,
    seed: int,
    purpose: int = PURPOSE_DIFFUSION,
    out: Array | None = None,
    stream: int | None = None,
) -> Array:
    """Standard normals e of (stream, draw) pairs.

    Args:
        streams: int64 (m,), in [0, 2^56).
        draws: int32 (m,), not negative.
        size: Normals a row, at least 0, below 2^33.
        seed: Philox key, in [0, 2^64).
        purpose: Which use of noise, in [0, 256).
        out: float32 (m, size) to fill, else a new array.
        stream: CUDA stream handle, in [0, 2^64); ignored on the CPU.

    Returns:
        float32 (m, size), |e| < 6.67.

    Raises:
        InputError: A shape, type or range is off.
    """
    streams_view, draws_view = _input(streams, "streams"), _input(draws, "draws")
    size = _whole("size", size, 2**33)
    if out is None:
        out = _empty_like(streams, (*streams_view.shape[:1], size), "float32")
    out_view = _view(out, "out")
    if out_view.shape != (*streams_view.shape[:1], size):
        raise InputError(f"out must have shape (m, {size}), got {out_view.shape}")
    _C.philox_normal(
        streams_view,
        draws_view,
        _whole("seed", seed, 2**64),
        out_view,
        _whole("purpose", purpose, 256),
        _stream_of(stream, streams, out),
    )
    return out


def add_noise(
    images: Array,
    cells: Array,
    rows: Array,
    streams: Array,
    *,
    seed: int,
    out: Array | None = None,
    dtype: str = "float32",
    timestep: Array | None = None,
    labels: Array | None = None,
    n_classes: int = 2**31 - 1,
    purpose: int = PURPOSE_DIFFUSION,
    stream: int | None = None,
    antithetic: bool = False,
) -> Array:
    """The network's input of each cell, u = gx x + ge e: gather, noise and scale in one pass.

    Args:
        images: float32 (n, ...), x in the model's value range, D pixels each.
        cells: int32 (B, 3).
        rows: float32 (J, 8).
        streams: int64 (n,).
        out: (B, D) or (B, ...) of float32, float16 or bfloat16 to fill, else a new array of `dtype`.
        dtype: Element type of a new output.
        timestep: float32 (B,) to fill with the rows' timesteps, or None.
        labels: int64 (B,) to fill with the cells' classes, or None.
        n_classes: K, at least 1, to check the cells' classes against.
        seed: Philox key.
        purpose: Which use of noise.
        stream: CUDA stream handle.
        antithetic: Whether draws come in pairs of one noise, see the module's text.

    Returns:
        `out`, shape (B,) + the shape of one image when new.

    Raises:
        InputError: A shape, type, index or range is off. Indices in CUDA tables cannot be checked; see kernels.h.
    """
    step = _step(images, cells, rows, streams, seed)
    if dtype not in _DTYPES:
        raise InputError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if out is None:
        out = _empty_like(images, (*step[1].shape[:1], *step[0].shape[1:]), dtype)
    _C.add_noise(
        *step,
        _view(out, "out"),
        None if timestep is None else _view(timestep, "timestep"),
        None if labels is None else _view(labels, "labels"),
        _whole("n_classes", n_classes, 2**31, 1),
        _whole("purpose", purpose, 256),
        _stream_of(stream, images, out),
        _flag("antithetic", antithetic),
    )
    return out


def denoising_error(
    network_output: Array,
    images: Array,
    cells: Array,
    rows: Array,
    streams: Array,
    *,
    seed: int,
    out: Array | None = None,
    target: Array | None = None,
    loss: str = "l2",
    delta: float = 1.0,
    n_classes: int = 2**31 - 1,
    purpose: int = PURPOSE_DIFFUSION,
    stream: int | None = None,
    antithetic: bool = False,
) -> Array:
    """The error of each cell, weight * mean over pixels of rho(a F + b x + c e + d z); makes the noise e again.

    Args:
        network_output: F, (B, D) or (B, ...) of float32, float16 or bfloat16.
        images: float32 (n, ...), x.
        cells: int32 (B, 3).
        rows: float32 (J, 8).
        streams: int64 (n,).
        out: float32 (B,) to fill, else a new array.
        target: float32 (n, ...), z, or None for d z = 0.
        loss: One of :data:`LOSSES`.
        delta: Threshold of the Huber loss, positive.
        n_classes: K, at least 1, to check the cells' classes against.
        seed: Philox key.
        purpose: Which use of noise.
        stream: CUDA stream handle.
        antithetic: Whether draws come in pairs of one noise, see the module's text.

    Returns:
        float32 (B,). Summed in float32 lanes and float64 in a fixed order: the same bits for any batch, thread count
        and CPU instruction set.

    Raises:
        InputError: A shape, type, index or range is off.
    """
    step = _step(images, cells, rows, streams, seed)
    if out is None:
        out = _empty_like(images, step[1].shape[:1], "float32")
    loss, delta = _form(loss, delta)
    _C.denoising_error(
        _input(network_output, "network_output"),
        *step,
        _view(out, "out"),
        None if target is None else _input(target, "target"),
        loss,
        delta,
        _whole("n_classes", n_classes, 2**31, 1),
        _whole("purpose", purpose, 256),
        _stream_of(stream, images, out),
        _flag("antithetic", antithetic),
    )
    return out


def error_map(
    network_output: Array,
    images: Array,
    cells: Array,
    rows: Array,
    streams: Array,
    maps: Array,
    *,
    seed: int,
    target: Array | None = None,
    loss: str = "l2",
    delta: float = 1.0,
    purpose: int = PURPOSE_DIFFUSION,
    stream: int | None = None,
    antithetic: bool = False,
) -> Array:
    """Adds weight * rho(residual), pixel by pixel, to the map of each cell's (image, class): the error over draws.

    Args:
        network_output: F, (B, D) or (B, ...) of float32, float16 or bfloat16.
        images: float32 (n, ...), x.
        cells: int32 (B, 3), classes in [0, K).
        rows: float32 (J, 8).
        streams: int64 (n,).
        maps: float32 (n, K, ...), added to in the order of the cells.
        target: float32 (n, ...), z, or None.
        loss: One of :data:`MAP_LOSSES`.
        delta: Threshold of the Huber loss.
        seed: Philox key.
        purpose: Which use of noise.
        stream: CUDA stream handle.
        antithetic: Whether draws come in pairs of one noise, see the module's text.

    Returns:
        `maps`. Its mean over pixels, summed over all cells, is the sum of :func:`denoising_error` up to rounding.

    Raises:
        InputError: A shape, type, index or range is off.
    """
    loss, delta = _form(loss, delta, MAP_LOSSES)
    _C.error_map(
        _input(network_output, "network_output"),
        *_step(images, cells, rows, streams, seed),
        _view(maps, "maps"),
        None if target is None else _input(target, "target"),
        loss,
        delta,
        _whole("purpose", purpose, 256),
        _stream_of(stream, images, maps),
        _flag("antithetic", antithetic),
    )
    return maps


def philox_words(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block of Philox4x32-10: four 32-bit words from four counter words and two key words."""
    return _C.philox_words(*counter, *key)


def build_config() -> dict[str, Any]:
    """How the native module was built: version, compiler, instruction sets, CUDA compiler and architectures."""
    return {**_C.build_config(), "cpu_isa": _C.cpu_isa(), "cuda_devices": _C.cuda_device_count()}


def num_threads() -> int:
    """The number of CPU threads the kernels use; by default the CPUs this process may run on."""
    return _C.num_threads()


def set_num_threads(threads: int) -> None:
    """Sets the number of CPU threads of the kernels, at most 1024; 0 returns to the default. Changes no number."""
    _C.set_num_threads(_whole("threads", threads, 1025))


def cpu_isa() -> str:
    """The CPU instruction set in use, ``"avx2"`` or ``"baseline"``. The environment variable FASTDC_ISA forces one."""
    return _C.cpu_isa()


def set_cpu_isa(name: str) -> None:
    """Forces a CPU instruction set that this machine has. All give the same bits; for tests and measurements."""
    _C.set_cpu_isa(name)


def cuda_device_count() -> int:
    """CUDA devices that the native module can use; 0 without a driver or when built without CUDA."""
    return _C.cuda_device_count()


__all__ = [
    "LOSSES",
    "MAP_LOSSES",
    "MAX_STREAM",
    "PURPOSE_DIFFUSION",
    "PURPOSE_ESTIMATION",
    "PURPOSE_SELECTION",
    "ROW_FIELDS",
    "Ledger",
    "TensorView",
    "add_noise",
    "build_config",
    "cpu_isa",
    "cuda_device_count",
    "denoising_error",
    "error_map",
    "num_threads",
    "philox_normal",
    "philox_words",
    "set_cpu_isa",
    "set_num_threads",
    "view",
    "view_memory",
]
