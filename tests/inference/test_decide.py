"""Decisions against brute-force loops, and the posterior and its temperature against SciPy and known answers."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastdc import ErrorTable, InputError
from fastdc.calibration.temperature import fit_temperature, negative_log_likelihood
from fastdc.inference.decide import Decision, by_class, decide, decide_table, posterior
from helpers.worlds import Float64, fails_with, permutations

NAN = np.nan


def by_hand(errors: Float64, decision: str) -> tuple[list[int], list[list[int]], list[list[float]]]:
    """Labels, votes and mean errors by loops over images, draws and classes, as decide's documentation words them."""
    labels, votes, means = [], [], []
    for image in errors:
        drawn = [{j for j, value in enumerate(row) if not np.isnan(value)} for row in image]
        alive = [k for k, draws in enumerate(drawn) if len(draws) == max(map(len, drawn))]
        shared = sorted(set.intersection(*(drawn[k] for k in alive)))
        mean = {k: float(np.mean([image[k, j] for j in shared])) for k in alive}
        leader = min(alive, key=lambda k: (mean[k], k))
        for k in set(range(len(image))) - set(alive):
            pairs = [image[k, j] - image[leader, j] for j in drawn[k] & drawn[leader]]
            mean[k] = max(mean[leader], mean[leader] + float(np.mean(pairs))) if pairs else NAN
        won = [0] * len(image)
        for j in shared:
            won[min(alive, key=lambda k: (image[k, j], k))] += 1
        best = [k for k in alive if won[k] == max(won)] if decision == "vote" else alive
        labels.append(min(best, key=lambda k: (mean[k], k)))
        votes.append(won)
        means.append([mean[k] for k in range(len(image))])
    return labels, votes, means


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


@st.composite
def with_holes(draw: st.DrawFn) -> Float64:
    """Any cells missing, not only those after a prefix, as long as the survivors share a draw."""
    errors: Float64 = draw(_full).copy()
    errors[draw(hnp.arrays(np.bool_, errors.shape))] = NAN
    known = ~np.isnan(errors)
    for image in known:
        alive = image.sum(axis=1) == image.sum(axis=1).max()
        assume(image[alive].all(axis=0).any())
    return errors


