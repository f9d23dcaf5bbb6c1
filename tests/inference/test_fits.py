"""What full runs fit to a model, against the fits to errors that are selected by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from fastdc import DiffusionClassifier
from fastdc.calibration import calibrate_errors, fit_temperature, with_doubt
from fastdc.inference import PlanOptions
from fastdc.inference.decide import by_class, decide
from fastdc.inference.fits import fit_runs, full_runs
from fastdc.support import Float64
from helpers.worlds import classifier, gaussian, unit_images

N, K = 30, 4


def plan(draws: int) -> PlanOptions:
    return {"draws": draws, "levels": (0.5, 2.0), "weighting": "edm"}


IMAGES = unit_images(N)
LABELS = np.arange(N) % K


def prompted(clf: DiffusionClassifier, class_of: Sequence[int]) -> DiffusionClassifier:
    """The same network, whose labels are prompts of fewer classes."""
    names = tuple("abcd"[: max(class_of) + 1])
    model = replace(
        clf.model, class_names=names, class_of=tuple(class_of), prompts=tuple("wxyz"[: len(class_of)]), null_class=None
    )
    return replace(clf, model=model)


@pytest.mark.parametrize("classes", [None, [3, 1], [0, 2, 3]])
@pytest.mark.parametrize("class_of", [(), (0, 0, 1, 2)], ids=["classes", "prompts"])
def test_fits_are_those_of_the_errors_of_the_classes(classes: list[int] | None, class_of: tuple[int, ...]) -> None:
    clf = classifier(gaussian(K))
    if class_of:
        clf = prompted(clf, class_of)
        classes = None if classes is None else [2, 0][: len(classes)]
    count = len(clf.class_names) if classes is None else len(classes)
    labels = LABELS % count
    runs = clf.validation_runs(IMAGES, **plan(16))
    fits = fit_runs(runs, labels, draws=4, seeds=2, full=8, delta=0.05, classes=classes)

    every = [clf.errors(IMAGES, seed=seed, **plan(16)).errors for seed in range(2)]
    chosen = list(range(clf.model.num_classes)) if classes is None else classes
    of = list(class_of or range(K))
    conditions = [c for c in range(K) if of[c] in chosen] if class_of else chosen
    means: list[Float64] = []
    for errors in every:
        decided = decide(errors[:, conditions, :4])
        if class_of:
            decided = by_class(decided, [chosen.index(of[c]) for c in conditions], n_classes=count)
        means.append(decided.mean_errors)
    doubtful = with_doubt(np.concatenate(means), np.tile(labels, 2), 2)
    assert fits.temperature == fit_temperature(*doubtful)
    assert np.array_equal(fits.errors, means[0])
    config = replace(runs.config, draws=8)
    assert fits.race == calibrate_errors([errors[:, conditions, :8] for errors in every], config, delta=0.05)
    assert fits.refusal == ""


def test_without_a_level_there_is_no_race() -> None:
    runs = classifier(gaussian(K)).validation_runs(IMAGES, **plan(4))
    fits = fit_runs(runs, LABELS, draws=4, seeds=1)
    assert fits.race is None
    assert fits.refusal == ""
    assert fits.temperature > 0


def test_a_level_that_they_do_not_support_leaves_the_temperature() -> None:
    runs = classifier(gaussian(K)).validation_runs(IMAGES, **plan(4))
    fits = fit_runs(runs, LABELS, draws=4, seeds=1, full=4, delta=0.01)
    assert fits.race is None
    assert "delta = 0.01 needs at least 99 validation images, got 30" in fits.refusal
    assert fits.temperature == fit_runs(runs, LABELS, draws=4, seeds=1).temperature


def test_expensive_networks_are_compared_with_shorter_runs() -> None:
    assert full_runs(0, 10**9) == (128, 4)
    for flops, cells in ((1e6, 2000), (1e8, 2000), (1e9, 2000), (1e12, 2000)):
        draws, seeds = full_runs(flops, cells)
        assert flops * cells * draws * seeds <= 2e13 or (draws, seeds) == (16, 1)
        assert seeds == 1 or draws == 128
