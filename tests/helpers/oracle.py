"""Test cases for the kernels, their float64 answers, and the tolerances of float32 kernels.

The answers come from ``fastdc.testing.reference``, cell by cell. The tolerances are derived, in units of u = 2^-24, the
largest relative error of one float32 operation:

* A normal is a product r * s. r = sqrt(-2 ln u): ln is a sum (exponent ln 2 + ln m) that cancels to no less than half
  of its larger term. So the roundings of ln 2, of the product and of the sum, and about three of ln m, make less than
  7 u, which the root halves; its own rounding and the final product add 2. s = sin or cos of an angle with three
  roundings, each of the same relative size in the sine, and about three more in the polynomial. Together this is less
  than 12 u, and the polynomials were fitted to less than 1 u: NORMAL_TOLERANCE = 13 u (5.2 u measured on 10^7). If a
  normal is 0, the oracle's is not: cos(pi/2) is 6e-17 in float64, for which NORMAL_FLOOR allows.
* A pixel's value is a sum of at most four products; with S the sum of their magnitudes it is off by at most
  (13 + 1 + 3) u S: the normal's error, the product's rounding, and one for each of at most three additions.
* A sum over pixels adds at most 64 terms of one sign in a lane before it continues in float64: 64 u of the sum.
"""

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fastdc.diffusion import kernels
from fastdc.support import Float32, Float64, Int32, Int64
from fastdc.testing import reference

UNIT = 2.0**-24
NORMAL_TOLERANCE = 13 * UNIT
NORMAL_FLOOR = 2.0**-48
PIXEL_TOLERANCE = 17 * UNIT
SUM_TOLERANCE = 64 * UNIT

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SIZES = (1, 3, 7, 64, 65, 783, 1024, 1025, 3072)
LAYOUTS = ("class runs", "long runs", "shuffled", "repeated", "one cell")


@dataclass(frozen=True)
class Case:
    """One call: images (n, D), cells (B, 3), rows (J, 8), streams (n,), network output F (B, D), target z (n, D).

    With `antithetic`, draws 2i and 2i + 1 share a noise.
    """

    images: Float32
    cells: Int32
    rows: Float32
    streams: Int64
    output: npt.NDArray[Any]
    target: Float32 | None
    seed: int = 0x9E3779B97F4A7C15  # both words of the key matter
    purpose: int = 3
    antithetic: bool = False

    def take(self, which: Int64 | slice) -> "Case":
        """The same case with some of the cells, in that order."""
        return replace(self, cells=self.cells[which], output=self.output[which])

    def add_noise(self, **options: Any) -> Any:
        return kernels.add_noise(
            self.images, self.cells, self.rows, self.streams, seed=self.seed, purpose=self.purpose,
            antithetic=self.antithetic, **options,
        )  # fmt: skip

    def denoising_error(self, **options: Any) -> Any:
        return kernels.denoising_error(
            self.output, self.images, self.cells, self.rows, self.streams, seed=self.seed, purpose=self.purpose,
            target=self.target, antithetic=self.antithetic, **options,
        )  # fmt: skip

    def error_map(self, maps: Float32, **options: Any) -> Any:
        return kernels.error_map(
            self.output, self.images, self.cells, self.rows, self.streams, maps, seed=self.seed, purpose=self.purpose,
            target=self.target, antithetic=self.antithetic, **options,
        )  # fmt: skip


def _cells(layout: str, n: int, classes: int, draws: int, rng: np.random.Generator) -> Int32:
    every = np.array([(i, k, j) for i in range(n) for j in range(draws) for k in range(classes)], np.int32)
    if layout == "long runs":  # 2.5 times the longest run that the kernel handles at once
        return np.array([(i, k % classes, i % draws) for i in range(n) for k in range(40)], np.int32)
    if layout == "shuffled":
        return np.asarray(rng.permutation(every))
    if layout == "repeated":
        return np.asarray(every[rng.integers(0, 5, size=23)])
    return every[:1] if layout == "one cell" else every


