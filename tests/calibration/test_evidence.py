"""Evidence from pairs: the test against SciPy's, and how seldom equal choices are told apart."""

import numpy as np
import pytest
from scipy import stats

from fastdc.calibration import beyond_doubt, within_noise


def test_the_evidence_is_that_of_a_t_test() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(-0.2, 0.6, 40):
        difference = rng.choice([-1.0, 0.0, 1.0], 50, p=[0.1, 0.5, 0.4]) + shift
        p = stats.ttest_1samp(difference, 0.0, alternative="greater").pvalue
        assert beyond_doubt(difference, 5) == (p < 0.05 / 5)


@pytest.mark.parametrize(
    ("n", "value", "said"), [(0, 1.0, False), (1, 1.0, False), (6, 1.0, False), (7, 1.0, True), (50, 0.0, False)]
)
def test_images_that_all_agree_count_by_their_number(n: int, value: float, said: bool) -> None:
    assert beyond_doubt(np.full(n, value), 5) is said


def test_equal_choices_are_seldom_told_apart() -> None:
    """Five choices that are as accurate as the first one: one is preferred in at most 5 % of the data sets."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(1000):
        right = rng.random((6, 100)) < 0.9
        wrong += any(beyond_doubt(one.astype(float) - right[0], 5) for one in right[1:])
    assert wrong <= stats.binom.ppf(0.999, 1000, 0.05)


def test_noise_is_one_standard_error() -> None:
    difference = np.array([1.0, 0.0, 0.0, 0.0])
    error = stats.sem(difference)
    assert error == pytest.approx(difference.mean())
    assert within_noise(difference - 0.001)
    assert not within_noise(difference + 0.001)
    assert within_noise(np.zeros(3))
    assert not within_noise(np.full(3, 0.01))
    assert within_noise(np.zeros(1))
