"""Decisions against brute-force loops, and the posterior and its temperature against SciPy and known answers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from worlds import Float64, fails_with, permutations

from fastdc import InputError
from fastdc.decide import decide, fit_temperature, negative_log_likelihood, posterior

NAN = np.nan


def by_hand(errors: Float64, decision: str) -> tuple[list[int], list[list[int]]]:
    """Labels and votes by loops over images, draws and classes, as decide's documentation words them."""
    labels, votes = [], []
    for image in errors:
        counts = [sum(not np.isnan(value) for value in row) for row in image]
        alive = [k for k, count in enumerate(counts) if count == max(counts)]
        shared = [j for j in range(image.shape[1]) if not any(np.isnan(image[k, j]) for k in alive)]
        mean = {k: float(np.mean([image[k, j] for j in shared])) for k in alive}
        won = [0] * len(image)
        for j in shared:
            won[min(alive, key=lambda k: (image[k, j], k))] += 1
        best = [k for k in alive if won[k] == max(won)] if decision == "vote" else alive
        labels.append(min(best, key=lambda k: (mean[k], k)))
        votes.append(won)
    return labels, votes


# Multiples of 1/8: sums are exact in any order, so that ties are ties.
_eighths = st.integers(0, 16).map(lambda value: value / 8)
_shapes = hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)
_full = hnp.arrays(np.float64, _shapes, elements=_eighths)


@st.composite
def stopped_early(draw: st.DrawFn) -> Float64:
    """Tables of a rule that drops classes: each class keeps a prefix of the draws, one at least keeps one."""
    errors: Float64 = draw(_full).copy()
    n, k, j = errors.shape
    for i in range(n):
        lengths = draw(st.lists(st.integers(0, j), min_size=k, max_size=k).filter(any))
        for label, length in enumerate(lengths):
            errors[i, label, length:] = NAN
    return errors


@pytest.mark.parametrize("decision", ["mean", "vote"])
@given(errors=_full | stopped_early())
def test_labels_and_votes_are_those_of_a_loop(decision: str, errors: Float64) -> None:
    decided = decide(errors, decision=decision, temperature=0.5)
    labels, votes = by_hand(errors, decision)
    assert decided.labels.tolist() == labels
    assert decided.votes.tolist() == votes
    assert decided.labels.dtype == decided.votes.dtype == np.int64
    np.testing.assert_allclose(decided.probabilities.sum(axis=1), 1, rtol=1e-12)
    assert (decided.probabilities >= 0).all()
    if decision == "vote":
        totals = decided.votes.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(decided.probabilities, decided.votes / totals)


@given(errors=_full, seed=st.integers(0, 1000))
def test_permuting_classes_permutes_everything_that_is_not_tied(errors: Float64, seed: int) -> None:
    noisy = errors + np.random.default_rng(seed).random(errors.shape)  # no ties
    (order,) = permutations(errors.shape[1], seed=seed, count=1)
    for decision in ("mean", "vote"):
        one, other = decide(noisy, decision=decision), decide(noisy[:, order], decision=decision)
        np.testing.assert_array_equal(order[other.labels], one.labels)
        np.testing.assert_array_equal(other.votes, one.votes[:, order])
        np.testing.assert_allclose(other.probabilities, one.probabilities[:, order], rtol=1e-12)


def test_only_shared_draws_are_compared() -> None:
    """Class 1 looks best on the one easy draw that it was evaluated at; class 0 won against 2 where both were."""
    errors = np.array([[[0.1, 0.9, 0.9], [0.05, NAN, NAN], [0.2, 0.95, 0.95]]])
    for decision in ("mean", "vote"):
        decided = decide(errors, decision=decision)
        assert decided.labels.tolist() == [0]
        assert decided.votes.tolist() == [[3, 0, 0]]
    np.testing.assert_allclose(decided.mean_errors, [[1.9 / 3, 0.05, 2.1 / 3]])


def test_equally_many_draws_are_compared_where_they_overlap() -> None:
    """Class 0 is worse at the shared draw 1, although its own mean is smaller."""
    errors = np.array([[[0.0, 0.6, NAN], [NAN, 0.5, 0.9]]])
    assert decide(errors).labels.tolist() == [1]
    assert decide(errors, decision="vote").votes.tolist() == [[0, 1]]


def test_ties_go_to_the_smaller_mean_then_to_the_first_class() -> None:
    votes_tied = np.array([[[1.0, 4.0], [3.0, 2.0]], [[3.0, 2.0], [2.0, 2.5]]])
    decided = decide(votes_tied, decision="vote")
    assert decided.votes.tolist() == [[1, 1], [1, 1]]
    assert decided.labels.tolist() == [0, 1]
    identical = decide(np.ones((1, 2, 3)))
    assert identical.labels.tolist() == [0]
    assert identical.probabilities.tolist() == [[0.5, 0.5]]
    assert decide(np.ones((1, 2, 3)), decision="vote").votes.tolist() == [[3, 0]]


