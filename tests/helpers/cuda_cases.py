"""Cases for the CUDA kernels, shared by the tests on a device and by those that emulate one.

The mapping of pixels to threads changes at these sizes: part of a quad, one quad, one warp, more than one pass of a
block, rows that are not a multiple of 4 pixels. The cell tables differ in their runs of cells that share (image, draw):
whole runs, no two alike, runs of any length, one long run.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fastdc.diffusion import kernels
from fastdc.support import Float32, Int32, Int64

SIZES = (1, 3, 63, 64, 65, 783, 3072, 16384)
LAYOUTS = ("runs", "distinct", "mixed", "one run")
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

N_IMAGES, N_CLASSES, N_DRAWS = 3, 7, 4
SEED = 0x9E3779B97F4A7C15  # both words of the key matter
DELTA = 0.7

WARP, BLOCK, QUADS_PER_WARP_GROUP = 32, 256, 128  # as in csrc/quads.cuh
FLOAT32_UNIT = 2.0**-24  # largest relative error of one rounding


@dataclass(frozen=True)
class Case:
    """One call: images x (n, D), cells (B, 3), rows (J, 8), streams (n,), network output F (B, D), target z (n, D)."""

    images: Float32
    cells: Int32
    rows: Float32
    streams: Int64
    output: npt.NDArray[np.generic]
    target: Float32


def dtype_for(size: int, layout: str) -> str:
    """A dtype for a size and a layout. Neighbours get different ones, so that all dtypes are tested."""
    return list(DTYPES)[(SIZES.index(size) + LAYOUTS.index(layout)) % len(DTYPES)]


def _cells(layout: str, rng: np.random.Generator) -> Int32:
    every = np.stack(np.meshgrid(np.arange(N_IMAGES), np.arange(N_DRAWS), np.arange(N_CLASSES), indexing="ij"), axis=-1)
    table = every.reshape(-1, 3)[:, [0, 2, 1]].astype(np.int32)
    if layout == "runs":
        return table
    if layout == "distinct":
        return np.ascontiguousarray(rng.permutation(table))
    if layout == "one run":
        return np.array([[1, k % N_CLASSES, 2] for k in range(19)], np.int32)
    pairs = rng.integers(0, [N_IMAGES, N_DRAWS], size=(9, 2))
    lengths = rng.integers(1, 20, size=9)
    rows = [
        [image, rng.integers(N_CLASSES), draw]
        for (image, draw), length in zip(pairs, lengths, strict=True)
        for _ in range(length)
    ]
    return np.array(rows, np.int32)


def make_case(size: int, layout: str, dtype: str = "float32", *, limit: int | None = None) -> Case:
    """A case with random values of order one; `limit` keeps only the first cells."""
    rng = np.random.default_rng([size, LAYOUTS.index(layout)])
    cells = np.ascontiguousarray(_cells(layout, rng)[:limit])
    return Case(
        images=rng.uniform(-1.0, 1.0, (N_IMAGES, size)).astype(np.float32),
        cells=cells,
        rows=rng.uniform(-1.5, 1.5, (N_DRAWS, 8)).astype(np.float32),
        streams=np.array([0, 2**40 + 17, kernels.MAX_STREAM], np.int64),
        output=rng.standard_normal((len(cells), size)).astype(DTYPES[dtype]),
        target=rng.uniform(-1.0, 1.0, (N_IMAGES, size)).astype(np.float32),
    )


def error_tolerance(size: int) -> float:
    """Largest relative difference between the CPU's and CUDA's error of a cell of `size` pixels.

    The losses of single pixels have the same bits and one sign, so that a float32 sum of n of them is off by less than
    n units of rounding. The CPU adds up to 64 in a lane and continues in float64. A CUDA thread adds 4 per quad, the
    warp folds 5 times and continues in float64. Each result is rounded once more.
    """
    quads = -(-size // 4)
    width = WARP if quads <= QUADS_PER_WARP_GROUP else BLOCK
    roundings = 64 + 4 * -(-quads // width) + 5 + 2
    return roundings * FLOAT32_UNIT / (1.0 - roundings * FLOAT32_UNIT)