def make_case(
    size: int,
    layout: str = "class runs",
    dtype: str = "float32",
    *,
    target: bool = False,
    antithetic: bool = False,
) -> Case:
    """A case with values of order one. "one cell" has more images than cells. A pair's rows differ in two signs."""
    n, classes, draws = 3, 5, 3
    rng = np.random.default_rng([size, LAYOUTS.index(layout)])
    cells = _cells(layout, n, classes, draws, rng)
    rows = rng.uniform(-1.5, 1.5, (draws, 8)).astype(np.float32)
    if antithetic:
        rows[1] = rows[0] * np.array([1, -1, 1, 1, -1, 1, 1, 1], np.float32)  # ge and c
    return Case(
        images=rng.uniform(-1, 1, (n, size)).astype(np.float32),
        cells=cells,
        rows=rows,
        streams=np.array([7, 2**40 + 17, kernels.MAX_STREAM], np.int64),
        output=rng.standard_normal((len(cells), size)).astype(DTYPES[dtype]),
        target=rng.uniform(-1, 1, (n, size)).astype(np.float32) if target else None,
        antithetic=antithetic,
    )


def noise_of(case: Case, cell: Int32) -> Float64:
    image, _, draw = cell.tolist()
    number = draw // 2 if case.antithetic else draw
    return reference.normal(case.seed, int(case.streams[image]), number, case.images.shape[1], case.purpose)


def noisy(case: Case) -> tuple[Float64, Float64]:
    """u (B, D), and the tolerance of a float32 kernel."""
    u, slack = np.empty(case.output.shape), np.empty(case.output.shape)
    for b, cell in enumerate(case.cells):
        x, row, e = case.images[cell[0]].astype(np.float64), case.rows[cell[2]].astype(np.float64), noise_of(case, cell)
        u[b] = reference.noisy_image(x, row, e)
        slack[b] = PIXEL_TOLERANCE * (np.abs(row[0] * x) + np.abs(row[1] * e))
    return u, slack


def pixel_errors(case: Case, loss: str, delta: float) -> tuple[Float64, Float64]:
    """weight * rho(r) of every pixel (B, D), and the tolerance of a float32 kernel."""
    value, slack = np.empty(case.output.shape), np.empty(case.output.shape)
    for b, cell in enumerate(case.cells):
        x, row, e = case.images[cell[0]].astype(np.float64), case.rows[cell[2]].astype(np.float64), noise_of(case, cell)
        f = case.output[b].astype(np.float64)
        z = None if case.target is None else case.target[cell[0]].astype(np.float64)
        r = reference.residual(f, x, row, e, z)
        terms = np.abs(row[2] * f) + np.abs(row[3] * x) + np.abs(row[4] * e)
        off = PIXEL_TOLERANCE * (terms if z is None else terms + np.abs(row[5] * z))
        rho = reference.rho(r, loss, delta)
        # |rho(r + off) - rho(r)|, plus the up to four roundings of rho and one of the weight.
        one = np.ones_like(r)
        huber = np.minimum(np.abs(r) + off, delta)
        slope = {"l2": 2 * np.abs(r) + off, "l1": one, "huber": huber, "residual": one}[loss]
        around = delta**2 if loss == "huber" else 0.0  # delta (|r| - delta / 2) cancels
        value[b] = row[6] * rho
        slack[b] = np.abs(row[6]) * (slope * off + 5 * UNIT * (rho + np.where(np.abs(r) + off > delta, around, 0)))
    return value, slack


def errors(case: Case, loss: str = "l2", delta: float = 1.0) -> tuple[Float64, Float64]:
    """The error of every cell (B,), and the tolerance of a float32 kernel."""
    value, slack = pixel_errors(case, loss, delta)
    mean = value.mean(axis=1)
    return mean, slack.mean(axis=1) + (SUM_TOLERANCE + 2 * UNIT) * np.abs(mean)


def maps(case: Case, classes: int, loss: str = "l2", delta: float = 1.0) -> tuple[Float64, Float64]:
    """The maps (n, K, D) from zero, and the tolerance of a float32 kernel."""
    value, slack = pixel_errors(case, loss, delta)
    total, off, count = (np.zeros((len(case.images), classes, case.images.shape[1])) for _ in range(3))
    for b, (image, label, _) in enumerate(case.cells.tolist()):
        total[image, label] += value[b]
        off[image, label] += slack[b]
        count[image, label] += np.abs(value[b])
    return total, off + (len(case.cells) + 1) * UNIT * count  # one rounding per added cell
