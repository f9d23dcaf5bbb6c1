"""Lipschitz certificates of the plain diffusion classifier (Chen et al., arXiv 2402.02316, section 3), made rigorous.

The classifier is that of infinitely many noises at each of a plan's J levels: class y's error at an image x is

    G_y(x) = mean_j E_e min(cap_j, weight_j ||h_y(x + s_j e) - x||^2 / D) ,

with D pixels in [0, 1] and noise s_j in that unit, and the smallest wins. Either outputs h are clipped to [0, 1] and
the cap is weight_j (the theorem's assumption, which no trained network meets), or errors are cut off at a cap chosen
beforehand, which needs nothing of the network. At a distance r the margin G_k - G_A of a rival has lost at most r L,

    L = mean_j [ 2 cap_j / (sqrt(2 pi) s_j) + 4 sqrt(weight_j cap_j / D) ]      (clipped: 2 in place of 4) ,

so the plain radius is margin / L. The per-level radius uses that errors far from half their cap change more slowly.
With delta = r / s, eta = r sqrt(weight / (cap D)), q = Phi(Phi^-1(p) - delta) and q' = Phi(Phi^-1(p) + delta), a class
whose error over its cap is p loses at most p - max(0, sqrt(q) - eta)^2 and gains at most (sqrt(q') + eta)^2 - p.

Margins are lower confidence bounds on paired differences by Maurer & Pontil's empirical Bernstein inequality (arXiv
0907.3740, theorem 11). It asks for independent draws, not for identical ones: levels may be any fixed before the noise.

docs/lipschitz.md derives all this and says how it departs from the source.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.certification.certificate import ABSTAIN
from fastdc.diffusion import weighting
from fastdc.inference import ErrorTable
from fastdc.support import Float64, InputError

IntArray = npt.NDArray[np.int64]
Bounds = tuple[Float64, Float64]

FORMS = ("levels", "plain", "published")
GROUPS = 8

_SHARE_OF_LEVELS = 0.1
"""The part of alpha that bounds of each class's errors get: a radius depends on them less than on the margin."""

_DRAWS_OF_A_GROUP = 256
"""Fewer bound its average too loosely to be of use."""


@dataclass(frozen=True, eq=False)
class BoundedErrors:
    """What the errors of J draws are bounded by, and how they depend on pixels.

    Attributes:
        sigma: float64 (J,), s_j, standard deviation of the noise in pixels in [0, 1]; positive, may be infinite.
        weights: float64 (J,), error over mean squared difference of pixels in [0, 1]; not negative.
        caps: float64 (J,), the largest error. Part of the classifier: chosen before the image is seen, on others.
        pixels: D, numbers in an image.
        clipped: Whether the network's outputs are clipped to [0, 1]; the caps are then the weights.
    """

    sigma: Float64 = field(repr=False)
    weights: Float64 = field(repr=False)
    caps: Float64 = field(repr=False)
    pixels: int
    clipped: bool = False

    def __post_init__(self) -> None:
        if self.sigma.ndim != 1 or not len(self.sigma) == len(self.weights) == len(self.caps) > 0:
            shapes = f"{self.sigma.shape}, {self.weights.shape} and {self.caps.shape}"
            raise InputError(f"sigma, weights and caps must have shape (J,), J > 0, got {shapes}")
        for name in ("sigma", "weights", "caps"):
            values = getattr(self, name)
            good = values >= 0 if name == "weights" else values > 0
            if name != "sigma":  # a schedule may end in pure noise
                good = good & np.isfinite(values)
            if not np.all(good):
                kind = "finite and not negative" if name == "weights" else "positive"
                raise InputError(f"{name} must be {kind}, found {values[~good][0]}")
        if self.pixels < 1:
            raise InputError(f"pixels must be at least 1, got {self.pixels}")
        if not np.any(np.isfinite(self.sigma)):
            raise InputError("sigma must be finite somewhere: pure noise says nothing of an image")
        if self.clipped and not np.array_equal(self.caps, self.weights):
            raise InputError("errors of clipped outputs are at most their weights: expected caps equal to weights")

    @property
    def draws(self) -> int:
        """J."""
        return len(self.sigma)

    def slopes(self) -> Float64:
        """How much of a pair's margin each draw can lose per unit of distance, float64 (J,); their mean is L."""
        target = (2 if self.clipped else 4) * np.sqrt(self.weights * self.caps / self.pixels)
        return np.asarray(2 * self.caps / (math.sqrt(2 * math.pi) * self.sigma) + target)

    def groups(self, count: int) -> IntArray:
        """The group of each draw, int64 (J,) in [0, count): neighbours in sigma, of equal size but for one draw."""
        group = np.empty(self.draws, np.int64)
        group[np.argsort(self.sigma, kind="stable")] = np.arange(self.draws) * count // self.draws
        return group


