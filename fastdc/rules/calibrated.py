"""The race with a calibrated threshold: the default where a model has one.

A class is dropped when its lead in error over the best class, summed over the draws so far and measured in units of the
best class's mean error, exceeds a limit. With means e_k, e_a after m draws, a the class with the smallest mean:

    m (e_k - e_a) / e_a  >  limit .

That is the form of Wald's sequential test: evidence adds up draw by draw and is compared with a constant, so one number
serves all looks and a decision can be made from the first draw, where a t-test knows no variance yet. How large the
number must be is read off validation images (:mod:`fastdc.calibration.race`), not assumed.
"""

from dataclasses import dataclass, field

import numpy as np

from fastdc.rules.protocol import AbstractRule, Look, Mask, check_draws, geometric_looks
from fastdc.support import InputError, checks


@dataclass(frozen=True)
class Calibrated(AbstractRule):
    """Drops a class whose summed relative difference to the best exceeds a limit.

    Guarantee, with a limit from :func:`fastdc.calibration.race.calibrate` at level delta: for an image that is
    exchangeable with the validation images, the class that the full run over `draws` draws would choose is dropped at
    any look with probability at most delta, so the answer is that of the full run with probability at least 1 - delta.
    The probability is over the validation images, the image and the noise; it holds in finite samples, whatever the
    model and the distribution of errors, on average over images and not for each kind of image. Images of another kind,
    such as noisy ones where the validation images were clean, are not covered.

    Attributes:
        limit: Summed relative difference above which a class is dropped, not negative.
        draws: Draws of the full run that the limit was calibrated for: a longer run is refused; None: any.
    """

    name = "calibrated"

    limit: float
    draws: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", checks.positive(f"rule {self.name}: limit", self.limit, zero=True))
        if self.draws is not None:
            object.__setattr__(self, "draws", checks.whole(f"rule {self.name}: draws", self.draws))

    def looks(self, draws: int) -> tuple[int, ...]:
        """See :class:`AbstractRule`."""
        check_draws(self.name, draws)
        if self.draws is not None and draws > self.draws:
            raise InputError(f"rule {self.name} is calibrated for up to {self.draws} draws, got {draws}")
        return geometric_looks(draws)

    def keep(self, look: Look) -> Mask:
        """See :class:`AbstractRule`."""
        means = look.means
        best = means.min(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinite where there is no class
            return np.asarray(look.alive & (look.draws * (means - best) <= self.limit * best))
