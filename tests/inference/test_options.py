"""Options: one object or keywords, the same run; the two spellings know the same names."""

import dataclasses
import inspect
from typing import Any, get_type_hints

import numpy as np
import pytest

from fastdc import InputError, Options
from fastdc.inference import RunOptions, merged
from helpers.worlds import classifier, fails_with, gaussian, unit_images

CLASSIFIER = classifier(gaussian(3))
IMAGES = unit_images(3)


def test_the_object_and_the_keywords_have_the_same_names() -> None:
    names = [field.name for field in dataclasses.fields(Options)]
    assert sorted(names) == sorted(get_type_hints(RunOptions))
    for name in names:
        assert f"    {name}: " in (inspect.getdoc(Options) or ""), f"{name} is not documented"


def test_an_object_keywords_and_both_are_the_same_run() -> None:
    whole = CLASSIFIER.classify(IMAGES, rule="full", draws=4, seed=3, decision="vote")
    for result in (
        CLASSIFIER.classify(IMAGES, Options(rule="full", draws=4, seed=3, decision="vote")),
        CLASSIFIER.classify(IMAGES, Options(rule="paired", draws=4, seed=3), rule="full", decision="vote"),
    ):
        np.testing.assert_array_equal(result.errors, whole.errors)
        np.testing.assert_array_equal(result.votes, whole.votes)
        assert result.provenance == whole.provenance
    assert CLASSIFIER.base(Options(sigma=0.1, draws=4)).job.plan.config.method == "epndc"
    assert CLASSIFIER.base(Options(sigma=0.1, draws=4), method="dc").job.plan.config.method == "dc"


def test_keywords_win_and_the_object_stays_as_it_is() -> None:
    options = Options(draws=4, first=(0.5,))
    changed = merged(options, {"draws": 8, "first": None})
    assert (changed.draws, changed.first) == (8, None)
    assert (options.draws, options.first) == (4, (0.5,))
    assert changed.plan == {"draws": 8}
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.draws = 5  # type: ignore[misc]


def test_other_objects_and_names_are_refused() -> None:
    wrong: Any
    for wrong in ({"draws": 4}, "full", 3):
        fails_with(lambda wrong=wrong: CLASSIFIER.classify(IMAGES, wrong), "options must be", kind=InputError)  # type: ignore[misc]
    unknown: dict[str, Any] = {"speed": 3}
    fails_with(lambda: CLASSIFIER.classify(IMAGES, **unknown), "there is no option 'speed'", kind=InputError)
    fails_with(lambda: CLASSIFIER.errors(IMAGES, **unknown), "there is no option 'speed'", kind=InputError)
