"""Which configuration to use: the fastest among those that change no answer; the default, unless another one pays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastdc.benchmark.rows import Row
from fastdc.benchmark.statistics import Latency, Spread

MARGIN = 0.05
"""Least gain for which the default is left."""

ENOUGH = 60
"""Least number of images that must agree before another precision is recommended: fewer than 5 % of answers differ."""

_REPEATS, _UNSURE = 3, 0.5  # fewer repeats show no spread: then the least gain is larger

CRITERION = "every answer equals that of float32"
"""Which configurations may be recommended."""


@dataclass(frozen=True)
class Advice:
    """Recommendations; None where no configuration may be recommended.

    Attributes:
        default: What :func:`fastdc.load` takes without options.
        throughput: The configuration with the most images/s.
        latency: The configuration with the smallest median time of single images.
    """

    default: Row | None
    throughput: Row | None
    latency: Row | None


def advise(rows: Sequence[Row], default: Row | None = None) -> Advice:
    """Recommends configurations.

    Args:
        rows: What was measured.
        default: The row of the default configuration; it is kept unless another one is clearly better.

    Example:
        >>> from fastdc.benchmark import advise
        >>> advise([]).throughput is None
        True
    """
    fit = [row for row in rows if row.agrees and not row.reason and (row == default or _compared_enough(row))]
    start = default if default is not None and default in fit else None
    rated = [row for row in fit if start is None or row == start or _more(row, start)]
    quick = [row for row in fit if start is None or row == start or _sooner(row, start)]
    return Advice(
        default,
        max((row for row in rated if row.images_per_second), key=_rate, default=None),
        min((row for row in quick if row.quickest), key=_p50, default=None),
    )


def _compared_enough(row: Row) -> bool:
    """Whether rounding alone may differ from the reference's, or so many images agree that few others will not."""
    one = row.configuration
    return (one.kind or one.precision) == "float32" or (row.compared or 0) >= ENOUGH


def _factor(mine: Spread | Latency, theirs: Spread | Latency) -> float:
    return 1 + (MARGIN if min(mine.count, theirs.count) >= _REPEATS else _UNSURE)


def _more(one: Row, other: Row) -> bool:
    """Whether a rate is 5 % above another, and its first quartile above the other's third: other work moves rates."""
    mine, theirs = one.images_per_second, other.images_per_second
    if mine is None or theirs is None:
        return theirs is None
    return mine.median > _factor(mine, theirs) * theirs.median and mine.low > theirs.high


def _sooner(one: Row, other: Row) -> bool:
    """Whether a median is 5 % below another, and its 95th percentile not above the other's."""
    mine, theirs = one.quickest, other.quickest
    if mine is None or theirs is None:
        return theirs is None
    return mine.p50 * _factor(mine, theirs) < theirs.p50 and mine.p95 <= theirs.p95


def _rate(row: Row) -> float:
    return 0.0 if row.images_per_second is None else row.images_per_second.median


def _p50(row: Row) -> float:
    return math.inf if row.quickest is None else row.quickest.p50
