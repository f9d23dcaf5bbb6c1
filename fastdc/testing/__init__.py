"""For tests of code that uses fastdc: worlds with known answers, the float64 reference, and replays of error tables."""

from typing import TYPE_CHECKING

from fastdc.support import lazy_names
from fastdc.testing import reference
from fastdc.testing.absent import WITHOUT
from fastdc.testing.gaussian_world import GaussianWorld
from fastdc.testing.replay import Replay, replay, verify

if TYPE_CHECKING:
    from fastdc.testing.edm_files import write_edm
    from fastdc.testing.phantom_images import phantoms
    from fastdc.testing.tiny_pipelines import tiny_dit, tiny_sd
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "write_edm": "edm_files",
            "phantoms": "phantom_images",
            "tiny_dit": "tiny_pipelines",
            "tiny_sd": "tiny_pipelines",
        },
    )

__all__ = [
    "WITHOUT",
    "GaussianWorld",
    "Replay",
    "phantoms",
    "reference",
    "replay",
    "tiny_dit",
    "tiny_sd",
    "verify",
    "write_edm",
]
