"""Priors at the decision: exact Bayes in the Gaussian world, what they leave unchanged, and what refuses them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import Classification, DiffusionClassifier, ErrorTable, InputError, Session
from fastdc.certification import Copy, Vote
from fastdc.inference import decide, decide_table, posterior, prior_shifts
from fastdc.rules import Calibrated, ClassTree, Hierarchy, Paired
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.worlds import Float32, Float64, Int64, classifier, fails_with, gaussian, refusing

# Means so close that images of the classes overlap: the prior decides about many of them.
WORLD = GaussianWorld.random(4, (1, 4, 4), scale=0.15, seed=2)
PRIOR = np.array([0.7, 0.2, 0.08, 0.02])
DRAWS = 32


def scale_of(table: ErrorTable) -> float:
    """c, with expected error of class k = constant + c |mu_k - x|^2: the temperature of exact Bayes is 2 s^2 c."""
    variance, inside = table.sigma**2, WORLD.spread**2
    return float(np.mean(table.weights * variance**2 / (inside + variance) ** 2)) / 16


def sampled(n: int, prior: Float64, *, seed: int = 0) -> tuple[Float64, Int64]:
    """Images in [-1, 1] of classes that occur as often as a prior says, and the classes."""
    labels = np.random.default_rng(seed).choice(len(prior), n, p=prior / prior.sum()).astype(np.int64)
    return WORLD.sample(labels, seed=seed), labels


def unit(x: Float64) -> Float32:
    return ((x + 1) / 2).astype(np.float32)


def exact(x: Float64, prior: Float64) -> Float64:
    """p(k | x) by Bayes' rule, with the densities of the world."""
    distance = ((WORLD.means[None] - x[:, None]) ** 2).sum(axis=(2, 3, 4))
    logs = np.log(prior) - distance / (2 * WORLD.spread**2)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


X, TRUTH = sampled(600, PRIOR)
CLF = classifier(WORLD, batch=2048)
PLAN = CLF.errors(unit(X[:1]), draws=DRAWS)
TEMPERATURE = 2 * WORLD.spread**2 * scale_of(PLAN)
RUN: dict[str, Any] = {"draws": DRAWS, "temperature": TEMPERATURE}


# --- Bayes' rule -----------------------------------------------------------------------------------------------------