@dataclass(frozen=True, eq=False)
class LipschitzCertificates:
    """Certificates of n images.

    Attributes:
        labels: int64 (n,), the class, or ABSTAIN where some rival's margin is not surely positive.
        radii: float64 (n,), L2 distance in pixels in [0, 1]; 0 when abstaining.
        margins: float64 (n,), the smallest lower bound on a rival's margin, in the units of the errors.
    """

    labels: IntArray
    radii: Float64
    margins: Float64


def bernstein_lower(values: Float64, span: float, alpha: float) -> Float64:
    """Lower confidence bound on the expected mean of independent numbers (Maurer & Pontil, theorem 11).

    Guarantee: at most that mean with probability at least 1 - alpha. The numbers may have different distributions.

    Args:
        values: (..., J), J at least 2.
        span: Length of an interval that holds them all, known beforehand.
        alpha: In (0, 1).

    Returns:
        float64 (...).

    Raises:
        InputError: Less than two numbers.
    """
    n = values.shape[-1]
    if n < 2:
        raise InputError(f"a confidence bound needs at least 2 draws, got {n}")
    log = math.log(2 / alpha)
    spread = np.sqrt(2 * values.var(axis=-1, ddof=1, dtype=np.float64) * log / n)
    return np.asarray(values.mean(axis=-1, dtype=np.float64) - spread - 7 * span * log / (3 * (n - 1)))


def margin_bounds(errors: Float64, bounded: BoundedErrors, alpha: float) -> tuple[IntArray, Float64]:
    """The class with the smallest mean error and lower bounds on all rivals' margins to it.

    Args:
        errors: float64 (n, K, J), in [0, cap] of their draw.
        bounded: What they are.
        alpha: Probability that any bound, or the label, is wrong where all margins are positive.

    Returns:
        int64 (n,) and float64 (n, K), infinite for the class itself.
    """
    n, classes, _ = errors.shape
    labels = errors.mean(axis=2).argmin(axis=1)
    differences = errors - errors[np.arange(n), labels][:, None]
    span = 2 * float(bounded.caps.max())
    margins = bernstein_lower(differences, span, alpha / max(1, 2 * (classes - 1)))
    margins[np.arange(n), labels] = np.inf
    return labels.astype(np.int64), margins


def group_bounds(errors: Float64, bounded: BoundedErrors, group: IntArray, alpha: float) -> tuple[Float64, Float64]:
    """Lower and upper bounds on each class's average error over its cap in each group of draws.

    Args:
        errors: float64 (n, K, J), in [0, cap] of their draw.
        bounded: What they are.
        group: int64 (J,), see :meth:`BoundedErrors.groups`; every group needs two draws.
        alpha: Probability that any of the bounds of an image is wrong.

    Returns:
        float64 (n, K, B) twice, in [0, 1].
    """
    count = int(group.max()) + 1
    each = alpha / (2 * errors.shape[1] * count)
    lower, upper = [], []
    for b in range(count):
        caps, values = bounded.caps[group == b], errors[:, :, group == b]
        lower.append(bernstein_lower(values, float(caps.max()), each) / caps.mean())
        upper.append(-bernstein_lower(-values, float(caps.max()), each) / caps.mean())
    return np.maximum(0.0, np.stack(lower, axis=2)), np.minimum(1.0, np.stack(upper, axis=2))


def plain_radius(margins: Float64, bounded: BoundedErrors) -> Float64:
    """The plain form: margin / L, 0 for a margin that is not positive. margins: any shape."""
    return np.asarray(np.maximum(margins, 0.0) / bounded.slopes().mean())


