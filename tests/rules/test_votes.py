"""Pruning by votes: our count and that of the released code against plain loops, and what the two can and cannot do."""

import dataclasses
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import DiffusionClassifier, InputError
from fastdc.inference import decide
from fastdc.rules.votes import Votes
from fastdc.support import Float32
from fastdc.testing import replay
from helpers.rule_runs import Request, batches, check_alone, kept, single
from helpers.worlds import classifier, fails_with, gaussian, unit_images


def counted(errors: Float32, classes: list[int], draws: int) -> dict[int, int]:
    """Votes of one image's classes at its first draws, draw by draw."""
    votes = dict.fromkeys(classes, 0)
    for j in range(draws):
        votes[min(classes, key=lambda k: (errors[k, j], k))] += 1
    return votes


def by_loop(errors: Float32, n_samples: tuple[int, ...], to_keep: tuple[int, ...]) -> tuple[int, int]:
    """Answer and cost of one image with votes that are counted anew among the classes alive."""
    alive, cost, before = list(range(len(errors))), 0, 0
    order = alive
    for end, keep in zip(n_samples, to_keep, strict=True):
        cost += len(alive) * (end - before)
        votes = counted(errors, alive, end)
        mean = {k: float(errors[k, :end].astype(float).mean()) for k in alive}
        order = sorted(alive, key=lambda k: (-votes[k], mean[k], k))
        alive, before = sorted(order[:keep]), end
        if len(alive) == 1:
            break
    return order[0], cost


def released(
    errors: Float32, n_samples: tuple[int, ...], to_keep: tuple[int, ...]
) -> tuple[int, list[int], list[set[int]]]:
    """The released algorithm on one image: a buffer of infinite errors, filled where a class is evaluated.

    Returns:
        The answer, the votes, and the classes of each stage.
    """
    buffer = np.full(errors.shape, np.inf)
    classes, before, stages = list(range(len(errors))), 0, []
    votes = [0] * len(errors)
    for end, keep in zip(n_samples, to_keep, strict=True):
        stages.append(set(classes))
        for j in range(before, end):
            for k in classes:
                buffer[k, j] = errors[k, j]
        votes = [0] * len(errors)
        for j in range(end):
            votes[int(buffer[:, j].argmin())] += 1
        classes = sorted(range(len(errors)), key=lambda k: (-votes[k], k))[:keep]
        before = end
    return classes[0], votes, stages


@st.composite
def races(draw: st.DrawFn, *, grows: bool = False) -> tuple[Float32, tuple[int, ...], tuple[int, ...]]:
    """Errors of four images, many of them equal, and stages that end with one class."""
    n_classes = draw(st.integers(2, 6))
    n_samples = tuple(sorted(draw(st.sets(st.integers(1, 15), min_size=1, max_size=4))))
    keeps = draw(st.lists(st.integers(1, n_classes), min_size=len(n_samples) - 1, max_size=len(n_samples) - 1))
    to_keep = (*(keeps if grows else sorted(keeps, reverse=True)), 1)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    errors = rng.integers(0, draw(st.integers(2, 9)), (4, n_classes, n_samples[-1])) / 8
    return errors.astype(np.float32), n_samples, to_keep


@given(races())
def test_votes_counted_anew_are_those_of_a_loop(race: tuple[Float32, tuple[int, ...], tuple[int, ...]]) -> None:
    errors, n_samples, to_keep = race
    rule = Votes(n_samples, to_keep)
    run = replay(rule, errors)
    expected = [by_loop(image, n_samples, to_keep) for image in errors]
    assert run.labels("vote").tolist() == [label for label, _ in expected]
    assert run.evaluations.tolist() == [cost for _, cost in expected]
    assert set(run.evaluations.tolist()) == {rule.evaluations(errors.shape[1])}


@given(races(grows=True))
def test_the_released_count_is_that_of_its_loop(race: tuple[Float32, tuple[int, ...], tuple[int, ...]]) -> None:
    errors, n_samples, to_keep = race
    rule = Votes(n_samples, to_keep, compat="favero")
    run = replay(rule, errors)
    assert (run.counts == n_samples[-1]).all()
    votes = rule.votes_of(run.errors)
    assert votes is not None
    expected = [released(image, n_samples, to_keep) for image in errors]
    assert votes.tolist() == [count for _, count, _ in expected]
    decided = decide(run.errors, decision="vote", votes=votes)
    assert decided.labels.tolist() == [label for label, _, _ in expected]
    np.testing.assert_allclose(decided.probabilities, votes / n_samples[-1])


@given(races())
def test_no_class_of_the_released_code_returns_if_stages_never_grow(
    race: tuple[Float32, tuple[int, ...], tuple[int, ...]],
) -> None:
    errors, n_samples, to_keep = race
    for image in errors:
        _, _, stages = released(image, n_samples, to_keep)
        assert all(later <= earlier for earlier, later in pairwise(stages))


def winners(classes: list[int], n_classes: int) -> Float32:
    """Errors (1, K, J) whose draws are won by these classes; the others follow in order of their index."""
    errors = np.arange(1, n_classes + 1)[None, :, None] + np.zeros((1, 1, len(classes)))
    errors[0, classes, np.arange(len(classes))] = 0
    return errors.astype(np.float32)


def test_a_dropped_class_returns_and_wins_where_the_released_stages_grow() -> None:
    """Class 1 wins 2 of 5 draws and is dropped for class 0 alone; then two classes may stay, and class 1 is back."""
    errors = winners([0, 0, 0, 1, 1, 2, 1, 1, 1, 1], 3)
    n_samples, to_keep = (5, 6, 10), (1, 2, 1)
    label, votes, stages = released(errors[0], n_samples, to_keep)
    assert stages == [{0, 1, 2}, {0}, {0, 1}]
    assert (label, votes) == (1, [4, 6, 0])  # draw 5, which class 2 wins, counts for class 0
    counted = Votes(n_samples, to_keep, compat="favero").votes_of(errors)
    assert counted is not None
    assert counted.tolist() == [[4, 6, 0]]


