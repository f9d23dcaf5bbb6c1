"""The race with a calibrated threshold: the default rule if a model has a calibration.

A class is dropped if its excess error over the best class, summed over the draws so far and divided by the best class's
mean error, exceeds a limit. With means e_k, e_a after m draws, a the class with the smallest mean:

    m (e_k - e_a) / e_a  >  limit .

This is the form of Wald's sequential test: evidence adds up draw by draw and is compared with a constant. So one number
serves all looks, and the rule can decide after the first draw, when a t-test has no variance yet. The limit is measured
on validation images (:mod:`fastdc.calibration`), not assumed.
"""

from dataclasses import dataclass, field

import numpy as np

from fastdc.rules.protocol import AbstractRule, Look, check_draws, geometric_looks
from fastdc.support import InputError, Mask, checks


@dataclass(frozen=True)
class Calibrated(AbstractRule):
    """Drops a class whose summed relative difference to the best class exceeds a limit.

    Guarantee, with a limit from :func:`fastdc.calibration.calibrate_errors` at level delta: for an image that is
    exchangeable with the validation images, the class that the full run over `draws` draws would choose is dropped at
    any look with probability at most delta. So the answer is that of the full run with probability at least 1 - delta.
    The probability is over the validation images, the image and the noise. The guarantee holds in finite samples, for
    any model and any distribution of errors, on average over images and not for each kind of image. Images of another
    kind are not covered, for example noisy images if the validation images were clean.

    Attributes:
        limit: Summed relative difference above which a class is dropped, not negative.
        draws: Number of draws of the full run for which the limit was calibrated; a longer run is refused. None: any.
    """

    name = "calibrated"

    limit: float
    draws: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", checks.positive(f"rule {self.name}: limit", self.limit, zero=True))
        if self.draws is not None:
            object.__setattr__(self, "draws", checks.whole(f"rule {self.name}: draws", self.draws))

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks geometrically (:func:`geometric_looks`).

        Raises:
            InputError: The limit was calibrated for fewer draws.
        """
        check_draws(self.name, draws)
        if self.draws is not None and draws > self.draws:
            raise InputError(f"rule {self.name} is calibrated for up to {self.draws} draws, got {draws}")
        return geometric_looks(draws)

    def keep(self, look: Look) -> Mask:
        """Keeps the classes within the limit of the best class."""
        means = look.means
        best = means.min(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinite where there is no class
            return np.asarray(look.alive & (look.draws * (means - best) <= self.limit * best))
