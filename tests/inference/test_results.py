"""Results: what a table is turned into, and how far a run says it is."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from fastdc import Classification, InputError, Progress
from fastdc.inference.decide import decide
from helpers.worlds import classifier, fails_with, gaussian, unit_images

WORLD = gaussian(4)


@pytest.mark.parametrize("decision", ["mean", "vote"])
def test_a_result_is_the_decision_of_its_table(decision: str) -> None:
    table = classifier(WORLD).classify(unit_images(8), draws=16, rule="calibrated", rule_options={"limit": 0.6}).table
    assert len(set(table.evaluations.tolist())) > 1
    result = Classification.of_table(
        table,
        np.arange(8) + 30,
        decision=decision,
        temperature=0.5,
        seconds=1.5,
        provenance={"seed": 3},
    )
    decided = decide(table.errors, decision=decision, temperature=0.5)
    np.testing.assert_array_equal(result.labels, decided.labels)
    np.testing.assert_array_equal(result.probabilities, decided.probabilities)
    np.testing.assert_array_equal(result.errors, decided.mean_errors)
    np.testing.assert_array_equal(result.votes, decided.votes)
    np.testing.assert_array_equal(result.evaluations, np.count_nonzero(~np.isnan(table.errors), axis=(1, 2)))
    assert result.indices.tolist() == list(range(30, 38))
    assert result.names == tuple(f"class {label}" for label in decided.labels)
    assert (result.seconds, result.provenance, result.table) == (1.5, {"seed": 3}, table)
    assert result == result  # noqa: PLR0124 - comparing must not raise, although it holds arrays
    with pytest.raises(FrozenInstanceError):
        result.seconds = 2.0  # type: ignore[misc]


def test_what_cannot_be_decided_is_refused() -> None:
    table = classifier(WORLD).errors(unit_images(1), draws=2)

    def of(decision: str, temperature: float) -> Classification:
        return Classification.of_table(
            table, np.arange(1), decision=decision, temperature=temperature, seconds=0, provenance={}
        )

    fails_with(lambda: of("median", 1), "decision must be one of mean, vote, got 'median'", kind=InputError)
    fails_with(lambda: of("mean", 0), "temperature must be positive", kind=InputError)


def test_progress_is_four_numbers() -> None:
    progress = Progress(finished=1, images=2, evaluations=3, at_most=4)
    assert progress == Progress(1, 2, 3, 4)
    with pytest.raises(FrozenInstanceError):
        progress.finished = 2  # type: ignore[misc]