def test_votes_of_a_dropped_class_are_lost_there_and_go_to_the_next_best_here() -> None:
    """Class 2 wins 2 draws and is dropped; at these draws class 1 is the better one of the others."""
    errors = winners([0, 0, 0, 1, 1, 2, 2, 0, 1], 4)
    errors[0, 0, 5:7] = 9
    n_samples, to_keep = (7, 9), (2, 1)
    kept_votes = Votes(n_samples, to_keep, compat="favero").votes_of(errors)
    assert kept_votes is not None
    assert (kept_votes.tolist(), int(kept_votes.argmax())) == ([[4, 3, 2, 0]], 0)
    decided = decide(replay(Votes(n_samples, to_keep), errors).errors, decision="vote")
    assert (decided.votes.tolist(), decided.labels.tolist()) == ([[4, 5, 0, 0]], [1])


def test_ties_go_to_the_smaller_mean_and_then_to_the_smaller_class() -> None:
    rule = Votes((2, 4), (1, 1))
    assert kept(rule, single([[1, 4], [2, 1], [9, 9]], classes=[3, 5, 8])) == [[5]]
    assert kept(rule, single([[1, 2], [2, 1], [9, 9]], classes=[3, 5, 8])) == [[3]]
    assert kept(Votes((2, 4), (2, 1)), single([[0, 9], [5, 5], [6, 6], [9, 0]])) == [[0, 3]]
    assert kept(Votes((2, 4), (3, 1)), single([[0, 0], [6, 6], [7, 7], [5, 5]])) == [[0, 1, 3]]  # no vote: by mean


@given(batches(), st.integers(0, 2), st.integers(0, 4))
def test_a_request_is_decided_as_if_alone(requests: list[Request], index: int, padding: int) -> None:
    check_alone(Votes((4, 8, 40), (5, 2, 1)), requests, index, padding)


def test_runs_of_a_classifier_are_those_of_the_loops() -> None:
    world, images, n_samples, to_keep = gaussian(4), unit_images(6), (3, 7, 12), (3, 2, 1)
    made: DiffusionClassifier = classifier(world)
    errors = made.errors(images, draws=12).errors
    options: dict[str, Any] = {"n_samples": n_samples, "to_keep": to_keep}
    ours = made.classify(images, rule="votes", rule_options=options, decision="vote")
    assert ours.labels.tolist() == [by_loop(image, n_samples, to_keep)[0] for image in errors]
    assert set(ours.evaluations.tolist()) == {4 * 3 + 3 * 4 + 2 * 5}
    theirs = made.classify(images, rule="votes", rule_options=options | {"compat": "favero"}, decision="vote")
    expected = [released(image, n_samples, to_keep) for image in errors]
    assert theirs.labels.tolist() == [label for label, _, _ in expected]
    assert theirs.votes.tolist() == [votes for _, votes, _ in expected]
    assert theirs.provenance["rule"]["compat"] == "favero"
    fails_with(
        lambda: made.classify(images, rule="votes", rule_options=options | {"compat": "favero"}),
        "rule votes with compat=favero needs decision=vote, got mean",
        kind=InputError,
    )


def test_certificates_have_no_votes_of_the_released_code() -> None:
    clf = classifier(gaussian(4))
    with pytest.raises(InputError, match="certificates are of the decision by the mean error, but rule votes"):
        clf.base(sigma=0.25, rule=Votes((5, 11), (2, 1), compat="favero"))
    assert clf.base(sigma=0.25, rule=Votes((5, 11), (2, 1))).n_classes == clf.model.num_classes


def test_costs() -> None:
    assert Votes((51,), (1,)).evaluations(2) == 102
    assert Votes((50, 500), (5, 1)).evaluations(10) == 10 * 50 + 5 * 450
    assert Votes((50, 500), (5, 1), compat="favero").evaluations(10) == 5000
    assert Votes((5, 9), (2, 1)).evaluations(1) == 5


def test_other_draws_are_refused() -> None:
    assert Votes((4, 16), (3, 1)).looks(16) == (4, 16)
    assert Votes((4, 16), (3, 1), compat="favero").looks(16) == (16,)
    for compat in (None, "favero"):
        rule = Votes((4, 16), (3, 1), compat=compat)
        assert rule.draws == 16
        for draws in (4, 15, 17):
            fails_with(partial(rule.looks, draws), "rule votes", "needs draws=16", f"got {draws}", kind=InputError)


@pytest.mark.parametrize(
    ("options", "compat", "says"),
    [
        (((1, 2), (1,)), None, "got 2 and 1"),
        (((2, 2), (2, 1)), "favero", "must increase"),
        (((2, 4), (1, 2)), None, "never increase"),
        (((2, 4), (1, 2)), "favero", "must end with 1, got (1, 2)"),
        (((2, 4), (2, 0)), None, "to_keep must be a whole number of at least 1, got 0"),
        (((2, 4), (2, 1)), "li", "compat must be 'favero' or None, got 'li'"),
    ],
)
def test_wrong_options_are_refused(options: tuple[Any, Any], compat: str | None, says: str) -> None:
    fails_with(lambda: Votes(*options, compat=compat), "rule votes", says, kind=InputError)


def test_lists_become_tuples() -> None:
    rule = Votes([2, 4], np.array([3, 1]))  # type: ignore[arg-type]
    assert rule == Votes((2, 4), (3, 1))
    assert dataclasses.asdict(rule) == {"n_samples": (2, 4), "to_keep": (3, 1), "compat": None}
