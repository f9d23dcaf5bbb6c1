"""Rules by name, for the public object and the command line."""

import dataclasses
from typing import Any

from fastdc.rules.betting import Betting
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.full import Full
from fastdc.rules.paired import Paired
from fastdc.rules.protocol import AbstractRule
from fastdc.rules.sift import Sift
from fastdc.rules.staged import Staged
from fastdc.rules.ttest import TTest
from fastdc.rules.votes import Votes
from fastdc.support import InputError, checks, did_you_mean, shown

KINDS: dict[str, type[AbstractRule]] = {
    kind.name: kind for kind in (Full, Staged, TTest, Paired, Betting, Calibrated, Sift, Votes)
}
RULES = ("race", *KINDS)
"""Names of rules. "race" is "calibrated" if the model has a calibration for the plan, else "paired"."""


def make_rule(
    rule: str | AbstractRule,
    options: dict[str, Any],
    *,
    n_classes: int,
    calibrated: Calibrated | None,
    bound: float | None,
    misfit: str | None = None,
) -> AbstractRule:
    """Makes the rule that a user named, and fills in the options that the model determines.

    Args:
        rule: One of :data:`RULES`, or a rule object.
        options: The rule's fields by name; empty for a rule object.
        n_classes: Number of classes K, for rules that divide their error over rivals.
        calibrated: The model's calibrated race for the plan, or None.
        bound: Largest difference between two classes' errors in the model's calibration, or None.
        misfit: Why the model's calibration is not for the plan, if there is one, for the message.

    Returns:
        The rule.

    Raises:
        InputError: The name or an option is unknown, an option is out of range, or the rule needs a calibration and
            there is none.

    Example:
        >>> from fastdc.rules import make_rule
        >>> make_rule("race", {"alpha": 0.05}, n_classes=10, calibrated=None, bound=None)
        Paired(alpha=0.05, first=3, rivals=9)
    """
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise InputError(f"rule_options must be a dictionary of options by name, got {shown(options)}")
    if isinstance(rule, AbstractRule):
        if options:
            raise InputError(f"rule {rule.name} was made by hand and takes no further options, got {sorted(options)}")
        return _completed(rule, n_classes, bound)
    checks.one_of("rule", rule, RULES)
    if rule == "race":
        rule = Paired.name if calibrated is None and "limit" not in options else Calibrated.name
    if rule == Calibrated.name and "limit" not in options:
        if calibrated is None:
            why = f", and the model's is for {misfit}" if misfit else ""
            raise InputError(f"rule calibrated needs a calibration for these levels and weights{why}: fastdc calibrate")
        return dataclasses.replace(calibrated, **_known(Calibrated, options))
    kind = KINDS[rule]
    try:
        return _completed(kind(**_known(kind, options)), n_classes, bound)
    except TypeError:
        needed = [f.name for f in dataclasses.fields(kind) if _required(f)]  # type: ignore[arg-type]
        missing = [name for name in needed if name not in options]
        such = ", such as n_samples=(11, 51) and to_keep=(3, 1)" if "n_samples" in needed else ""
        raise InputError(f"rule {rule} needs {', '.join(f'{name}=...' for name in missing)}{such}") from None


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _known(kind: type[AbstractRule], options: dict[str, Any]) -> dict[str, Any]:
    fields = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise InputError(
            f"rule {kind.name} has no option {shown(unknown[0])}: it has {', '.join(fields) or 'none'}"
            f"{did_you_mean(unknown[0], fields)}"
        )
    return options


def _completed(rule: AbstractRule, n_classes: int, bound: float | None) -> AbstractRule:
    """Fills in the number of rivals and the bound on differences, if the rule has these options and they are None.

    Raises:
        InputError: The rule is made for another number of classes.
    """
    if rule.n_classes not in (None, n_classes):
        raise InputError(f"rule {rule.name} is made for {rule.n_classes} classes, the model has {n_classes}")
    facts: dict[str, Any] = {"rivals": max(n_classes - 1, 1), "bound": bound}
    missing = {name: value for name, value in facts.items() if value is not None and getattr(rule, name, 0) is None}
    inner = getattr(rule, "inner", None)
    if isinstance(inner, AbstractRule):
        missing["inner"] = _completed(inner, n_classes, bound)
    return dataclasses.replace(rule, **missing) if missing else rule  # type: ignore[type-var]


def describe(rule: AbstractRule) -> dict[str, Any]:
    """Describes a rule, and the rule inside it if there is one, for provenance.

    Args:
        rule: The rule.

    Returns:
        Its name and options as plain values.

    Example:
        >>> from fastdc.rules import Full, describe
        >>> describe(Full())
        {'name': 'full'}
    """
    options = dataclasses.asdict(rule)  # type: ignore[call-overload]
    inner = {name: describe(getattr(rule, name)) for name in options if isinstance(getattr(rule, name), AbstractRule)}
    return {"name": rule.name, **options, **inner}
