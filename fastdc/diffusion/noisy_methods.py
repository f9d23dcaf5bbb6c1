"""Noised diffusion classifiers: methods for an image that is itself noisy.

The image is x_tau = x_0 + tau e_0 with a known tau, as under randomized smoothing (Chen et al., arXiv 2402.02316). At a
level s, every method gives the network x_s = y + s' e, which contains noise s in total, and compares the network's
estimate D of the clean image with a target (levels and tau are noise-to-signal ratios):

=========  ==================  ==================  ==========================  ================================
method     y                   s'                  target                      description
=========  ==================  ==================  ==========================  ================================
dc         x_tau               s                   x_tau                       the Diffusion Classifier: treats
                                                                               the image as clean
denoised   h(x_tau)            s                   h(x_tau)                    one denoising step, then dc
epndc      x_tau               sqrt(s^2 - tau^2)   x_tau - (tau^2 / s') e      exact posterior
apndc      h(x_tau)            s                   h(x_tau)                    approximated posterior, as
                                                                               published: like denoised, at
                                                                               levels above tau only
apndc-x    x_tau               sqrt(s^2 - tau^2)   h(x_tau)                    approximated posterior without
                                                                               noise on noise ("correct APNDC")
=========  ==================  ==================  ==========================  ================================

h is the network at level tau without a class. If the network always needs a class, h is another, unconditional model at
the same noise-to-signal ratio, as in the released code. The mean over all classes (:data:`MEAN`) is an estimate of
another image and is used only on request: h(x_tau) is the mean of the classes' estimates weighted by their posterior
given x_tau, which at small tau is nearly the estimate of one class, and equal weights pull it to the average image.

epndc: the paper compares the means of q(x_t | x_s, x_tau) and p(x_t | x_s, class) for a step from s to t. Their
difference is (s^2 - t^2) / s^2 times D - m with m = (s^2 x_tau - tau^2 x_s) / (s^2 - tau^2). m is the target above and
does not depend on t, so no grid of consecutive levels is needed. The paper weights this difference with the plain
classifier's weights times (s + t)(s^2 - tau^2) / (2 s (t^2 - tau^2)), which tends to 1 as t tends to s; here it is 1.
"""

from dataclasses import dataclass

import numpy as np

from fastdc.support import Float64, InputError, checks


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: Name of the method, one of :data:`METHODS`.
        denoises: Whether the method needs h(x_tau).
        replaces: Whether h(x_tau) replaces the image; otherwise, h(x_tau) is the target beside the image.
        above: Whether levels must lie above tau.
    """

    name: str
    denoises: bool = False
    replaces: bool = False
    above: bool = True

    @property
    def noisy(self) -> bool:
        """Whether noise is added to the noisy image itself, so that both noises make up the network's level."""
        return self.above and not self.replaces

    def added(self, ratio: Float64, tau: float) -> Float64:
        """Returns s', the standard deviation of the added noise over the signal.

        Args:
            ratio: float64, noise-to-signal ratios of the levels.
            tau: Noise-to-signal ratio of the image.

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
        """Returns the coefficients of y, e and h(x_tau) in the target, each of the shape of `ratio`."""
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

MEAN = "mean"
"""Names h as the mean over all classes, see above."""


def method_of(name: str) -> Method:
    """Returns the method of a name.

    Args:
        name: One of :data:`METHODS`.

    Raises:
        InputError: The name is unknown.

    Example:
        >>> from fastdc.diffusion import method_of
        >>> method_of("epndc").noisy
        True
    """
    return _ALL[checks.one_of("method", name, METHODS)]
