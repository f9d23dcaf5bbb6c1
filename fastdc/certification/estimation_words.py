"""An estimation in the words of ``fastdc certify`` and of ``clf.certify``: one meaning and one set of defaults."""

from fastdc.certification.estimation import (
    ALPHA,
    COPIES,
    TARGET_COPIES,
    TOLERANCE,
    AbstractEstimation,
    Anytime,
    Fixed,
    Pilot,
    Target,
)
from fastdc.support import InputError, checks, shown

ESTIMATIONS = ("fixed", "pilot", "anytime")
"""How many copies bound a probability, by name."""


def estimation_of(
    sigma: float | AbstractEstimation | None = None,
    *,
    n: int | None = None,
    alpha: float | None = None,
    radius: float | None = None,
    estimation: str | AbstractEstimation = "fixed",
    tolerance: float | None = None,
) -> AbstractEstimation:
    """The estimation that a user describes in words, or gives as an object, which then has all of them.

    Args:
        sigma: Standard deviation of the noise, in pixels in [0, 1]; needed. Or an estimation.
        n: Largest number of copies that bound the probability; default: 1000, with `radius` 10,000.
        alpha: Probability of a false certificate; default: 0.001.
        radius: L2 radius in pixels in [0, 1] to certify or refuse, with as few copies as possible (:class:`Target`).
        estimation: "fixed": n copies; "pilot": as many as the selection copies suggest; "anytime": until more copies
            would gain little. Or an estimation.
        tolerance: Radius that "pilot" and "anytime" may lose, in pixels in [0, 1]; default: 0.05.

    Example:
        >>> from fastdc.certification import estimation_of
        >>> estimation_of(0.25, radius=0.5)
        Target(sigma=0.25, radius=0.5, n=10000, alpha=0.001)

    Raises:
        InputError: Words exclude each other, or one is out of range.
    """
    objects = [given for given in (sigma, estimation) if isinstance(given, AbstractEstimation)]
    if objects:
        words = {"n": n, "alpha": alpha, "radius": radius, "tolerance": tolerance}
        if not isinstance(estimation, AbstractEstimation):
            words["estimation"] = None if estimation == "fixed" else estimation  # type: ignore[assignment]
        elif sigma is not None:
            words["sigma"] = sigma  # type: ignore[assignment]
        beside = [name for name, given in words.items() if given is not None]
        if beside:
            kind = type(objects[0]).__name__
            raise InputError(f"{kind} is a whole estimation: expected no {beside[0]} beside it")
        return objects[0]
    kind = checks.one_of("estimation", estimation, ESTIMATIONS)
    if sigma is None:
        raise InputError("sigma must be given: the standard deviation of the noise, in pixels in [0, 1]")
    if not checks.is_number(sigma):
        raise InputError(f"sigma must be a number or an estimation, such as certification.Fixed, got {shown(sigma)}")
    alpha = ALPHA if alpha is None else alpha
    if tolerance is not None:
        if kind == "fixed" or radius is not None:
            raise InputError("tolerance needs estimation=pilot or anytime, and no radius")
        tolerance = checks.positive("tolerance", tolerance, below=1e6)
    if radius is not None:
        if kind != "fixed":
            raise InputError(f"radius has an estimation of its own: expected no estimation {kind} beside it")
        return Target(sigma, radius, TARGET_COPIES if n is None else n, alpha)
    n = COPIES if n is None else n
    if kind == "fixed":
        return Fixed(sigma, n, alpha)
    lost = TOLERANCE if tolerance is None else tolerance
    return Pilot(sigma, n, alpha, loss=lost) if kind == "pilot" else Anytime(sigma, n, alpha, gain=lost)
