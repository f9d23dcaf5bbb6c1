"""The four kernels as functions on arrays: noise, noised images, denoising errors and error maps.

Arrays are any objects that speak DLPack (NumPy, torch on CPU or CUDA, CuPy, JAX) or a :class:`TensorView` that
:func:`view` made once for a hot loop. All arrays of a call are on one device. CUDA work is enqueued on ``stream``
without synchronisation; ``stream`` is a CUDA stream handle and defaults to torch's current stream for torch tensors,
else to the legacy default stream. Inputs that are not contiguous are copied; outputs must be contiguous, and must not
overlap an input or each other. No input may change while a call runs: indices are checked once, at its beginning.

Symbols: B cells, n images of D pixels, J draws, K classes.

* cells: int32 (B, 3), each (image, class, draw): evaluate that class for that image under that draw.
* rows: float32 (J, 8), a coefficient row per draw with the columns of :data:`ROW_FIELDS`, see ``parameterization``.
* streams: int64 (n,) in [0, 2^56), names the noise of each image. Equal streams see equal noise.
* seed: int in [0, 2^64). purpose: int in [0, 256), one of the ``PURPOSE_`` constants.

Antithetic draws 2i and 2i + 1 share noise number i. The row of the second has ge and c negated, so that it sees -e
(``plan``). With ``antithetic``, the kernels make noise j >> 1 for draw j; they do nothing else.

The noise of (seed, stream, draw, purpose) is Philox4x32-10 (Salmon et al., SC'11) with Box-Muller, the same bits on
every CPU instruction set and on CUDA. ``csrc/philox.h`` states the layout, which is fixed within a major version.
"""

from typing import Any, TypeAlias

from fastdc.diffusion import native
from fastdc.diffusion.native import Ledger, TensorView
from fastdc.diffusion.views import Array, empty_like, input_view, stream_of, view, view_as, view_memory
from fastdc.support import InputError, checks

_Step: TypeAlias = tuple[TensorView, TensorView, TensorView, TensorView, int]

ROW_FIELDS = ("gx", "ge", "a", "b", "c", "d", "weight", "timestep")
"""Columns of a coefficient row: u = gx x + ge e; r = a F + b x + c e + d z; error = weight * mean rho(r)."""

LOSSES = ("l2", "l1", "huber")
"""Names of rho: square, absolute value, or Huber with threshold delta."""

MAP_LOSSES = (*LOSSES, "residual")
"""Losses of maps. "residual" is the residual itself, which some rows make the denoised image."""

PURPOSE_DIFFUSION = 0
PURPOSE_SELECTION = 1
PURPOSE_ESTIMATION = 2
PURPOSE_SAMPLING = 3

MAX_STREAM = 2**56 - 1
_DTYPES = ("float32", "float16", "bfloat16")


