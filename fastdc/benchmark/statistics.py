"""Numbers of repeated measurements: medians with their spread, and percentiles of latencies.

A median, unlike a mean, is not moved by the one repeat in which the machine did something else. Percentiles are
interpolated linearly between the sorted values, as NumPy does by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Repeats of one measurement.

    Attributes:
        median: Their median.
        low: Their first quartile.
        high: Their third quartile.
        count: Number of repeats.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value or more."""
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high, len(values))

    @property
    def relative(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Latency:
    """Times of single images.

    Attributes:
        p50: Their median, in milliseconds.
        p95: Their 95th percentile, in milliseconds.
        count: Number of images.
    """

    p50: float
    p95: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """The percentiles of one time or more."""
        p50, p95 = (1e3 * np.percentile(seconds, [50, 95])).tolist()
        return cls(p50, p95, len(seconds))