def levels_radius(margins: Float64, winner: Bounds, rival: Bounds, bounded: BoundedErrors, group: IntArray) -> Float64:
    """The per-level form.

    Args:
        margins: float64 (...), lower bounds on the margins, finite.
        winner: float64 (..., B) twice, lower and upper bounds on the winner's average error over its cap in each group,
            in [0, 1].
        rival: Those of the rival.
        bounded: What the errors are.
        group: int64 (J,), the group of each draw.

    Returns:
        float64 (...), at least :func:`plain_radius`; rounded down.
    """
    from scipy import special

    first, second = ((special.ndtri(lower), special.ndtri(upper)) for lower, upper in (winner, rival))
    low = plain_radius(margins, bounded)
    high = np.maximum(2 * low, 1e-6)
    for _ in range(60):  # until it is too far; where no distance is, the last one is not
        high = np.where(_loss(high, first, second, bounded, group) < margins, 2 * high, high)
    for _ in range(50):
        middle = (low + high) / 2
        safe = _loss(middle, first, second, bounded, group) <= margins
        low, high = np.where(safe, middle, low), np.where(safe, high, middle)
    return np.asarray(np.where(margins > 0, low, 0.0))


def published_radius(margins: Float64, bounded: BoundedErrors) -> Float64:
    """Theorem 3.1 of arXiv 2402.02316: R = sqrt(2) (p_A - p_B) / ((2 / sqrt(D) + sqrt(2 / pi)) mean_j weight_j / s_j).

    p are softmax probabilities of minus the mean errors; here their bounds come from those of the margins. Rests on
    what the source assumes and the other forms do not use: outputs clipped to [0, 1]; s_j at most 1, without
    which the target's term may not be divided by s_j; and 1 / (2 sqrt 2), the norm of one probability's gradient with
    respect to all logits, in place of what separate bounds on two logits give. Not for certificates that must hold.

    Args:
        margins: float64 (n, K), lower bounds, infinite for the label itself.
        bounded: Clipped errors.

    Returns:
        float64 (n,), 0 where p_A does not exceed p_B.

    Raises:
        InputError: Errors not clipped, or a level above 1.
    """
    from scipy import special

    if not bounded.clipped or bounded.sigma.max() > 1:
        found = f"clipped={bounded.clipped} and levels up to {bounded.sigma.max():.3g}"
        raise InputError(f"the published constant is for clipped outputs and levels up to 1 in pixels, got {found}")
    own = np.isinf(margins)
    first = 1 / np.where(own, 1.0, np.exp(-margins)).sum(axis=1)
    others = np.where(own, 0.0, special.expit(-margins))  # a rival against the label alone
    second = np.minimum(others.max(axis=1), 1 - first)
    constant = (2 / math.sqrt(bounded.pixels) + math.sqrt(2 / math.pi)) * np.mean(bounded.weights / bounded.sigma)
    return np.asarray(math.sqrt(2) * np.maximum(first - second, 0.0) / constant)


def certify_errors(
    errors: npt.ArrayLike, bounded: BoundedErrors, *, alpha: float = 0.001, form: str = "levels", groups: int = GROUPS
) -> LipschitzCertificates:
    """Certificates from the errors of n images.

    Guarantee (forms "levels" and "plain"): with probability at least 1 - alpha over an image's noise, it is abstained
    or the classifier of the file's head answers the label at every image within the radius, inside [0, 1] or not.

    Args:
        errors: (n, K, J), not negative; those above their draw's cap are cut off here. Draws independent.
        bounded: What they are.
        alpha: Probability of a false certificate, in (0, 1).
        form: One of :data:`FORMS`. "published" has the assumptions of :func:`published_radius`.
        groups: Groups of levels of form "levels"; fewer if there were less than 256 draws in one.

    Raises:
        InputError: Other shapes, errors that are negative or not finite, an unknown form, alpha out of range.
    """
    values = np.asarray(errors, dtype=np.float64)
    if values.ndim != 3 or values.shape[1] < 2 or values.shape[2] != bounded.draws:
        raise InputError(f"errors must have shape (n, K, {bounded.draws}), K > 1, got {values.shape}")
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise InputError("errors must be finite and not negative: every class at every draw")
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if not 0 < alpha < 1 or groups < 1:
        raise InputError(f"alpha must be in (0, 1) and groups at least 1, got {alpha} and {groups}")
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
    """Certificates from a table: its weighted errors, cut off at `cap`. See :func:`certify_errors`.

    The network's outputs are not clipped in a table, and need not be; form "published" is therefore refused.

    Args:
        table: Of the full rule and the plain classifier, loss "l2", draws not antithetic.
        model: The model that was run.
        cap: The largest error, in the units of the table's, chosen on other images. About their median
            gives far larger radii than their largest.
        alpha: Probability of a false certificate, per image.
        form: "levels" or "plain".
        groups: See :func:`certify_errors`.

    Raises:
        InputError: A table of another kind or model, or an option out of range.
    """
    bounded = bounded_errors(table, model, cap=cap)
    parts = [certify_errors(part.errors, bounded, alpha=alpha, form=form, groups=groups) for part in table.chunks()]
    return LipschitzCertificates(
        labels=np.concatenate([part.labels for part in parts]),
        radii=np.concatenate([part.radii for part in parts]),
        margins=np.concatenate([part.margins for part in parts]),
    )


