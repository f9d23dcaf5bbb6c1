"""For tests of code that uses fastdc: worlds with known answers, the float64 reference, and replays of error tables."""

from fastdc.testing import reference
from fastdc.testing.absent import WITHOUT
from fastdc.testing.gaussian_world import GaussianWorld
from fastdc.testing.replay import Replay, replay, verify

__all__ = [
    "WITHOUT",
    "GaussianWorld",
    "Replay",
    "reference",
    "replay",
    "verify",
]
