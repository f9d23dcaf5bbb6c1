"""Worlds with known answers, the float64 reference, and replays of error tables: for users' tests, too."""

from fastdc.testing.absent import WITHOUT
from fastdc.testing.gaussian_world import GaussianWorld

__all__ = [
    "WITHOUT",
    "GaussianWorld",
]
