"""Rules by name: the rule made, the options filled in, the rule that a description rebuilds, and refusals."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fastdc import InputError
from fastdc.rules.betting import Betting
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.class_tree import ClassTree
from fastdc.rules.full import Full
from fastdc.rules.hierarchy import Hierarchy
from fastdc.rules.paired import Paired
from fastdc.rules.protocol import AbstractRule
from fastdc.rules.registry import KINDS, RULES, describe, make_rule
from fastdc.rules.sift import Sift
from fastdc.rules.staged import Staged
from fastdc.rules.ttest import TTest
from helpers.worlds import fails_with

CALIBRATED = Calibrated(1.25, draws=64)
NEEDED: dict[str, dict[str, Any]] = {
    "staged": {"n_samples": (2, 8), "to_keep": (3, 1)},
    "sift": {"threshold": 0.5},
    "votes": {"n_samples": (2, 8), "to_keep": (3, 1)},
    "calibrated": {"limit": 0.5},
    "betting": {"bound": 2.0},
}


def make(
    rule: Any,
    options: Any = None,
    *,
    n_classes: int = 5,
    calibrated: Calibrated | None = None,
    bound: float | None = None,
) -> AbstractRule:
    return make_rule(rule, options or {}, n_classes=n_classes, calibrated=calibrated, bound=bound)


def test_names_are_those_of_the_rules() -> None:
    assert RULES == ("race", "full", "staged", "ttest", "paired", "betting", "calibrated", "sift", "votes")
    for name, kind in KINDS.items():
        assert kind.name == name
        made = make(name, NEEDED.get(name))
        assert type(made) is kind
        made.looks(8)


def test_the_race_is_calibrated_if_it_can_be_and_else_paired() -> None:
    assert make("race") == Paired(rivals=4)
    assert make("race", {"alpha": 0.2}) == Paired(0.2, rivals=4)
    assert make("race", calibrated=CALIBRATED) == CALIBRATED
    assert make("calibrated", calibrated=CALIBRATED) == CALIBRATED
    assert make("race", {"limit": 3}) == Calibrated(3.0)
    assert make("race", {"limit": 3}, calibrated=CALIBRATED) == Calibrated(3.0)  # of no calibration: any draws
    assert make("race", {"draws": 16}, calibrated=CALIBRATED) == Calibrated(1.25, draws=16)


def test_options_that_the_model_determines_are_filled_in() -> None:
    assert make("paired", n_classes=10) == Paired(rivals=9)
    assert make("paired", n_classes=1) == Paired(rivals=1)
    assert make("paired", {"rivals": 3}, n_classes=10) == Paired(rivals=3)
    assert make("betting", bound=0.5) == Betting(bound=0.5, rivals=4)
    assert make("betting", {"bound": 2.0}, bound=0.5) == Betting(bound=2.0, rivals=4)
    assert make("ttest", bound=0.5) == TTest()


def test_rules_made_by_hand_are_taken_and_completed() -> None:
    for rule in (Full(), TTest(5), Sift(0.1), Staged((1,), (1,)), CALIBRATED):
        assert make(rule, calibrated=Calibrated(9)) is rule
    assert make(Paired(0.3)) == Paired(0.3, rivals=4)
    assert make(Betting(0.3), bound=7.0) == Betting(0.3, 7.0, rivals=4)
    tree = ClassTree(((0, 1), (2, 3, 4)))
    assert make(Hierarchy(tree, Paired())) == Hierarchy(tree, Paired(rivals=4))


@pytest.mark.parametrize("name", KINDS)
def test_a_description_is_plain_and_rebuilds_the_rule(name: str) -> None:
    rule = make(name, NEEDED.get(name))
    told = json.loads(json.dumps(describe(rule)))
    assert told.pop("name") == name
    assert make(name, told, n_classes=99, calibrated=CALIBRATED, bound=77.0) == rule


def test_a_description_names_the_rule_inside_a_rule() -> None:
    told = json.loads(json.dumps(describe(Hierarchy(ClassTree(((0, 1), (2,))), TTest(4)))))
    assert told["name"] == "tree"
    assert told["inner"] == {"name": "ttest", "min_scores": 4, "cutoff_pval": 2e-3, "max_scores": None, "every": 1}
    assert told["tree"] == {"nested": [[0, 1], [2]]}


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: make("best"), ("rule must be one of race, full,", "got 'best'")),
        (lambda: make("tree"), ("rule must be one of",)),
        (lambda: make(""), ("got ''",)),
        (lambda: make(None), ("got None",)),
        (lambda: make(Full), ("rule must be one of",)),
        (lambda: make(["full"]), ("rule must be one of",)),
        (lambda: make("full", {"alpha": 1}), ("rule full has no option 'alpha': it has none",)),
        (lambda: make("ttest", {"alpha": 1}), ("no option 'alpha'", "min_scores, cutoff_pval, max_scores, every")),
        (lambda: make("race", {"speed": 1}), ("rule paired has no option 'speed'",)),
        (lambda: make("race", {"alpha": 1}, calibrated=CALIBRATED), ("rule calibrated has no option 'alpha'",)),
        (
            lambda: make("staged"),
            ("rule staged needs n_samples=..., to_keep=..., such as n_samples=(11, 51) and to_keep=(3, 1)",),
        ),
        (lambda: make("staged", {"n_samples": (1,)}), ("rule staged needs to_keep=...",)),
        (lambda: make("sift"), ("rule sift needs threshold=...",)),
        (lambda: make("calibrated"), ("needs a calibration", "fastdc calibrate")),
        (lambda: make("calibrated", {"draws": 4}), ("needs a calibration",)),
        (lambda: make("paired", {"alpha": 2}), ("rule paired: alpha must lie strictly between 0 and 1, got 2",)),
        (lambda: make("betting").looks(8), ("rule betting needs bound=...", "fastdc calibrate stores one")),
        (lambda: make("betting", bound=0.0), ("rule betting: bound must be positive and finite, got 0.0",)),
        (lambda: make(Full(), {"alpha": 1}), ("rule full was made by hand", "['alpha']")),
        (lambda: make("race", 0.05), ("rule_options must be a dictionary of options by name, got 0.05",)),
        (lambda: make("race", ["alpha"]), ("rule_options must be a dictionary", "got ['alpha']")),
        (lambda: make("race", {1: 0.05}), ("rule_options must be a dictionary", "got {1: 0.05}")),
        (
            lambda: make(Hierarchy(ClassTree(((0, 1), (2,))), Full())),
            ("rule tree is made for 3 classes, the model has 5",),
        ),
    ],
)
def test_other_values_are_refused_as_rules(call: Callable[[], Any], parts: tuple[str, ...]) -> None:
    fails_with(call, *parts, kind=InputError)


@pytest.mark.parametrize("rule", ["staged", "votes"])
def test_one_stage_needs_no_list(rule: str) -> None:
    assert make(rule, {"n_samples": 11, "to_keep": 1}) == make(rule, {"n_samples": (11,), "to_keep": [1]})
    with pytest.raises(InputError, match="n_samples must be a list of whole numbers, got 'x'"):
        make(rule, {"n_samples": "x", "to_keep": 1})
    with pytest.raises(InputError, match=r"each of rule .*: n_samples must be"):
        make(rule, {"n_samples": 1.5, "to_keep": 1})
