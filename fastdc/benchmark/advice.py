"""Which configuration to use: the fastest among those that change no answer; the default, unless another one pays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastdc.benchmark.rows import Row

MARGIN = 0.05
"""Least gain for which the default is left."""

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
    fit = [row for row in rows if row.agrees and not row.reason]
    start = default if default is not None and default in fit else None
    rated = [row for row in fit if row.images_per_second is not None]
    quick = [row for row in fit if row.best_p50 is not None]
    throughput = max(rated, key=_rate, default=None)
    latency = min(quick, key=_p50, default=None)
    if throughput is not None and start is not None and not _clearly_more(throughput, start):
        throughput = start
    if latency is not None and start is not None and _p50(latency) * (1 + MARGIN) >= _p50(start):
        latency = start
    return Advice(default, throughput, latency)


def _clearly_more(one: Row, other: Row) -> bool:
    """Whether a rate is 5 % above another, and its first quartile above the other's third: other work moves rates."""
    if one.images_per_second is None or other.images_per_second is None:
        return other.images_per_second is None
    return _rate(one) > (1 + MARGIN) * _rate(other) and one.images_per_second.low > other.images_per_second.high


def _rate(row: Row) -> float:
    return 0.0 if row.images_per_second is None else row.images_per_second.median


def _p50(row: Row) -> float:
    return math.inf if row.best_p50 is None else row.best_p50
