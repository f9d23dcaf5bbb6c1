"""The scales of pixel values: a user's images in [0, 1], and a network's range, mostly [-1, 1].

The factor between the two scales is the field's best-known trap: a smoothing sigma of 0.25 on [0, 1] is a noise of 0.5
on [-1, 1]. Every conversion of pixels and of noise goes through this class.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

Pixels = TypeVar("Pixels")


@dataclass(frozen=True)
class PixelRange:
    """The range of a network's pixel values.

    Attributes:
        low: Value of a pixel that is 0 in [0, 1].
        high: Value of a pixel that is 1 in [0, 1].
    """

    low: float
    high: float

    @property
    def width(self) -> float:
        """The factor from [0, 1] to this range: differences of pixels and deviations of noise are multiplied by it."""
        return self.high - self.low

    def from_unit(self, unit: Pixels) -> Pixels:
        """Maps images, NumPy or torch, from [0, 1] to this range; the element type does not change."""
        values: Any = unit
        scaled: Pixels = values * self.width + self.low
        return scaled

    def to_unit(self, x: Pixels) -> Pixels:
        """Maps images, NumPy or torch, from this range to [0, 1]; the element type does not change."""
        values: Any = x
        scaled: Pixels = (values - self.low) / self.width
        return scaled

    def noise(self, sigma: float) -> float:
        """Standard deviation on this range of noise whose standard deviation on [0, 1] is `sigma`."""
        return float(sigma) * self.width