@pytest.mark.parametrize("decision", ["mean", "vote"])
@given(errors=_full | stopped_early() | with_holes())
def test_everything_decided_is_that_of_a_loop(decision: str, errors: Float64) -> None:
    decided = decide(errors, decision=decision, temperature=0.5)
    labels, votes, means = by_hand(errors, decision)
    assert decided.labels.tolist() == labels
    assert decided.votes.tolist() == votes
    assert decided.labels.dtype == decided.votes.dtype == np.int64
    np.testing.assert_allclose(decided.mean_errors, np.reshape(means, errors.shape[:2]), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(decided.probabilities.sum(axis=1), 1, rtol=1e-12)
    assert (decided.probabilities >= 0).all()
    if decision == "vote":
        totals = decided.votes.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(decided.probabilities, decided.votes / totals)
    else:
        np.testing.assert_allclose(decided.probabilities, posterior(decided.mean_errors, 0.5), rtol=1e-12)


@given(errors=stopped_early(), shift=st.sampled_from([0.0, 1e-9]), temperature=st.sampled_from([1e-300, 1e-3, 1, 1e9]))
def test_the_label_has_the_smallest_mean_and_the_largest_probability(
    errors: Float64, shift: float, temperature: float
) -> None:
    """Also where classes tie, or nearly do: the shift makes gaps that the softmax rounds away."""
    errors = errors - shift * np.arange(errors.shape[1])[:, None]  # later classes gain a little
    decided = decide(errors, temperature=temperature)
    np.testing.assert_array_equal(np.nanargmin(decided.mean_errors, axis=1), decided.labels)
    np.testing.assert_array_equal(decided.probabilities.argmax(axis=1), decided.labels)
    np.testing.assert_array_equal(decide(errors, decision="vote").mean_errors, decided.mean_errors)


@given(errors=_full)
def test_evaluating_everything_gives_plain_means_and_their_posterior(errors: Float64) -> None:
    decided = decide(errors)
    np.testing.assert_array_equal(decided.mean_errors, errors.sum(axis=2) / errors.shape[2])
    np.testing.assert_array_equal(decided.probabilities, posterior(decided.mean_errors))
    np.testing.assert_array_equal(decided.labels, errors.sum(axis=2).argmin(axis=1))
    np.testing.assert_array_equal(decided.votes.sum(axis=1), errors.shape[2])


def raced(errors: Float64, looks: tuple[int, ...], margin: float) -> tuple[Float64, list[int]]:
    """Errors that a rule leaves which drops whatever is behind the leader by the margin, and the class it ends with."""
    left, winners = errors.copy(), []
    for image in left:
        alive = list(range(len(image)))
        for m in looks:
            means = {k: float(image[k, :m].mean()) for k in alive}
            leader = min(alive, key=lambda k: (means[k], k))
            dropped = [k for k in alive if means[k] - means[leader] > margin]
            image[dropped, m:] = NAN
            alive = [k for k in alive if k not in dropped]
            if len(alive) == 1:
                image[alive, m:] = NAN
                break
        winners.append(leader)
    return left, winners


@given(errors=_full, margin=st.floats(0, 1))
def test_the_label_is_what_the_rule_settled_on(errors: Float64, margin: float) -> None:
    """The losers of the last look have as many draws as the winner: they are compared again, with the same outcome."""
    left, winners = raced(errors, tuple(range(1, errors.shape[2] + 1)), margin)
    decided = decide(left)
    assert decided.labels.tolist() == winners
    shared = np.count_nonzero(~np.isnan(left), axis=2).max(axis=1)
    np.testing.assert_array_equal(decided.votes.sum(axis=1), shared)


def test_noise_levels_cancel_for_a_class_that_was_dropped() -> None:
    """Class 2, dropped after two draws at easy levels, is 0.3 behind the winner there: so it is in the end."""
    level = np.array([0.1, 0.2, 0.9, 0.8])
    errors = np.stack([level, level + 0.05, np.add(level, [0.2, 0.4, NAN, NAN])])[None]
    decided = decide(errors)
    np.testing.assert_allclose(decided.mean_errors, [[0.5, 0.55, 0.8]], rtol=1e-12)
    lone = decide(np.stack([level, np.add(level, [0.1, NAN, NAN, NAN])])[None], decision="vote")
    assert lone.votes.tolist() == [[4, 0]]
    assert lone.probabilities.tolist() == [[1.0, 0.0]]
    np.testing.assert_allclose(lone.mean_errors, [[0.5, 0.6]], rtol=1e-12)


def test_a_class_dropped_for_a_third_one_does_not_win() -> None:
    """Class 0 lost to 1 at the first draw, and 1 to 2 at the end; at that first draw, 0 was better than 2."""
    decided = decide(np.array([[[0.5, NAN, NAN], [0.1, 0.9, 0.9], [0.6, 0.2, 0.1]]]), temperature=1e9)
    assert decided.labels.tolist() == [2]
    assert decided.mean_errors[0, 0] == np.nextafter(decided.mean_errors[0, 2], np.inf)
    assert decided.probabilities.argmax() == 2


def table_of(errors: Float64) -> ErrorTable:
    known = ~np.isnan(errors)
    n, k, j = errors.shape
    return ErrorTable(
        counts=known.sum(axis=2, dtype=np.int32),
        values=errors[known].astype(np.float32),
        sigma=np.ones(j),
        weights=np.ones(j, np.float32),
        streams=np.arange(n),
        seed=0,
        class_names=tuple(map(str, range(k))),
        plan={},
        model="",
        identity="",
    )


def assert_same(one: Decision, other: Decision) -> None:
    for name in ("labels", "probabilities", "mean_errors", "votes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("decision", ["mean", "vote"])
@given(errors=stopped_early(), cells=st.integers(1, 60))
def test_a_table_is_decided_as_its_errors_are(decision: str, errors: Float64, cells: int) -> None:
    table = table_of(errors + np.float32(0.1) * np.arange(errors.shape[2]))
    want = decide(table.errors, decision=decision, temperature=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ErrorTable.chunks, "__defaults__", (cells,))
        assert_same(decide_table(table, decision=decision, temperature=0.3), want)


def test_a_large_table_is_never_dense() -> None:
    """16 classes with 8 of 1024 draws each: the dense form is 128 times as large as the errors."""
    one = np.full((1, 16, 1024), NAN)
    one[:, :, :8] = np.random.default_rng(0).random((1, 16, 8))
    one = one.astype(np.float32).astype(np.float64)
    table = ErrorTable.concatenate([table_of(one)] * 1024)
    tracemalloc.start()
    try:
        decided = decide_table(table)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < table.counts.size * table.draws * 4, "the errors alone, were they dense"
    np.testing.assert_array_equal(decided.mean_errors, np.repeat(decide(one).mean_errors, 1024, axis=0))


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
    np.testing.assert_allclose(decided.mean_errors, [[1.9 / 3, 1.9 / 3, 2.1 / 3]])  # class 1 may not pass the leader
    assert decided.mean_errors[0, 1] > decided.mean_errors[0, 0]


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
        assert decide_table(table_of(np.empty((0, 2, 3))), decision=decision).votes.shape == (0, 2)


@pytest.mark.parametrize("shape", [(2, 3), (2, 0, 3), (2, 3, 0), (3,)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    fails_with(lambda: decide(np.ones(shape)), "(n, K, J)", kind=InputError)
    if len(shape) == 3:
        fails_with(lambda: decide_table(table_of(np.ones(shape))), "cell" if shape[1] else "(n, K, J)", kind=InputError)


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
    fails_with(lambda: decide_table(table_of(np.ones((0, 2, 3))), **options), named, kind=InputError)


def test_images_that_cannot_be_decided_are_named() -> None:
    errors = np.ones((3, 2, 2))
    errors[1] = NAN
    fails_with(lambda: decide(errors), "image 1", kind=InputError)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ErrorTable.chunks, "__defaults__", (1,))
        fails_with(lambda: decide_table(table_of(errors)), "image 1", kind=InputError)
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


def test_votes_of_prompts_are_summed_by_class_and_ties_go_to_the_smaller_error() -> None:
    """Class 1 has prompts 1 and 3; of image 0 it has two draws of three, of image 1 all classes have one."""
    errors = np.array(
        [
            [[3, 1, 3], [1, 2, 2], [4, 4, 4], [2, 3, 1]],
            [[1, 5, 5], [5, 1, 5], [4, 4, 0], [6, 6, 6]],
        ],
        np.float64,
    )
    decided = by_class(decide(errors, decision="vote"), (0, 1, 2, 1), n_classes=3, decision="vote")
    assert decided.votes.tolist() == [[1, 2, 0], [1, 1, 1]]
    assert decided.labels.tolist() == [1, 2]
    np.testing.assert_allclose(decided.probabilities, [[1 / 3, 2 / 3, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(decided.mean_errors, [[7 / 3, 5 / 3, 4], [11 / 3, 11 / 3, 8 / 3]])


@pytest.mark.parametrize("decision", ["mean", "vote"])
def test_classes_that_were_not_evaluated_change_no_bit(decision: str) -> None:
    """Images with a few candidates of many classes are decided among these, with the numbers of all classes."""
    rng = np.random.default_rng(0)
    errors = np.full((60, 40, 10), NAN)
    for image in errors:
        for k in rng.permutation(40)[: rng.integers(1, 7)]:
            length = rng.choice([3, 10])
            image[k, :length] = rng.random(length, np.float32)
    table = table_of(errors)
    assert table.packed()[0].counts.shape[1] == 6
    assert_same(decide_table(table, decision=decision), decide(table.errors, decision=decision))
