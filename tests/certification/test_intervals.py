"""Confidence intervals against SciPy's, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from fastdc.certification.intervals import mean, paired_difference, share, wilson_interval
from fastdc.support import InputError


@pytest.mark.parametrize("n", [1, 2, 20, 500, 10_000])
def test_shares_have_wilsons_interval(n: int) -> None:
    counts = np.unique([0, 1, n // 3, n - 1, n])
    low, high = wilson_interval(counts, n)
    for k, *ends in zip(counts.tolist(), low.tolist(), high.tolist(), strict=True):
        expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert ends == pytest.approx([expected.low, expected.high], abs=1e-14)
        assert share(k, n) == (k / n, *ends)
        assert ends[0] < ends[1]  # also at 0 and n, where the standard error is 0
    assert (low[0], high[-1]) == (0.0, 1.0)


def test_counts_are_checked() -> None:
    for successes, n in ((2, 1), (-1, 3), (0, 0), (0.5, 2)):
        with pytest.raises(InputError):
            wilson_interval(successes, n)


def test_means_have_students_interval() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    expected = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert mean(values) == pytest.approx((values.mean(), *expected))
    assert mean(values[:3] - 1, lowest=-0.5).low >= -0.5
    assert np.isnan(mean(values[:1])[1:]).all()
    for equal in (0.0, 0.1, 1 / 3):  # the standard deviation of seven times 0.1 is 1.5e-17
        for n in (1, 7, 9):
            estimate = mean(np.full(n, equal))
            assert estimate.value == equal
            assert np.isnan(estimate[1:]).all()


def test_paired_differences_are_inside_their_interval() -> None:
    """In 19 of 20 data sets on average over truths; counts are whole, so that single truths lie beside the level."""
    n, trials, covered = 100, 500, []
    rng = np.random.default_rng(1)
    for here, there in rng.uniform(0, 0.3, size=(20, 2)):
        splits = rng.multinomial(n, [here, there, 1 - here - there], size=trials)
        found = [paired_difference(int(b), int(c), n) for b, c, _ in splits]
        covered += [low <= here - there <= high for _, low, high in found]
        assert [one.value for one in found] == ((splits[:, 0] - splits[:, 1]) / n).tolist()
    assert abs(np.mean(covered) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / len(covered)) + 0.005


def test_no_difference_seen_is_not_known_to_be_none() -> None:
    value, low, high = paired_difference(0, 0, 50)
    assert value == 0
    assert low == -high == pytest.approx(-1.96 / 52, rel=1e-3)
    assert paired_difference(0, 1, 1).low == -1.0
