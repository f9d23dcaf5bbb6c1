"""The noise is distributed as it should be: independent standard normals, everywhere in the counter.

Seeds are fixed, so that these tests cannot fail by chance. With new numbers, a statistic would exceed its threshold,
|z| < 4.9 or p > 10^-6, once in 10^6 times. A defect of the generator or of Box-Muller (a word used twice, a missing
quadrant, a biased radius) moves these statistics by many times that.
"""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fastdc.diffusion import kernels
from fastdc.support import Float64
from fastdc.support.checks import MAX_SEED

ALARM = 1e-6
Z = 4.9  # two-sided, 10^-6
COUNT = 1 << 20


def normals(streams: npt.ArrayLike, draws: npt.ArrayLike, size: int, *, seed: int = 1, purpose: int = 0) -> Float64:
    """float64 (m, size), the normals of streams and draws broadcast against each other."""
    pairs = np.broadcast_arrays(np.asarray(streams, np.int64), np.asarray(draws, np.int64))
    made = kernels.philox_normal(
        np.ascontiguousarray(pairs[0]), pairs[1].astype(np.int32), size, seed=seed, purpose=purpose
    )
    return np.asarray(made, np.float64)


def z_of_correlation(a: Float64, b: Float64) -> float:
    """sum(a b) / sqrt(n), which is standard normal for n independent pairs of standard normals."""
    return float((a * b).sum() / math.sqrt(a.size))


# The same number of normals from one long row, many draws, many images, and both.
PLACES = {
    "pixels": normals([3], [4], COUNT),
    "draws": normals(3, np.arange(1 << 14), 64),
    "images": normals(np.arange(1 << 14), 4, 64),
    "first pixels": normals(np.arange(COUNT), np.arange(COUNT) % 97, 1),
    "far streams": normals(kernels.MAX_STREAM - np.arange(1 << 14), 2**31 - 1, 64, seed=MAX_SEED, purpose=255),
}


@pytest.fixture(params=PLACES)
def sample(request: pytest.FixtureRequest) -> Float64:
    return PLACES[request.param].ravel()


def test_kolmogorov_smirnov(sample: Float64) -> None:
    assert stats.kstest(sample, "norm").pvalue > ALARM


@pytest.mark.parametrize("power", [1, 2, 3, 4, 5, 6])
def test_moments(sample: Float64, power: int) -> None:
    def moment(order: int) -> float:  # of a standard normal: (order - 1)!!
        return 0.0 if order % 2 else float(math.prod(range(1, order, 2)))

    deviation = math.sqrt((moment(2 * power) - moment(power) ** 2) / sample.size)
    assert abs((sample**power).mean() - moment(power)) < Z * deviation


@pytest.mark.parametrize("threshold", [2.0, 3.0, 4.0, 4.5])
def test_tails(sample: Float64, threshold: float) -> None:
    for count in ((sample > threshold).sum(), (sample < -threshold).sum()):
        assert stats.binomtest(int(count), sample.size, float(stats.norm.sf(threshold))).pvalue > ALARM


def test_chi_square_of_equally_likely_cells(sample: Float64) -> None:
    counts = np.histogram(stats.norm.cdf(sample), bins=1024, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > ALARM


def test_the_tail_reaches_where_it_should() -> None:
    everything = np.concatenate([place.ravel() for place in PLACES.values()])
    expected = stats.norm.isf(1 / (2 * everything.size))  # the largest of n is about here
    assert expected - 0.5 < np.abs(everything).max() < 6.67


def test_words_are_uniform() -> None:
    """Bytes and top bits of the words of 4096 blocks, one word at a time."""
    blocks = np.array([kernels.philox_words((block, 5, 6, 7), (8, 9)) for block in range(4096)], np.uint32)
    for word in blocks.T:
        for shift in (0, 8, 16, 24):
            assert stats.chisquare(np.bincount((word >> shift) & 0xFF, minlength=256)).pvalue > ALARM
    bits = np.unpackbits(blocks.view(np.uint8)).astype(np.float64)
    assert abs(bits.sum() - bits.size / 2) < Z * math.sqrt(bits.size) / 2


def test_angles_and_radii_of_box_muller() -> None:
    pairs = PLACES["pixels"].reshape(-1, 2)
    assert stats.kstest(np.arctan2(pairs[:, 1], pairs[:, 0]), "uniform", args=(-np.pi, 2 * np.pi)).pvalue > ALARM
    assert stats.kstest((pairs**2).sum(axis=1), "expon", args=(0, 2)).pvalue > ALARM


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 63, 64, 1024])
def test_pixels_do_not_correlate(lag: int) -> None:
    row = PLACES["pixels"][0]
    a, b = row[:-lag].reshape(1, -1), row[lag:].reshape(1, -1)
    assert abs(z_of_correlation(a, b)) < Z
    # Squares see a shared radius, which leaves the values themselves uncorrelated. Their variance is 2.
    assert abs(z_of_correlation((a**2 - 1) / math.sqrt(2), (b**2 - 1) / math.sqrt(2))) < Z


@pytest.mark.parametrize("field", ["draw", "stream", "high stream", "seed", "high seed", "purpose"])
def test_neighbours_do_not_correlate(field: str) -> None:
    size = 1 << 16
    base = normals([10], [10], size, seed=10, purpose=10)
    for step in (1, 2, 16, 128):
        other = {
            "draw": lambda step: normals([10], [10 + step], size, seed=10, purpose=10),
            "stream": lambda step: normals([10 + step], [10], size, seed=10, purpose=10),
            "high stream": lambda step: normals([10 + (step << 32)], [10], size, seed=10, purpose=10),
            "seed": lambda step: normals([10], [10], size, seed=10 + step, purpose=10),
            "high seed": lambda step: normals([10], [10], size, seed=10 + (step << 32), purpose=10),
            "purpose": lambda step: normals([10], [10], size, seed=10, purpose=10 + step),
        }[field](step)
        assert abs(z_of_correlation(base, other)) < Z
        assert abs(z_of_correlation((base**2 - 1) / math.sqrt(2), (other**2 - 1) / math.sqrt(2))) < Z


def test_a_table_of_draws_and_images_has_no_common_part() -> None:
    """Row, column and diagonal sums of images x draws have the variance of independent numbers."""
    n = 64
    table = normals(np.repeat(np.arange(n), n), np.tile(np.arange(n), n), 64).reshape(n, n, 64)
    diagonals = table[np.arange(n)[:, None], (np.arange(n)[:, None] + np.arange(n)) % n]
    for sums in (table.sum(axis=0), table.sum(axis=1), diagonals.sum(axis=0), table.sum(axis=2)):
        assert stats.kstest(sums.ravel() / math.sqrt(n), "norm").pvalue > ALARM


def test_these_statistics_see_defects() -> None:
    """Each check on noise that is wrong on purpose."""
    good = PLACES["pixels"].ravel()
    assert stats.kstest(np.abs(good), "norm").pvalue < ALARM
    assert stats.kstest(good * 1.01, "norm").pvalue < ALARM
    repeated = np.repeat(good[: COUNT // 2], 2)
    assert abs(z_of_correlation(repeated[None, :-1], repeated[None, 1:])) > Z
    truncated = good[np.abs(good) < 4]
    assert stats.binomtest(0, truncated.size, float(stats.norm.sf(4))).pvalue < ALARM