def bounded_errors(table: ErrorTable, model: Model, *, cap: float) -> BoundedErrors:
    """What the errors of a table are, cut off at `cap`.

    Raises:
        InputError: See :func:`certify_table`.
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
    if not 0 < cap < math.inf:
        raise InputError(f"cap must be positive, got {cap}")
    low, high = model.value_range
    weights = table.weights.astype(np.float64) * (high - low) ** 2
    if weighting(plan["weighting"]).space == "eps":  # r_eps = -r_x0 / (sigma / alpha)
        weights = weights / table.sigma**2
    return BoundedErrors(
        sigma=table.sigma / (high - low),
        weights=weights,
        caps=np.full(table.draws, float(cap)),
        pixels=math.prod(model.image_shape),
    )


def _smallest_levels_radius(
    labels: IntArray, margins: Float64, known: Bounds, bounded: BoundedErrors, group: IntArray
) -> Float64:
    """The smallest per-level radius of all rivals, float64 (n,). margins: (n, K); known: (n, K, B) twice."""
    own = np.isinf(margins)
    lower, upper = (np.broadcast_to(each[np.arange(len(labels)), labels][:, None], each.shape) for each in known)
    radii = levels_radius(np.where(own, 0.0, margins), (lower, upper), known, bounded, group)
    return np.asarray(np.where(own, np.inf, radii).min(axis=1))


def _loss(radius: Float64, winner: Bounds, rival: Bounds, bounded: BoundedErrors, group: IntArray) -> Float64:
    """What a pair's margin loses at most at a distance; docs/lipschitz.md derives it.

    Args:
        radius: float64 (...).
        winner: float64 (..., B) twice, Phi^-1 of lower and upper bounds of the winner.
        rival: Those of the rival.
        bounded: What the errors are.
        group: int64 (J,).

    Returns:
        float64 (...), in the units of the mean error.
    """
    from scipy import special

    phi = special.ndtr
    total = np.zeros_like(radius)
    slopes = bounded.slopes()
    for b in range(winner[0].shape[-1]):
        inside = group == b
        caps, weights = bounded.caps[inside], bounded.weights[inside]
        delta = radius / bounded.sigma[inside].min()
        eta = radius * math.sqrt(float(np.max(weights / caps)) / bounded.pixels)
        top = np.clip(delta / 2, rival[0][..., b], rival[1][..., b])
        bottom = np.clip(-delta / 2, winner[0][..., b], winner[1][..., b])
        moved = phi(top) - phi(top - delta) + phi(bottom + delta) - phi(bottom)
        q, risen = phi(rival[1][..., b] - delta), phi(winner[1][..., b] + delta)
        fallen = np.where(np.sqrt(q) < eta, q, 2 * eta * np.sqrt(q) - eta**2)
        target = fallen + 2 * eta * np.sqrt(risen) + eta**2
        if bounded.clipped:
            target = np.minimum(target, 2 * eta)
        total += np.minimum(caps.sum() * (moved + target), radius * slopes[inside].sum())
    return np.asarray(total / bounded.draws)