def test_the_smallest_tables() -> None:
    for decision in ("mean", "vote"):
        one_class = decide(np.array([[[0.5, 0.25]]]), decision=decision)
        assert one_class.labels.tolist() == [0]
        assert one_class.probabilities.tolist() == [[1.0]]
        one_draw = decide(np.array([[[0.5], [0.25]]]), decision=decision)
        assert one_draw.labels.tolist() == [1]
        no_image = decide(np.empty((0, 2, 3)), decision=decision)
        assert no_image.labels.shape == (0,)
        assert no_image.probabilities.shape == (0, 2)


@pytest.mark.parametrize("shape", [(2, 3), (2, 0, 3), (2, 3, 0), (3,)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    fails_with(lambda: decide(np.ones(shape)), "(n, K, J)", kind=InputError)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"decision": "median"}, "mean, vote"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": NAN}, "temperature"),
        ({"temperature": np.inf}, "temperature"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], named: str) -> None:
    fails_with(lambda: decide(np.ones((1, 2, 3)), **options), named, kind=InputError)


def test_images_that_cannot_be_decided_are_named() -> None:
    errors = np.ones((3, 2, 2))
    errors[1] = NAN
    fails_with(lambda: decide(errors), "image 1", kind=InputError)
    disjoint = np.array([[[1.0, 2.0], [1.0, 2.0]], [[1.0, NAN], [NAN, 2.0]]])
    fails_with(lambda: decide(disjoint), "image 1", "no draw", kind=InputError)


# --- posterior and temperature ---------------------------------------------------------------------------------------


@given(
    means=hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1e6)),
    temperature=st.floats(1e-3, 1e3),
)
def test_the_posterior_is_a_softmax(means: Float64, temperature: float) -> None:
    from scipy.special import softmax

    got = posterior(means, temperature)
    # -means/T is rounded before SciPy subtracts its largest; that error, at most eps * max|means|/T, is e^x-relative.
    slack = 4 * np.finfo(np.float64).eps * (1 + np.abs(means).max() / temperature)
    np.testing.assert_allclose(got, softmax(-means / temperature, axis=1), rtol=slack, atol=slack)


def test_the_posterior_leaves_out_what_is_nan_and_never_overflows() -> None:
    got = posterior(np.array([[1.0, NAN, 1.0], [1e300, 2e300, NAN]]), 1e-300)
    assert got.tolist() == [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]
    assert posterior(np.array([[0.0, 1.0]]), 1e300).tolist() == [[0.5, 0.5]]
    for temperature in (0.0, -1.0, NAN, np.inf):
        fails_with(lambda t=temperature: posterior(np.ones((1, 2)), t), "temperature", kind=InputError)  # type: ignore[misc]


def sampled(true_temperature: float, n: int = 4000) -> tuple[Float64, Any]:
    """Mean errors and labels drawn from their posterior at a known temperature."""
    rng = np.random.default_rng(5)
    means = rng.gamma(4.0, 0.1 * true_temperature, (n, 5))
    probabilities = posterior(means, true_temperature)
    labels = (probabilities.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return means, labels


@pytest.mark.parametrize("temperature", [1e-4, 0.02, 1.0, 500.0])
def test_the_fit_recovers_the_temperature(temperature: float) -> None:
    means, labels = sampled(temperature)
    fitted = fit_temperature(means, labels)
    # Fisher information of 1/T is n Var_p(mean): with gaps of about 0.2 T, the standard error of T is T/(0.2 sqrt(n)).
    spread = np.sqrt(
        np.mean((posterior(means, temperature) * means**2).sum(1) - (posterior(means, temperature) * means).sum(1) ** 2)
    )
    standard_error = temperature**2 / (spread * np.sqrt(len(means)))
    assert abs(fitted - temperature) < 4 * standard_error
    best = negative_log_likelihood(means, labels, fitted)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert best <= negative_log_likelihood(means, labels, fitted * factor)


def test_the_likelihood_is_that_of_the_posterior() -> None:
    means, labels = sampled(0.5, n=50)
    want = -np.mean(np.log(posterior(means, 0.3)[np.arange(50), labels]))
    assert negative_log_likelihood(means, labels, 0.3) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("errors", "labels", "named"),
    [
        (np.ones((0, 2)), [], "finite (n, K)"),
        (np.ones((2, 2, 2)), [0, 1], "finite (n, K)"),
        (np.array([[1.0, NAN]]), [0], "finite (n, K)"),
        (np.array([[1.0, np.inf]]), [0], "finite (n, K)"),
        (np.array([[1.0, 2.0]]), [0, 1], "label"),
        (np.array([[1.0, 2.0]]), [[0]], "label"),
        (np.array([[1.0, 2.0]]), [2], "labels"),
        (np.array([[1.0, 2.0]]), [-1], "labels"),
        (np.array([[1.0, 2.0]]), [0.0], "labels"),
        (np.ones((3, 2)), [0, 1, 0], "equal errors"),
        (np.ones((3, 1)), [0, 0, 0], "equal errors"),
    ],
)
def test_bad_input_to_the_fit_is_refused(errors: Any, labels: Any, named: str) -> None:
    fails_with(lambda: fit_temperature(errors, np.array(labels)), named, kind=InputError)
