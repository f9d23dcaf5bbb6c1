"""Noised diffusion classifiers: what is denoised, and compared with what, when the image itself is noisy.

The image is x_tau = x_0 + tau e_0 with a known tau, as under randomized smoothing (Chen et al., arXiv 2402.02316). At a
level s all methods give the network x_s = y + s' e, where x_s has noise s in all, and compare its estimate D of the
clean image with a target (levels and tau are noise-to-signal ratios):

=========  ==================  ==================  ==========================  ================================
method     y                   s'                  target                      what it is
=========  ==================  ==================  ==========================  ================================
dc         x_tau               s                   x_tau                       the Diffusion Classifier: takes
                                                                               the image for a clean one
denoised   h(x_tau)            s                   h(x_tau)                    one denoising step, then dc
epndc      x_tau               sqrt(s^2 - tau^2)   x_tau - (tau^2 / s') e      exact posterior
apndc      h(x_tau)            s                   h(x_tau)                    approximated posterior, as
                                                                               published: denoised, with levels
                                                                               above tau only
apndc-x    x_tau               sqrt(s^2 - tau^2)   h(x_tau)                    approximated posterior without
                                                                               noise on noise ("correct APNDC")
=========  ==================  ==================  ==========================  ================================

h is the network at level tau without a class, or, where it knows no such thing, the mean over all classes.

epndc: the paper compares the means of q(x_t | x_s, x_tau) and p(x_t | x_s, class) for a step from s to t. Their
difference is (s^2 - t^2) / s^2 times D - m with m = (s^2 x_tau - tau^2 x_s) / (s^2 - tau^2), which is the target above
and does not depend on t; so no grid of consecutive levels is needed. The paper's weights on that are those of the plain
classifier times (s + t)(s^2 - tau^2) / (2 s (t^2 - tau^2)), which tends to 1 as t tends to s: here it is 1.
"""

from dataclasses import dataclass

import numpy as np

from fastdc.support import Float64, InputError


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: What users call it.
        denoises: Whether it needs h(x_tau).
        replaces: Whether h(x_tau) takes the image's place; else it is the target beside the image.
        above: Whether levels must lie above tau.
    """

    name: str
    denoises: bool = False
    replaces: bool = False
    above: bool = True

    @property
    def noisy(self) -> bool:
        """Whether noise is added to the noisy image, so that the network's level is made of both."""
        return self.above and not self.replaces

    def added(self, ratio: Float64, tau: float) -> Float64:
        """s', the standard deviation of the noise that is added, over the signal.

        Raises:
            InputError: A level does not lie above tau.
        """
        if self.above and np.any(ratio <= tau):
            raise InputError(
                f"method {self.name} needs levels above the images' noise {tau:.4g} (sigma / alpha), "
                f"got {ratio.min():.4g}"
            )
        return np.sqrt(ratio**2 - tau**2) if self.noisy else ratio

    def target(self, ratio: Float64, tau: float) -> tuple[Float64, Float64, Float64]:
        """Coefficients of y, e and h(x_tau) in the target, each of the shape of `ratio`."""
        one, zero = np.ones_like(ratio), np.zeros_like(ratio)
        if self.name == "epndc":
            return one, -(tau**2) / self.added(ratio, tau), zero
        if self.denoises and not self.replaces:
            return zero, zero, one
        return one, zero, zero


_ALL = {
    method.name: method
    for method in (
        Method("dc", above=False),
        Method("denoised", denoises=True, replaces=True, above=False),
        Method("epndc"),
        Method("apndc", denoises=True, replaces=True),
        Method("apndc-x", denoises=True),
    )
}
METHODS = tuple(_ALL)


def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: Unknown name.
    """
    if name not in _ALL:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {name!r:.80}")
    return _ALL[name]
