"""Stopping rules, one module each. ``protocol`` defines what a rule is."""

from fastdc.rules.betting import Betting
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.calibration import Calibration, calibration_from_dict, plan_without_draws
from fastdc.rules.class_tree import ClassTree
from fastdc.rules.full import Full
from fastdc.rules.hierarchy import Hierarchy
from fastdc.rules.paired import OWN, Paired
from fastdc.rules.protocol import AbstractRule, Classes, Look, geometric_looks
from fastdc.rules.registry import RULES, describe, make_rule
from fastdc.rules.shifted import Shifted
from fastdc.rules.sift import Sift
from fastdc.rules.staged import Staged
from fastdc.rules.ttest import TTest
from fastdc.rules.votes import Votes

__all__ = [
    "OWN",
    "RULES",
    "AbstractRule",
    "Betting",
    "Calibrated",
    "Calibration",
    "ClassTree",
    "Classes",
    "Full",
    "Hierarchy",
    "Look",
    "Paired",
    "Shifted",
    "Sift",
    "Staged",
    "TTest",
    "Votes",
    "calibration_from_dict",
    "describe",
    "geometric_looks",
    "make_rule",
    "plan_without_draws",
]
