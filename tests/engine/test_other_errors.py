"""Several errors of one evaluation: those of separate runs to the bit, without a further call of the network."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastdc import DiffusionClassifier, InputError
from fastdc.diffusion import Plan, make_plan
from helpers.worlds import ManySlots, classifier, gaussian, unit_images

IMAGES = unit_images(5)
PLAN: dict[str, Any] = {"draws": 6, "levels": (0.2, 2.0)}
OTHERS = (("l1", "edm"), ("huber", "edm"), ("l2", "uniform"), ("huber", "velocity"))


def plans(clf: DiffusionClassifier) -> list[Plan]:
    model, config = clf.model, clf.settings(rule="full", **PLAN).job.plan.config
    return [
        make_plan(model.schedule, model.parameterization, replace(config, loss=loss, weighting=weighting))
        for loss, weighting in OTHERS
    ]


@pytest.mark.parametrize("slots", [1, 3])
def test_they_are_those_of_separate_runs(slots: int) -> None:
    clf = classifier(gaussian(3), batch=7, slots=slots)
    runs = clf.validation_runs(IMAGES, **PLAN)
    tables = runs.job.tables(runs.images.x, runs.images.streams, plans(clf))
    network = clf.network
    assert isinstance(network, ManySlots)
    assert sum(network.recorded) == 5 * 3 * 6  # one evaluation a cell, whatever the number of errors
    for (loss, weighting), table in zip([("l2", "edm"), *OTHERS], tables, strict=True):
        alone = clf.errors(IMAGES, loss=loss, weighting=weighting, **PLAN)
        np.testing.assert_array_equal(table.errors, alone.errors)
        np.testing.assert_array_equal(table.weights, alone.weights)
        assert table.plan == alone.plan


def test_plans_of_other_inputs_are_refused() -> None:
    clf = classifier(gaussian(3))
    runs = clf.validation_runs(IMAGES, **PLAN)
    noisy: dict[str, Any] = {"draws": 6, "levels": (0.3, 2.0), "sigma": 0.1, "method": "epndc"}
    for other in ({**PLAN, "levels": (0.3, 2.0)}, {**PLAN, "draws": 5}, noisy):
        plan = clf.settings(rule="full", **other).job.plan
        with pytest.raises(InputError, match="the same inputs"):
            runs.job.tables(runs.images.x, runs.images.streams, [plan])