def test_with_the_expected_errors_the_posterior_is_exact_bayes() -> None:
    errors = np.stack([w * WORLD.expected_error(X, s) for w, s in zip(PLAN.weights, PLAN.sigma, strict=True)], axis=2)
    for prior in (PRIOR, np.array([1, 1, 1, 5.0]), np.array([1, 1e-6, 3, 2.0])):
        decided = decide(errors, temperature=TEMPERATURE, prior=prior)
        np.testing.assert_allclose(decided.probabilities, exact(X, prior), rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(decided.labels, exact(X, prior).argmax(axis=1))
        np.testing.assert_allclose(decided.mean_errors, errors.mean(axis=2))  # which the prior does not change


def test_the_true_prior_beats_the_uniform_one_and_comes_near_the_best_classifier() -> None:
    """Noisy errors of real runs: against the truth, paired image by image."""
    images = unit(X)
    with_prior = CLF.classify(images, rule="full", prior=PRIOR, **RUN)
    without = CLF.classify(images, rule="full", **RUN)
    best = float(np.mean(exact(X, PRIOR).argmax(axis=1) == TRUTH))
    gained = float(np.mean(with_prior.labels == TRUTH)) - float(np.mean(without.labels == TRUTH))
    assert gained > 0.1
    assert np.mean(with_prior.labels == TRUTH) > best - 0.03
    right = with_prior.probabilities[np.arange(600), TRUTH]
    assert np.log(right).mean() > np.log(without.probabilities[np.arange(600), TRUTH]).mean() + 0.1
    np.testing.assert_array_equal(with_prior.errors, without.errors)
    np.testing.assert_array_equal(with_prior.votes, without.votes)


def test_odds_change_by_the_ratio_of_the_priors() -> None:
    images = unit(X[:50])
    plain = CLF.classify(images, rule="full", **RUN).probabilities
    made = CLF.classify(images, rule="full", prior=PRIOR, **RUN).probabilities
    want = plain * PRIOR
    np.testing.assert_allclose(made, want / want.sum(axis=1, keepdims=True), rtol=1e-9)


# --- what a prior is -------------------------------------------------------------------------------------------------


def bits(one: Classification) -> list[bytes]:
    names = ("labels", "probabilities", "errors", "evaluations", "votes")
    return [*(getattr(one, name).tobytes() for name in names), one.table.values.tobytes()]


def test_a_uniform_prior_changes_no_bit() -> None:
    model = replace(CLF.model, class_counts=(3, 3, 3, 3))
    clf = DiffusionClassifier(model, CLF.network)
    names = dict.fromkeys(model.class_names, 0.3)
    for rule in ("full", "paired"):
        plain = clf.classify(unit(X[:30]), rule=rule, **RUN)
        for prior in ("uniform", [1, 1, 1, 1], np.full(4, 7.5), names, "data"):
            made = clf.classify(unit(X[:30]), rule=rule, prior=prior, **RUN)
            assert bits(made) == bits(plain)
            assert "prior" not in made.provenance
    assert (
        decide(PLAN.errors, prior=[2, 2, 2, 2]).probabilities.tobytes() == decide(PLAN.errors).probabilities.tobytes()
    )


def test_all_ways_to_give_a_prior_are_the_same() -> None:
    model = replace(CLF.model, class_counts=(70, 20, 8, 2))
    clf = DiffusionClassifier(model, CLF.network)
    want = clf.classify(unit(X[:30]), prior=PRIOR, **RUN)
    names = {f"class {k}": PRIOR[k] for k in (2, 0, 3, 1)}
    for prior in (PRIOR.tolist(), 9 * PRIOR, tuple(PRIOR), names, {3: 2, "class 0": 70, 2: 8, 1: 20}, "data"):
        made = clf.classify(unit(X[:30]), prior=prior, **RUN)
        np.testing.assert_array_equal(made.labels, want.labels)
        np.testing.assert_allclose(made.probabilities, want.probabilities, rtol=1e-9)
        assert made.provenance["prior"] == pytest.approx(PRIOR.tolist())


def test_a_class_of_weight_zero_is_no_candidate() -> None:
    images, prior = unit(X[:60]), [0.7, 0, 0.3, 0]
    for rule in ("full", "paired", "ttest"):
        made = CLF.classify(images, rule=rule, prior=prior, **RUN)
        assert set(made.labels.tolist()) <= {0, 2}
        assert not made.table.counts[:, [1, 3]].any()
        assert not made.probabilities[:, [1, 3]].any()
        assert np.isnan(made.errors[:, [1, 3]]).all()
    full = CLF.classify(images, rule="full", prior=prior, **RUN)
    assert set(full.evaluations.tolist()) == {2 * DRAWS}
    both = CLF.classify(images, rule="full", candidates=[0, 1, 2], prior=prior, **RUN)
    assert bits(both) == bits(full)
    alone = CLF.classify(images, prior=[0, 0, 1, 0], **RUN)
    assert set(alone.labels.tolist()) == {2}
    assert (alone.probabilities[:, 2] == 1).all()
    says = "prior is 0 for all candidates of image 1"
    lists = [[0, 1], [1, 3]]
    fails_with(partial(CLF.classify, images[:2], candidates=lists, prior=prior, **RUN), says, kind=InputError)


def test_shifts_are_logarithms_in_units_of_the_errors() -> None:
    shifts = prior_shifts([1, 4, 0, 2], temperature=0.5)
    assert shifts is not None
    assert shifts.tolist() == pytest.approx([0.5 * math.log(4), 0, math.inf, 0.5 * math.log(2)])
    assert prior_shifts([3, 3], 1.0) is None
    tiny = prior_shifts([5e-324, 1e308], 1.0)
    assert tiny is not None
    assert np.isfinite(tiny).all()


# --- saved tables ----------------------------------------------------------------------------------------------------


def test_a_saved_table_is_decided_under_any_prior(tmp_path: Path) -> None:
    CLF.errors(unit(X[:80]), draws=DRAWS).save(tmp_path / "errors.npz")
    table = ErrorTable.load(tmp_path / "errors.npz")
    for prior in (PRIOR, [1, 0, 0, 4]):
        again = decide_table(table, temperature=TEMPERATURE, prior=prior)
        run = CLF.classify(unit(X[:80]), rule="full", prior=prior, **RUN)
        np.testing.assert_array_equal(again.labels, run.labels)
        np.testing.assert_allclose(again.probabilities, run.probabilities, rtol=1e-9)  # a network rounds by its batch
        made = Classification.of_table(
            table, np.arange(80), decision="mean", temperature=TEMPERATURE, seconds=0, provenance={}, prior=prior
        )
        np.testing.assert_array_equal(made.probabilities, again.probabilities)
    run = CLF.classify(unit(X[:80]), prior=PRIOR, **RUN)  # of a race, too
    run.save(tmp_path / "result.npz")
    raced = decide_table(ErrorTable.load(tmp_path / "result.npz"), temperature=TEMPERATURE, prior=PRIOR)
    np.testing.assert_array_equal(raced.labels, run.labels)
    np.testing.assert_array_equal(raced.probabilities, run.probabilities)
    np.testing.assert_array_equal(Classification.load(tmp_path / "result.npz").labels, run.labels)


# --- races -----------------------------------------------------------------------------------------------------------


def test_the_race_is_that_of_paired_tests_and_keeps_the_answers_of_the_full_run() -> None:
    full = CLF.classify(unit(X), rule="full", prior=PRIOR, draws=128, temperature=TEMPERATURE)
    race = CLF.classify(unit(X), prior=PRIOR, draws=128, temperature=TEMPERATURE)
    assert race.provenance["rule"]["name"] == "paired"
    assert np.mean(race.labels != full.labels) <= 0.02
    assert race.evaluations.mean() < 0.9 * full.evaluations.mean()
    plain = CLF.classify(unit(X), draws=128)
    assert race.evaluations.sum() != plain.evaluations.sum()  # the rule knows the prior


def test_a_run_calibrates_itself_under_the_prior() -> None:
    full = CLF.classify(unit(X), rule="full", prior=PRIOR, **RUN)
    made = CLF.classify(unit(X), self_calibrate=99, prior=PRIOR, **RUN)
    assert made.promises is not None
    chosen = np.array([promise == "full" for promise in made.promises])
    np.testing.assert_array_equal(made.probabilities[chosen], full.probabilities[chosen])
    assert np.mean(made.labels != full.labels) <= 0.02
    assert made.evaluations[~chosen].mean() < 0.6 * 4 * DRAWS
    unaware = CLF.classify(unit(X), self_calibrate=99, **RUN)
    assert made.provenance["self_calibration"]["limit"] != unaware.provenance["self_calibration"]["limit"]


def test_a_models_calibration_has_no_promise_under_a_prior() -> None:
    made = CLF.calibrate(unit(X[:50]), delta=0.1, seeds=1, draws=DRAWS)
    clf = DiffusionClassifier(replace(CLF.model, calibration=made), CLF.network)
    assert clf.classify(unit(X[:5]), **RUN).provenance["rule"]["name"] == "calibrated"
    assert clf.classify(unit(X[:5]), prior=PRIOR, **RUN).provenance["rule"]["name"] == "paired"
    says = "rule calibrated has no promise under a prior"
    fails_with(partial(clf.classify, unit(X[:5]), rule="calibrated", prior=PRIOR, **RUN), says, kind=InputError)
    by_hand = clf.classify(unit(X[:5]), rule=Calibrated(3.0), prior=PRIOR, **RUN)
    assert by_hand.provenance["rule"]["limit"] == 3.0
    betting = clf.classify(unit(X[:5]), rule="betting", prior=PRIOR, **RUN)
    assert betting.provenance["rule"]["bound"] == made.bound  # the shifts are added inside


def test_a_tree_opens_no_class_of_weight_zero() -> None:
    tree = Hierarchy(ClassTree.from_nested([[0, 1], [2, 3]]), Paired(rivals=3), keep_nodes=9)
    made = CLF.classify(unit(X[:40]), rule=tree, prior=[0, 0.2, 0.5, 0], **RUN)
    assert not made.table.counts[:, [0, 3]].any()
    want = CLF.classify(unit(X[:40]), rule="paired", prior=[0, 0.2, 0.5, 0], **RUN)
    np.testing.assert_array_equal(made.labels, want.labels)


# --- prompts, sessions, certificates ---------------------------------------------------------------------------------


def test_prompts_share_the_prior_of_their_class() -> None:
    model = replace(
        CLF.model, class_names=("a", "b"), prompts=("1", "2", "3", "4"), class_of=(0, 1, 0, 1), class_counts=(3, 1)
    )
    clf = DiffusionClassifier(model, CLF.network)
    made = clf.classify(unit(X[:60]), rule="full", prior="data", **RUN)
    means = CLF.errors(unit(X[:60]), draws=DRAWS).mean()
    best = np.stack([means[:, [0, 2]].min(axis=1), means[:, [1, 3]].min(axis=1)], axis=1)
    np.testing.assert_allclose(made.errors, best)
    want = posterior(best, TEMPERATURE) * [3, 1]
    np.testing.assert_allclose(made.probabilities, want / want.sum(axis=1, keepdims=True), rtol=1e-9)
    np.testing.assert_array_equal(made.labels, want.argmax(axis=1))
    none = clf.classify(unit(X[:60]), prior=[0, 2], **RUN)
    assert set(none.labels.tolist()) == {1}
    assert not none.table.counts[:, [0, 2]].any()


@pytest.mark.parametrize("prior", [PRIOR.tolist(), [0.5, 0, 0.5, 0]])
@pytest.mark.parametrize("mode", ["throughput", "latency"])
def test_a_session_answers_as_classify(mode: str, prior: list[float]) -> None:
    want = CLF.classify(unit(X[:12]), prior=prior, **RUN)
    with Session(classifier(WORLD), prior=prior, mode=mode, **RUN) as session:
        answers = [session.submit(image).result() for image in unit(X[:12])]
        none = partial(session.submit, unit(X[:1])[0], candidates=[1, 3])
        if 0 in prior:
            fails_with(none, "prior is 0 for all candidates", kind=InputError)
    for name in ("labels", "probabilities", "evaluations"):
        np.testing.assert_array_equal(np.concatenate([getattr(each, name) for each in answers]), getattr(want, name))


def votes_of(prior: Any, target: int | None = None) -> dict[int, Vote]:
    """The votes of a base classifier about clean images, as if they were copies."""
    base = CLF.base(method="dc", sigma=0.0, prior=prior, **RUN)
    copies = [
        Copy(i, x, stream, target)
        for i, (x, stream) in enumerate(zip(X[:60].astype(np.float32), range(60), strict=True))
    ]

    def feed(room: int) -> list[Copy]:
        taken = copies[:room]
        del copies[:room]
        return taken

    return {vote.key: vote for votes in base.votes(feed) for vote in votes}


@pytest.mark.parametrize("prior", [PRIOR.tolist(), [0.5, 0, 0.5, 0]])
def test_a_smoothed_classifier_votes_under_the_prior(prior: list[float]) -> None:
    want = CLF.classify(unit(X[:60]), prior=prior, streams=range(60), **RUN)
    found = votes_of(prior)
    np.testing.assert_array_equal([found[i].label for i in range(60)], want.labels)
    np.testing.assert_array_equal([found[i].evaluations for i in range(60)], want.evaluations)
    asked = votes_of(prior, target=0)
    assert [asked[i].label == 0 for i in range(60)] == (want.labels == 0).tolist()
    assert CLF.base(sigma=0.1, prior=prior, temperature=0.1).describe()["prior"] == pytest.approx(prior)


# --- refusals --------------------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, str]] = [
    ("datta", "prior must be one of uniform, data, got 'datta'"),
    ("data", "prior needs the class counts of the training data, which gaussian has not"),
    ([1, 2], "prior must be 4 weights from 0, one for each class, or uniform or data, got 2 weights"),
    ([1, 2, 3, -4], "prior must be 4 weights from 0, one for each class, or uniform or data, got -4"),
    ([1, 2, 3, math.nan], "prior must be 4 weights from 0"),
    ([1, 2, 3, "4"], "prior must be 4 weights from 0"),
    (np.ones((4, 1)), "prior must be 4 weights from 0"),
    (0.5, "prior must be 4 weights from 0"),
    ([0, 0, 0, 0], "prior must have a positive weight"),
    ({"class 0": 20}, "'class 1' and 2 more are missing: for example class 0=20,class 1=1,class 2=1,class 3=1"),
    ({f"class {k}": 0.5 for k in range(3)}, "'class 3' is missing: for example class 0=0.5,class 1=0.5,class 2=0.5,"),
    ({"cat": 1}, "classes of prior must be classes of the model, got 'cat'"),
    ({**{f"class {k}": 1 for k in range(4)}, 0: 2}, "prior names a class twice"),
]


