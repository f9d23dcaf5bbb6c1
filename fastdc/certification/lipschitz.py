"""Lipschitz certificates of the plain diffusion classifier, from errors that were measured at the image only.

Expected errors cannot change faster than a known rate, so a clear win at an image is a win around it;
:mod:`fastdc.certification.lipschitz_radii` turns margins of expected errors into radii. This module bounds the expected
margins from finitely many draws, by Maurer & Pontil's empirical Bernstein inequality on paired differences (arXiv
0907.3740, theorem 11). The inequality asks for independent draws, not for identical ones: any levels may be used that
were fixed before the noise was drawn.

The label comes from the same draws as its margins. If it is the true winner, K - 1 bounds must hold. If it is another
class A, the bound on A's margin to the true winner must have failed: K - 1 other events. Hence the union over 2 (K -
1).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.certification.certificate import ABSTAIN
from fastdc.certification.lipschitz_radii import (
    BoundedErrors,
    Bounds,
    levels_radius,
    plain_radius,
    published_radius,
)
from fastdc.diffusion import weighting
from fastdc.inference import ErrorTable
from fastdc.support import Float64, InputError, Int64, checks

FORMS = ("levels", "plain", "published")
GROUPS = 8

_SHARE_OF_LEVELS = 0.1  # part of alpha for the bounds of each class's errors: the radius depends more on the margin
_DRAWS_OF_A_GROUP = 256  # fewer draws bound a group's average too loosely to be of use


@dataclass(frozen=True, eq=False)
class LipschitzCertificates:
    """Certificates of n images.

    Attributes:
        labels: int64 (n,), the class, or ``ABSTAIN`` if some rival's margin may not be positive.
        radii: float64 (n,), L2 distance in pixels in [0, 1]; 0 for an abstention.
        margins: float64 (n,), smallest lower bound on a rival's margin, in the unit of the errors.
    """

    labels: Int64
    radii: Float64
    margins: Float64


def bernstein_lower(values: Float64, span: float, alpha: float) -> Float64:
    """Lower confidence bound on the expected mean of independent numbers (Maurer & Pontil, theorem 11).

    Guarantee: the bound is at most that mean with probability at least 1 - alpha. The numbers may have different
    distributions.

    Args:
        values: Numbers (..., J), J at least 2.
        span: Length of an interval that holds all the numbers, known beforehand.
        alpha: Probability of error, in (0, 1).

    Returns:
        float64 (...).

    Raises:
        InputError: There are fewer than two numbers.
    """
    n = values.shape[-1]
    if n < 2:
        raise InputError(f"a confidence bound needs at least 2 draws, got {n}")
    log = math.log(2 / alpha)
    spread = np.sqrt(2 * values.var(axis=-1, ddof=1, dtype=np.float64) * log / n)
    return np.asarray(values.mean(axis=-1, dtype=np.float64) - spread - 7 * span * log / (3 * (n - 1)))


def margin_bounds(errors: Float64, bounded: BoundedErrors, alpha: float) -> tuple[Int64, Float64]:
    """Returns the class with the smallest mean error, and lower bounds on all rivals' margins to it.

    Guarantee: with probability at most alpha, all bounds of an image are positive and one of them, or the label, is
    wrong.

    Args:
        errors: float64 (n, K, J), in [0, cap] of their draw.
        bounded: Bounds of the errors.
        alpha: Probability of error per image, in (0, 1).

    Returns:
        Labels int64 (n,), and bounds float64 (n, K), infinite for the label itself.
    """
    n, classes, _ = errors.shape
    labels = errors.mean(axis=2).argmin(axis=1)
    differences = errors - errors[np.arange(n), labels][:, None]
    span = 2 * float(bounded.caps.max())
    margins = bernstein_lower(differences, span, alpha / max(1, 2 * (classes - 1)))
    margins[np.arange(n), labels] = np.inf
    return labels.astype(np.int64), margins


def group_bounds(errors: Float64, bounded: BoundedErrors, group: Int64, alpha: float) -> Bounds:
    """Lower and upper bounds on each class's average error over its cap in each group of draws.

    Guarantee: any of the bounds of an image is wrong with probability at most alpha.

    Args:
        errors: float64 (n, K, J), in [0, cap] of their draw.
        bounded: Bounds of the errors.
        group: int64 (J,), group of each draw (:meth:`BoundedErrors.groups`); every group needs two draws.
        alpha: Probability of error per image, in (0, 1).

    Returns:
        Two arrays float64 (n, K, B), in [0, 1].
    """
    count = int(group.max()) + 1
    each = alpha / (2 * errors.shape[1] * count)
    lower, upper = [], []
    for b in range(count):
        caps, values = bounded.caps[group == b], errors[:, :, group == b]
        lower.append(bernstein_lower(values, float(caps.max()), each) / caps.mean())
        upper.append(-bernstein_lower(-values, float(caps.max()), each) / caps.mean())
    return np.maximum(0.0, np.stack(lower, axis=2)), np.minimum(1.0, np.stack(upper, axis=2))


def certify_errors(
    errors: npt.ArrayLike, bounded: BoundedErrors, *, alpha: float = 0.001, form: str = "levels", groups: int = GROUPS
) -> LipschitzCertificates:
    """Certifies n images from their errors.

    Guarantee (forms "levels" and "plain"): with probability at least 1 - alpha over an image's noise, the certificate
    abstains, or the classifier of infinitely many noises answers the label at every image within the radius, inside
    [0, 1] or not.

    Args:
        errors: (n, K, J), not negative, from independent draws; errors above their draw's cap are cut off here.
        bounded: Bounds of the errors.
        alpha: Probability of a false certificate per image, in (0, 1).
        form: Form of the radius. "plain" is margin / L; "levels" is at least as large and bounds each level by itself.
            "published" is theorem 3.1 of arXiv 2402.02316 as printed, with its further assumptions.
        groups: Number of groups of levels for form "levels"; fewer are made if a group would have less than 256 draws.

    Raises:
        InputError: Errors of another shape, negative or not finite; an unknown form; alpha or groups out of range.

    Example:
        >>> from fastdc.certification import BoundedErrors, certify_errors
        >>> bounded = BoundedErrors(sigma=np.ones(400), weights=np.ones(400), caps=np.ones(400), pixels=64)
        >>> certify_errors(np.stack([np.full((1, 400), 0.2), np.full((1, 400), 0.9)], axis=1), bounded).radii.round(2)
        array([0.55])
    """
    values = np.asarray(errors, dtype=np.float64)
    if values.ndim != 3 or values.shape[1] < 2 or values.shape[2] != bounded.draws:
        raise InputError(f"errors must have shape (n, K, {bounded.draws}), K > 1, got {values.shape}")
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise InputError("errors must be finite and not negative: every class at every draw")
    checks.one_of("form", form, FORMS)
    alpha, groups = checks.fraction("alpha", alpha), checks.whole("groups", groups)
    values = np.minimum(values, bounded.caps)
    spent = alpha * _SHARE_OF_LEVELS if form == "levels" else 0.0
    labels, margins = margin_bounds(values, bounded, alpha - spent)
    smallest = np.asarray(margins.min(axis=1))
    if form == "published":
        radii = published_radius(margins, bounded)
    elif form == "plain":
        radii = plain_radius(smallest, bounded)
    else:
        group = bounded.groups(max(1, min(groups, bounded.draws // _DRAWS_OF_A_GROUP)))
        known = group_bounds(values, bounded, group, spent)
        radii = _smallest_levels_radius(labels, margins, known, bounded, group)
    sure = smallest > 0
    return LipschitzCertificates(np.where(sure, labels, ABSTAIN), np.where(sure, radii, 0.0), smallest)


def certify_table(
    table: ErrorTable, model: Model, *, cap: float, alpha: float = 0.001, form: str = "levels", groups: int = GROUPS
) -> LipschitzCertificates:
    """Certifies the images of an error table, with its weighted errors cut off at `cap`.

    The guarantee is that of :func:`certify_errors`. The network's outputs are not clipped in a table, and need not be;
    form "published" is therefore refused.

    Args:
        table: Errors of the full rule and the plain classifier, with loss "l2" and draws that are not antithetic.
        model: Model of the table.
        cap: Largest error, in the unit of the table's errors, positive; chosen on other images. A cap near the median
            of their errors gives far larger radii than one near the maximum.
        alpha: Probability of a false certificate per image, in (0, 1).
        form: Form of the radius, "levels" or "plain".
        groups: Number of groups of levels for form "levels"; fewer are made if a group would have less than 256 draws.

    Raises:
        InputError: The table is of another kind or model, or an option is out of range.

    Example:
        >>> from fastdc.certification import certify_table
        >>> table = clf.errors(images[:2], draws=64, levels=(1.0, 4.0), weighting="edm")
        >>> certify_table(table, clf.model, cap=0.7, form="plain").radii.shape
        (2,)
    """
    bounded = bounded_errors(table, model, cap=cap)
    parts = [certify_errors(part.errors, bounded, alpha=alpha, form=form, groups=groups) for part in table.chunks()]
    return LipschitzCertificates(
        labels=np.concatenate([part.labels for part in parts]),
        radii=np.concatenate([part.radii for part in parts]),
        margins=np.concatenate([part.margins for part in parts]),
    )


def bounded_errors(table: ErrorTable, model: Model, *, cap: float) -> BoundedErrors:
    """Bounds of a table's errors that are cut off at `cap`.

    Args:
        table: Errors, as for :func:`certify_table`.
        model: Model of the table.
        cap: Largest error, in the unit of the table's errors, positive.

    Raises:
        InputError: The table is of another kind or model, or the cap is out of range.
    """
    plan = table.plan
    model.check_plain("a Lipschitz certificate")
    if table.identity != model.identity or table.counts.shape[1] != len(model.conditions):
        raise InputError(f"the table is of model {table.model}, not of this {model.name}")
    if plan.get("method", "dc") != "dc" or plan["loss"] != "l2":
        raise InputError(f"expected method dc with loss l2, got {plan.get('method', 'dc')} with {plan['loss']}")
    if plan.get("antithetic", False):
        raise InputError("confidence bounds need independent draws, got antithetic ones")
    if not np.all(table.counts == table.draws):
        raise InputError(f"expected every class at every draw, got a table of rule {table.rule} that stopped early")
    cap = checks.positive("cap", cap)
    width = model.noise_ratio(1.0)  # lengths in pixels in [0, 1] times it are lengths of what the network works on
    weights = table.weights.astype(np.float64) * width**2
    space = weighting(plan["weighting"]).space
    if space == "eps":  # r_eps = -r_x0 / (sigma / alpha)
        weights = weights / table.sigma**2
    elif space == "v":  # r_v = -r_x0 / sigma
        schedule = model.schedule
        weights = weights / schedule.levels([schedule.position_of(ratio) for ratio in table.sigma.tolist()]).sigma ** 2
    return BoundedErrors(
        sigma=table.sigma / width,
        weights=weights,
        caps=np.full(table.draws, cap),
        pixels=math.prod(model.image_shape),
    )


def _smallest_levels_radius(
    labels: Int64, margins: Float64, known: Bounds, bounded: BoundedErrors, group: Int64
) -> Float64:
    """Smallest per-level radius over all rivals.

    Args:
        labels: int64 (n,), label of each image.
        margins: float64 (n, K), lower bounds on the margins, infinite for the label itself.
        known: Bounds of :func:`group_bounds`, float64 (n, K, B) each.
        bounded: Bounds of the errors.
        group: int64 (J,), group of each draw.

    Returns:
        float64 (n,), in pixels in [0, 1].
    """
    own = np.isinf(margins)
    lower, upper = (np.broadcast_to(each[np.arange(len(labels)), labels][:, None], each.shape) for each in known)
    radii = levels_radius(np.where(own, 0.0, margins), (lower, upper), known, bounded, group)
    return np.asarray(np.where(own, np.inf, radii).min(axis=1))