def _step(images: Array, cells: Array, rows: Array, streams: Array, seed: int) -> _Step:
    x, table = input_view(images, "images"), input_view(cells, "cells")
    return x, table, input_view(rows, "rows"), input_view(streams, "streams"), checks.seed(seed)


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
    """Makes standard normals e of (stream, draw) pairs.

    Args:
        streams: int64 (m,), in [0, 2^56).
        draws: int32 (m,), not negative.
        size: Number of normals per row, at least 0, below 2^33.
        seed: Philox key, in [0, 2^64).
        purpose: Use of the noise, in [0, 256).
        out: float32 (m, size) to fill; default: a new array.
        stream: CUDA stream handle, in [0, 2^64); ignored on the CPU.

    Returns:
        float32 (m, size), ``|e| < 6.67``.

    Raises:
        InputError: A shape, type or range is wrong.

    Example:
        >>> fastdc.diffusion.kernels.philox_normal(np.array([7]), np.array([0], np.int32), 3, seed=1).shape
        (1, 3)
    """
    streams_view, draws_view = input_view(streams, "streams"), input_view(draws, "draws")
    size = checks.whole("size", size, low=0, high=2**33 - 1)
    if out is None:
        out = empty_like(streams, (*streams_view.shape[:1], size), "float32")
    out_view = view_as(out, "out")
    if out_view.shape != (*streams_view.shape[:1], size):
        raise InputError(f"out must have shape (m, {size}), got {out_view.shape}")
    purpose = checks.whole("purpose", purpose, low=0, high=255)
    handle = stream_of(stream, streams, out)
    native.philox_normal(streams_view, draws_view, checks.seed(seed), out_view, purpose, handle)
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
    """Makes the network's input of each cell, u = gx x + ge e: gathers, noises and scales in one pass.

    Args:
        images: float32 (n, ...), x in the model's value range, D pixels each.
        cells: int32 (B, 3).
        rows: float32 (J, 8).
        streams: int64 (n,).
        seed: Philox key.
        out: (B, D) or (B, ...) of float32, float16 or bfloat16 to fill; default: a new array of `dtype`.
        dtype: Element type of a new output.
        timestep: float32 (B,) to fill with the rows' timesteps, or None.
        labels: int64 (B,) to fill with the cells' classes, or None.
        n_classes: K, at least 1: the cells' classes must be below it.
        purpose: Use of the noise.
        stream: CUDA stream handle.
        antithetic: Whether draws come in pairs that share a noise (see the module's docstring).

    Returns:
        `out`; a new array has shape (B,) + the shape of one image.

    Raises:
        InputError: A shape, type, index or range is wrong. Indices in CUDA tables cannot be checked, see kernels.h.

    Example:
        >>> x, cells, rows = np.ones((1, 4), np.float32), np.zeros((1, 3), np.int32), np.zeros((1, 8), np.float32)
        >>> fastdc.diffusion.kernels.add_noise(x, cells, rows, np.array([7]), seed=1)
        array([[0., 0., 0., 0.]], dtype=float32)
    """
    step = _step(images, cells, rows, streams, seed)
    checks.one_of("dtype", dtype, _DTYPES)
    if out is None:
        out = empty_like(images, (*step[1].shape[:1], *step[0].shape[1:]), dtype)
    native.add_noise(
        *step,
        view_as(out, "out"),
        None if timestep is None else view_as(timestep, "timestep"),
        None if labels is None else view_as(labels, "labels"),
        checks.whole("n_classes", n_classes, high=2**31 - 1),
        checks.whole("purpose", purpose, low=0, high=255),
        stream_of(stream, images, out),
        checks.flag("antithetic", antithetic),
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
    """Computes the error of each cell, weight * mean over pixels of rho(a F + b x + c e + d z), from new noise e.

    Args:
        network_output: F, (B, D) or (B, ...) of float32, float16 or bfloat16.
        images: float32 (n, ...), x.
        cells: int32 (B, 3).
        rows: float32 (J, 8).
        streams: int64 (n,).
        seed: Philox key.
        out: float32 (B,) to fill; default: a new array.
        target: float32 (n, ...), z, or None for d z = 0.
        loss: One of :data:`LOSSES`.
        delta: Threshold of the Huber loss, positive.
        n_classes: K, at least 1: the cells' classes must be below it.
        purpose: Use of the noise.
        stream: CUDA stream handle.
        antithetic: Whether draws come in pairs that share a noise (see the module's docstring).

    Returns:
        float32 (B,), summed in a fixed order: the same bits for any batch, thread count and CPU instruction set.

    Raises:
        InputError: A shape, type, index or range is wrong.
    """
    step = _step(images, cells, rows, streams, seed)
    out = empty_like(images, step[1].shape[:1], "float32") if out is None else out
    native.denoising_error(
        input_view(network_output, "network_output"),
        *step,
        view_as(out, "out"),
        None if target is None else input_view(target, "target"),
        checks.one_of("loss", loss, LOSSES),
        checks.positive("delta", delta),
        checks.whole("n_classes", n_classes, high=2**31 - 1),
        checks.whole("purpose", purpose, low=0, high=255),
        stream_of(stream, images, out),
        checks.flag("antithetic", antithetic),
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
    """Adds weight * rho(residual) of each cell, pixel by pixel, to the map of its (image, class).

    Args:
        network_output: F, (B, D) or (B, ...) of float32, float16 or bfloat16.
        images: float32 (n, ...), x.
        cells: int32 (B, 3), classes in [0, K).
        rows: float32 (J, 8).
        streams: int64 (n,).
        maps: float32 (n, K, ...), added to in the order of the cells.
        seed: Philox key.
        target: float32 (n, ...), z, or None for d z = 0.
        loss: One of :data:`MAP_LOSSES`.
        delta: Threshold of the Huber loss, positive.
        purpose: Use of the noise.
        stream: CUDA stream handle.
        antithetic: Whether draws come in pairs that share a noise (see the module's docstring).

    Returns:
        `maps`. Its mean over pixels, summed over all cells, is the sum of :func:`denoising_error` up to rounding.

    Raises:
        InputError: A shape, type, index or range is wrong.

    Example:
        >>> x, cells, rows = np.ones((1, 4), np.float32), np.zeros((1, 3), np.int32), np.zeros((1, 8), np.float32)
        >>> maps = np.zeros((1, 2, 4), np.float32)
        >>> fastdc.diffusion.kernels.error_map(x, x, cells, rows, np.array([7]), maps, seed=1) is maps
        True
    """
    native.error_map(
        input_view(network_output, "network_output"),
        *_step(images, cells, rows, streams, seed),
        view_as(maps, "maps"),
        None if target is None else input_view(target, "target"),
        checks.one_of("loss", loss, MAP_LOSSES),
        checks.positive("delta", delta),
        checks.whole("purpose", purpose, low=0, high=255),
        stream_of(stream, images, maps),
        checks.flag("antithetic", antithetic),
    )
    return maps


def philox_words(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Computes one block of Philox4x32-10: four 32-bit words from four counter words and two key words.

    Example:
        >>> [f"{word:08x}" for word in fastdc.diffusion.kernels.philox_words((0, 0, 0, 0), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    return native.philox_words(*counter, *key)


def build_config() -> dict[str, Any]:
    """Describes how the native module was built: version, compiler, instruction sets, CUDA compiler, architectures.

    Example:
        >>> fastdc.diffusion.kernels.build_config()["version"] == fastdc.__version__
        True
    """
    return {**native.build_config(), "cpu_isa": native.cpu_isa(), "cuda_devices": native.cuda_device_count()}


def num_threads() -> int:
    """Returns the number of CPU threads that the kernels use; by default the CPUs that this process may run on.

    Example:
        >>> fastdc.diffusion.kernels.num_threads() > 0
        True
    """
    return native.num_threads()


def set_num_threads(threads: int) -> None:
    """Sets the number of CPU threads of the kernels, at most 1024; 0 restores the default. Results do not change.

    Raises:
        InputError: The number is out of range.

    Example:
        >>> fastdc.diffusion.kernels.set_num_threads(0)
    """
    native.set_num_threads(checks.whole("threads", threads, low=0, high=1024))


def cpu_isa() -> str:
    """Returns the CPU instruction set in use, ``"avx2"`` or ``"baseline"``. The variable FASTDC_ISA forces one.

    Example:
        >>> fastdc.diffusion.kernels.cpu_isa() in ("avx2", "baseline")
        True
    """
    return native.cpu_isa()


def set_cpu_isa(name: str) -> None:
    """Forces a CPU instruction set that this machine has, for tests and measurements. Results do not change.

    Raises:
        InputError: The machine or the build does not have it.

    Example:
        >>> fastdc.diffusion.kernels.set_cpu_isa(fastdc.diffusion.kernels.cpu_isa())
    """
    native.set_cpu_isa(name)


def cuda_device_count() -> int:
    """Counts the CUDA devices that the native module can use; 0 without a driver or if built without CUDA.

    Example:
        >>> fastdc.diffusion.kernels.cuda_device_count() >= 0
        True
    """
    return native.cuda_device_count()


__all__ = [
    "LOSSES",
    "MAP_LOSSES",
    "MAX_STREAM",
    "PURPOSE_DIFFUSION",
    "PURPOSE_ESTIMATION",
    "PURPOSE_SAMPLING",
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