@pytest.mark.parametrize(("prior", "says"), WRONG)
def test_what_is_no_prior_is_refused(prior: Any, says: str) -> None:
    clf = refusing(WORLD.model)
    fails_with(partial(clf.classify, unit(X[:2]), prior=prior, temperature=0.1), says, kind=InputError)


def test_a_prior_needs_a_temperature_that_was_fitted_to_such_errors() -> None:
    clf = refusing(WORLD.model)
    calls: list[Callable[..., Any]] = [
        partial(clf.classify, unit(X[:2])),
        partial(Session, clf),
        clf.settings,
        partial(clf.base, sigma=0.1),
    ]
    says = "prior needs a fitted temperature, which model gaussian"
    for call in calls:
        fails_with(partial(call, prior=PRIOR), says, kind=InputError)
    fitted = refusing(replace(WORLD.model, defaults=replace(WORLD.model.defaults, temperature=0.1)))
    changes: dict[str, dict[str, Any]] = {
        "weighting edm, the run has uniform": {"weighting": "uniform"},
        "loss l2, the run has l1": {"loss": "l1"},
        "levels None, the run has (0.3, 2.0)": {"levels": (0.3, 2.0)},
        "method dc, the run has epndc": {"method": "epndc", "sigma": 0.1},
    }
    for difference, plan in changes.items():
        fails_with(partial(fitted.classify, unit(X[:2]), prior=PRIOR, **plan), difference, kind=InputError)
        fitted.settings(prior=PRIOR, temperature=0.2, **plan)
    fitted.settings(prior=PRIOR)


