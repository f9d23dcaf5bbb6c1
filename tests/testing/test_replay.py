"""Replays against a race of one image at a time that is written independently, and against real runs."""

from dataclasses import dataclass

import numpy as np
import pytest

from fastdc import InputError
from fastdc.inference import decide
from fastdc.rules.class_tree import ClassTree
from fastdc.rules.full import Full
from fastdc.rules.hierarchy import Hierarchy
from fastdc.rules.protocol import AbstractRule, Look
from fastdc.rules.votes import Votes
from fastdc.support import Mask
from fastdc.testing.replay import replay, verify
from helpers.races import DRAWS, RULES, rule_of, slow_race, tables, winner
from helpers.worlds import classifier, gaussian, unit_images


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("ties", [False, True])
def test_a_replay_is_the_race_of_each_image(name: str, ties: bool) -> None:
    errors = tables(40, 6, DRAWS, seed=1, ties=ties)
    rule = rule_of(name, 6)
    found = replay(rule, errors)
    counts = [slow_race(rule, one) for one in errors]
    assert found.counts.tolist() == counts
    assert found.evaluations.tolist() == [sum(one) for one in counts]
    assert found.labels().tolist() == [winner(one, count) for one, count in zip(errors, counts, strict=True)]
    for one, seen, count in zip(errors, found.errors, counts, strict=True):
        for k, draws in enumerate(count):
            np.testing.assert_array_equal(seen[k, :draws], one[k, :draws])
            assert np.isnan(seen[k, draws:]).all()


def test_a_replay_drops_classes_and_keeps_others() -> None:
    """The comparison above would hold of a rule that never drops; this one must."""
    counts = replay(rule_of("staged", 6), tables(40, 6, DRAWS, seed=1)).counts
    assert [sorted(row) for row in counts.tolist()] == [[1, 1, 3, 7, DRAWS, DRAWS]] * 40


def test_a_single_class_is_evaluated_up_to_the_first_look() -> None:
    errors = tables(3, 1, DRAWS, seed=1)
    for rule in (Full(), rule_of("paired", 2)):
        assert replay(rule, errors).counts.tolist() == [slow_race(rule, one) for one in errors]


def test_a_decision_may_be_a_vote() -> None:
    errors = np.array([[[1, 1, 9], [2, 2, 2]]], np.float32)  # the first class wins two of three draws
    found = replay(Full(), errors)
    assert (found.labels().tolist(), found.labels("vote").tolist()) == ([1], [0])


def test_a_rule_may_count_votes_in_its_own_way() -> None:
    errors = np.random.default_rng(0).random((200, 6, 15)).astype(np.float32)
    rule = Votes((5, 15), (2, 1), compat="favero")
    answers = replay(rule, errors).labels("vote")
    votes = rule.votes_of(errors)
    assert votes is not None
    assert np.array_equal(answers, votes.argmax(axis=1))
    assert not np.array_equal(answers, decide(errors, decision="vote").labels)


def test_a_replay_is_a_real_run() -> None:
    world, images = gaussian(5), unit_images(30)
    clf = classifier(world, batch=7)
    errors = clf.errors(images, draws=DRAWS, seed=3).errors
    for name in RULES:
        assert verify(clf, images, rule_of(name, 5), errors, seed=3, plan={}) == 0


def test_errors_of_another_seed_are_seen() -> None:
    world, images = gaussian(5), unit_images(30)
    clf = classifier(world)
    assert verify(clf, images, Full(), clf.errors(images, draws=DRAWS, seed=4).errors, seed=3, plan={}) > 0.01


@dataclass(frozen=True)
class Crowd(AbstractRule):
    """Breaks the protocol of rules: it drops classes only if it sees many requests at once, as a replay shows them."""

    name = "crowd"
    least: int = 30

    def looks(self, draws: int) -> tuple[int, ...]:
        return (1, draws)

    def keep(self, look: Look) -> Mask:
        return look.alive if len(look.classes) < self.least else look.means == look.means.min(axis=1, keepdims=True)


def test_a_rule_that_depends_on_other_requests_is_seen() -> None:
    images = unit_images(30)
    clf = classifier(gaussian(5), batch=7)
    errors = clf.errors(images, draws=DRAWS, seed=3).errors
    with pytest.raises(AssertionError, match="rule crowd: the replay has other evaluations"):
        verify(clf, images, Crowd(), errors, seed=3, plan={})
    assert verify(clf, images, Crowd(least=31), errors, seed=3, plan={}) == 0


def test_a_rule_that_adds_classes_is_refused() -> None:
    tree = Hierarchy(ClassTree(((0, 1), 2)), Full())
    with pytest.raises(InputError, match="adds classes"):
        replay(tree, tables(2, 3, DRAWS, seed=1))