def test_what_a_prior_has_no_meaning_for_is_refused() -> None:
    clf, says = refusing(WORLD.model), "votes are none: expected decision mean"
    votes: dict[str, Any] = {"decision": "vote", "prior": PRIOR, "temperature": 1.0}
    fails_with(partial(clf.classify, unit(X[:2]), **votes), says, kind=InputError)
    fails_with(partial(decide, PLAN.errors, decision="vote", prior=PRIOR), says, kind=InputError)
    fails_with(partial(decide, PLAN.errors, prior=[1, 2]), "prior must be 4 weights, got shape (2,)", kind=InputError)
    fails_with(partial(decide, PLAN.errors, prior=[1, -2, 1, 1]), "prior must be weights from 0", kind=InputError)
    fails_with(partial(prior_shifts, [1, 2], 0.0), "temperature must be positive", kind=InputError)
    says = "prior changes decisions and no errors"
    errors: list[Callable[..., Any]] = [clf.errors, partial(clf.calibrate, delta=0.5)]
    for call in errors:
        fails_with(partial(call, unit(X[:2]), prior=PRIOR, temperature=1.0), says, kind=InputError)


def test_a_world_of_other_classes_is_not_touched() -> None:
    assert gaussian(3).model.class_counts is None
    says = "class_counts must be 3 numbers, got 2"
    fails_with(partial(replace, gaussian(3).model, class_counts=(1, 2)), says, kind=InputError)
