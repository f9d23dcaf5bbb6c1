"""Lipschitz certificates against worlds in which the decision boundary is known.

* Denoisers on the line that are constant between a few points: errors are sums of normal probabilities, exactly, at
  every image, so a certificate can be checked by walking to its end. Such denoisers also meet the bound on the centre,
  so one world shows that the per-level radius is the true distance there and not merely below it.
* The Gaussian world. An error of class k is cap or a noncentral chi-squared variable that grows with the distance to
  mu_k, so the classifier is the nearest mean for every cap, and the boundary is a hyperplane.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdc import InputError
from fastdc.certification.lipschitz import (
    bernstein_lower,
    bounded_errors,
    certify_errors,
    certify_table,
    group_bounds,
    margin_bounds,
)
from fastdc.certification.lipschitz_radii import BoundedErrors, levels_radius, plain_radius, published_radius
from helpers.worlds import Float64, classifier, fails_with, gaussian, unit_images

ALPHA = 0.001


@dataclass(frozen=True, eq=False)
class Line:
    """K denoisers of one-pixel images at J levels, constant on the intervals between `breaks`.

    Attributes:
        breaks: (K, J, M), increasing along the last axis.
        values: (K, J, M + 1), what the denoiser says there.
    """

    breaks: Float64
    values: Float64
    bounded: BoundedErrors

    def errors(self, x: float) -> Float64:
        """E min(cap, weight (h - x)^2), exactly, (K, J)."""
        edges = stats.norm.cdf((self.breaks - x) / self.bounded.sigma[:, None])
        shape = (*edges.shape[:2], 1)
        inside = np.diff(np.concatenate([np.zeros(shape), edges, np.ones(shape)], axis=2), axis=2)
        error = np.minimum(self.bounded.caps[:, None], self.bounded.weights[:, None] * (self.values - x) ** 2)
        return np.asarray((inside * error).sum(axis=2))

    def margins(self, x: float, label: int) -> Float64:
        means = self.errors(x).mean(axis=1)
        return np.asarray(np.delete(means, label) - means[label])

    def radii(self, x: float, groups: int) -> tuple[int, float, float]:
        """The label and both radii, from exact margins and averages."""
        errors, group = self.errors(x), self.bounded.groups(groups)
        label = int(errors.mean(axis=1).argmin())
        average = np.stack([errors[:, group == b].sum(axis=1) / self.bounded.caps[group == b].sum()
                            for b in range(groups)], axis=1)  # fmt: skip
        rivals = np.delete(average, label, axis=0)
        winner = np.broadcast_to(average[label], rivals.shape)
        margins = self.margins(x, label)
        levels = levels_radius(margins, (winner, winner), (rivals, rivals), self.bounded, group)
        return label, float(plain_radius(margins, self.bounded).min()), float(levels.min())


def line(seed: int, *, clipped: bool, levels: int = 3, classes: int = 3) -> Line:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2, levels)
    caps = weights if clipped else weights * rng.uniform(0.05, 1, levels)
    bounded = BoundedErrors(rng.uniform(0.2, 2, levels), weights, caps, 1, clipped=clipped)
    values = rng.uniform(0, 1, (classes, levels, 4)) if clipped else rng.normal(0.5, 1, (classes, levels, 4))
    values[0, :, 1] = 0.5  # a class that is often right about the image of the tests
    return Line(np.sort(rng.normal(0.5, 1, (classes, levels, 3)), axis=2), values, bounded)


@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_no_rival_wins_within_a_radius(seed: int, clipped: bool, groups: int) -> None:
    """Along the line to both ends of the radius, with exact errors."""
    world = line(seed, clipped=clipped)
    label, plain, levels = world.radii(0.5, groups)
    assert 0 <= plain <= levels
    for step in np.linspace(-levels, levels, 21):
        assert (world.margins(0.5 + step, label) >= -1e-9).all()


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_margin_changes_no_faster_than_the_slope(seed: int, clipped: bool) -> None:
    world = line(seed, clipped=clipped)
    for x in (0.1, 0.5, 0.9):
        for step in (0.01, 0.3, -0.7):
            change = np.abs(world.margins(x + step, 0) - world.margins(x, 0))
            assert (change <= abs(step) * world.bounded.slopes().mean() + 1e-12).all()


def test_the_per_level_radius_is_the_distance_where_the_bound_is_met() -> None:
    """The winner errs right of a point, the rival left of it, and errors are 0 or the cap: the lemma's worst case."""
    bounded = BoundedErrors(np.array([0.5]), np.array([1e-8]), np.array([1.0]), 1)
    breaks = np.array([[[0.5 + 0.6]], [[0.5 + 0.4]]])
    values = np.array([[[0.5, 1e9]], [[1e9, 0.5]]])
    world = Line(breaks, values, bounded)
    label, plain, levels = world.radii(0.5, 1)
    # Phi((x - 1.1) / 0.5) = Phi((0.9 - x) / 0.5) at x = 1.
    assert label == 0
    assert (world.margins(1.0 - 1e-6, 0) > 0).all()
    assert (world.margins(1.0 + 1e-6, 0) < 0).all()
    assert 0.999 * 0.5 < levels <= 0.5
    assert plain < 0.95 * levels


def pair_loss(rival: Float64, winner: Float64, radius: float, bounded: BoundedErrors) -> Float64:
    """What a pair's margin loses at most at each draw, (..., J), from the exact shares p of the caps at each draw."""
    normal = stats.norm
    delta, eta = radius / bounded.sigma, radius * np.sqrt(bounded.weights / bounded.caps / bounded.pixels)
    q, risen = normal.cdf(normal.ppf(rival) - delta), normal.cdf(normal.ppf(winner) + delta)
    centre = rival - q + risen - winner
    target = q - np.maximum(0, np.sqrt(q) - eta) ** 2 + (np.sqrt(risen) + eta) ** 2 - risen
    if bounded.clipped:
        target = np.minimum(target, 2 * eta)
    return np.asarray(np.minimum(bounded.caps * (centre + target), radius * bounded.slopes()))


@given(st.integers(0, 10_000), st.floats(0.01, 2), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_group_loses_no_less_than_its_draws(seed: int, radius: float, clipped: bool) -> None:
    """With the margin that six unlike draws can lose at a distance, no larger distance is certified from averages."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 3, 6)
    caps = weights if clipped else rng.uniform(0.1, 3, 6)
    bounded = BoundedErrors(rng.uniform(0.2, 3, 6), weights, caps, 2, clipped=clipped)
    shares = rng.beta(0.5, 0.5, (2, 6)) if seed % 2 else np.repeat(rng.uniform(0, 1, (2, 1)), 6, axis=1)
    slack = rng.choice([0.0, 0.1])
    average, group = (shares @ caps / caps.sum())[:, None], np.zeros(6, np.int64)
    low, high = np.maximum(average - slack, 0), np.minimum(average + slack, 1)
    margin = pair_loss(shares[1], shares[0], radius, bounded).mean()
    certified = levels_radius(np.array(margin), (low[0], high[0]), (low[1], high[1]), bounded, group)
    assert float(certified) <= radius * (1 + 1e-9)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("radius", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("shares", [(0.02, 0.1), (0.9, 0.95), (0.4, 0.6), (0.001, 0.002)])
def test_one_draw_loses_what_is_derived(shares: tuple[float, float], radius: float, clipped: bool) -> None:
    """Of exact shares, exactly; of a range of them without a target, the largest of the range."""
    caps = np.array([0.7 if not clipped else 1.2])
    bounded = BoundedErrors(np.array([0.6]), np.array([1.2]), caps, 8, clipped=clipped)
    winner, rival = (np.array([share]) for share in shares)
    group = np.zeros(1, np.int64)
    margin = pair_loss(rival, winner, radius, bounded)[0]
    exact = levels_radius(np.array(margin), (winner, winner), (rival, rival), bounded, group)
    assert float(exact) == pytest.approx(radius, rel=1e-6)
    still = BoundedErrors(np.array([0.6]), np.array([0.0]), np.array([0.7]), 8)
    low, high = np.maximum(winner - 0.05, 0), winner + 0.05
    wide = np.linspace(low[0], high[0], 20_001)[:, None]
    none = np.array([1e-300])  # a class that is never wrong neither rises nor falls: the other one's loss alone
    worst = pair_loss(wide, none, radius, still).max() + pair_loss(none, wide, radius, still).max()
    certified = levels_radius(np.array(worst), (low, high), (low, high), still, group)
    assert float(certified) == pytest.approx(radius, rel=1e-4)


def test_the_constant_is_its_formula() -> None:
    bounded = BoundedErrors(np.array([0.5, np.inf]), np.array([4.0, 1.0]), np.array([0.25, 1.0]), 16)
    expected = 2 * 0.25 / (math.sqrt(2 * math.pi) * 0.5) + 4 * math.sqrt(4 * 0.25 / 16) + 4 * math.sqrt(1 / 16)
    assert float(plain_radius(np.array(0.3), bounded)) == pytest.approx(0.3 / (expected / 2), rel=1e-12)
    clipped = BoundedErrors(np.array([0.5]), np.array([1.0]), np.array([1.0]), 16, clipped=True)
    rigorous = 2 / (math.sqrt(2 * math.pi) * 0.5) + 2 / math.sqrt(16)
    assert float(clipped.slopes()[0]) == pytest.approx(rigorous, rel=1e-12)


@given(st.integers(0, 1000), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_units_of_errors_do_not_matter(seed: int, factor: float) -> None:
    world = line(seed, clipped=False)
    bounded = world.bounded
    scaled = replace(world, bounded=replace(bounded, weights=factor * bounded.weights, caps=factor * bounded.caps))
    assert scaled.radii(0.5, 2) == pytest.approx(world.radii(0.5, 2), rel=1e-6, abs=1e-9)


@given(st.integers(0, 1000), st.floats(0.2, 0.9))
@settings(max_examples=30, deadline=None)
def test_less_knowledge_never_gives_a_larger_radius(seed: int, share: float) -> None:
    """A smaller margin, or wider bounds on averages."""
    bounded, group = line(seed, clipped=False).bounded, np.zeros(3, np.int64)
    rng = np.random.default_rng(seed)
    margins = rng.uniform(0, 0.3, 5)
    exact = rng.uniform(0, 1, (2, 5, 1))
    low, high = share * exact, 1 - share * (1 - exact)
    radius = levels_radius(margins, (exact[0], exact[0]), (exact[1], exact[1]), bounded, group)
    wide = levels_radius(margins, (low[0], high[0]), (low[1], high[1]), bounded, group)
    less = levels_radius(share * margins, (exact[0], exact[0]), (exact[1], exact[1]), bounded, group)
    assert (wide <= radius * (1 + 1e-9) + 1e-12).all()
    assert (less <= radius * (1 + 1e-9) + 1e-12).all()
    assert (plain_radius(margins, bounded) <= wide * (1 + 1e-9)).all()


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> Float64:
    """Mostly small, sometimes near 1, and of another mean at every draw: the sample misses what matters."""
    return np.asarray(rng.beta(0.1, np.linspace(0.5, 3, shape[1]), shape))


@pytest.mark.parametrize("n", [5, 50, 400])
@pytest.mark.parametrize("alpha", [0.3, 0.05])
def test_bernstein_bounds_cover(n: int, alpha: float) -> None:
    """Of numbers with different distributions. The limit is four standard errors above alpha."""
    runs = 4000
    values = skewed(np.random.default_rng(1), (runs, n))
    mean = np.mean(0.1 / (0.1 + np.linspace(0.5, 3, n)))
    limit = alpha + 4 * math.sqrt(alpha / runs)
    assert np.mean(bernstein_lower(values, 1.0, alpha) > mean) <= limit
    assert np.mean(-bernstein_lower(-values, 1.0, alpha) < mean) <= limit


def test_the_bernstein_bound_is_its_formula() -> None:
    values = np.array([0.1, 0.4, 0.3, 0.2, 0.9, 0.2])
    log = math.log(2 / 0.05)
    expected = 0.35 - math.sqrt(2 * 0.083 * log / 6) - 7 * 1.5 * log / (3 * 5)
    assert float(bernstein_lower(values, 1.5, 0.05)) == pytest.approx(expected, rel=1e-9)


def test_the_union_is_over_twice_the_rivals_and_over_classes_and_groups() -> None:
    rng = np.random.default_rng(2)
    bounded = BoundedErrors(np.linspace(0.2, 1, 60), np.ones(60), np.full(60, 0.7), 4)
    errors = rng.uniform(0, 0.7, (2, 4, 60))
    labels, margins = margin_bounds(errors, bounded, 0.06)
    group = bounded.groups(3)
    lower, upper = group_bounds(errors, bounded, group, 0.24)
    np.testing.assert_array_equal(np.bincount(group), 20)
    for i, label in enumerate(labels):
        assert label == errors[i].mean(axis=1).argmin()
        for k in range(4):
            expected = bernstein_lower(errors[i, k] - errors[i, label], 1.4, 0.01) if k != label else np.inf
            assert margins[i, k] == pytest.approx(float(expected))
            low = float(bernstein_lower(errors[i, k, 20:40], 0.7, 0.01)) / 0.7
            high = float(-bernstein_lower(-errors[i, k, 20:40], 0.7, 0.01)) / 0.7
            assert lower[i, k, 1] == pytest.approx(max(low, 0))
            assert upper[i, k, 1] == pytest.approx(min(high, 1))


@pytest.mark.parametrize("form", ["plain", "levels"])
@pytest.mark.parametrize("weighting", ["edm", "uniform"])
@pytest.mark.parametrize("order", ["van_der_corput", "random"])
def test_certificates_of_the_gaussian_world_end_before_its_boundary(form: str, weighting: str, order: str) -> None:
    world = gaussian(4)
    images = unit_images(20, seed=5)
    options = {"weighting": weighting, "order": order, "levels": (0.5, 5.0)}
    table = classifier(world, batch=4096).errors(images, draws=2048, **options)  # type: ignore[arg-type]
    cap = float(np.median(classifier(world).errors(unit_images(5, seed=9), draws=64, **options).errors))  # type: ignore[arg-type]
    found = certify_table(table, world.model, cap=cap, form=form, alpha=ALPHA)
    x = 2.0 * images.astype(np.float64) - 1
    distance = np.sqrt(((world.means[None] - x[:, None]) ** 2).sum(axis=(2, 3, 4)))
    nearest = world.nearest(x)
    between = np.sqrt(((world.means[:, None] - world.means[None]) ** 2).sum(axis=(2, 3, 4)))[nearest]
    own = distance[np.arange(20), nearest][:, None]
    with np.errstate(invalid="ignore"):
        boundary = np.nanmin((distance**2 - own**2) / (2 * between), axis=1) / 2  # pixels in [0, 1]
    sure = found.labels >= 0
    assert sure.sum() >= 8
    np.testing.assert_array_equal(found.labels[sure], nearest[sure])
    assert (found.radii <= boundary).all()
    assert (found.radii[sure] > 0).all()
    assert found.radii.max() > 0.02
    assert (found.radii[~sure] == 0).all()
    np.testing.assert_array_equal(found.margins > 0, sure)


def test_weights_of_a_table_are_of_squared_pixels() -> None:
    """Two weightings of the same draws in different spaces give the same squared differences of pixels."""
    world = gaussian(3)
    found = []
    for weighting in ("edm", "uniform", "min_snr", "velocity"):
        table = classifier(world).errors(unit_images(2), draws=16, weighting=weighting)
        bounded = bounded_errors(table, world.model, cap=1.0)
        found.append(table.errors / bounded.weights)
        np.testing.assert_allclose(bounded.sigma, table.sigma / 2)
        assert bounded.pixels == 16
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4)
    np.testing.assert_allclose(found[3], found[0], rtol=1e-4)
    # On [-1, 1] a squared difference is four times as large.
    table = classifier(world).errors(unit_images(1), draws=2000, levels=(0.999, 1.001), weighting="edm")
    mean = np.mean(table.errors / bounded_errors(table, world.model, cap=1.0).weights, axis=2)
    expected = world.expected_error(2.0 * unit_images(1).astype(np.float64) - 1, 1.0) / 4
    np.testing.assert_allclose(mean, expected, rtol=0.05)


def test_the_margin_form_abstains_on_a_tie_and_sees_the_cap() -> None:
    rng = np.random.default_rng(3)
    bounded = BoundedErrors(np.full(400, 0.5), np.ones(400), np.full(400, 0.5), 16)
    noise = rng.uniform(0.1, 0.2, (1, 1, 400))
    tied = certify_errors(np.repeat(noise, 3, axis=1), bounded)
    assert (tied.labels[0], tied.radii[0]) == (-1, 0.0)
    beyond = np.concatenate([noise + 0.5, noise + 9.0], axis=1)  # both are cut off at 0.5: no difference is left
    assert certify_errors(beyond, bounded).labels[0] == -1
    clear = np.concatenate([noise + 0.3, noise], axis=1)
    assert certify_errors(clear, bounded).labels[0] == 1
    assert certify_errors(clear, bounded, form="levels").radii[0] > 0


def test_the_published_constant_is_its_formula() -> None:
    bounded = BoundedErrors(np.array([0.5, 1.0]), np.array([2.0, 1.0]), np.array([2.0, 1.0]), 64, clipped=True)
    margins = np.array([[np.inf, 0.7, 1.1], [-0.1, np.inf, 3.0]])
    first = 1 / (1 + math.exp(-0.7) + math.exp(-1.1))
    second = min(math.exp(-0.7) / (1 + math.exp(-0.7)), 1 - first)
    constant = (2 / 8 + math.sqrt(2 / math.pi)) * (2.0 / 0.5 + 1.0 / 1.0) / 2
    expected = [math.sqrt(2) * (first - second) / constant, 0.0]
    np.testing.assert_allclose(published_radius(margins, bounded), expected, rtol=1e-12, atol=1e-15)


def flat(**changes: object) -> BoundedErrors:
    values = {"sigma": np.ones(3), "weights": np.ones(3), "caps": np.ones(3), "pixels": 4, **changes}
    return BoundedErrors(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: flat(sigma=np.ones(2)),
            "sigma, weights and caps must have shape (J,), J > 0, got (2,), (3,) and (3,)",
        ),
        (lambda: flat(sigma=np.zeros(3)), "sigma must be positive, found 0.0"),
        (lambda: flat(caps=np.array([1, np.inf, 1])), "caps must be positive, found inf"),
        (lambda: flat(weights=-np.ones(3)), "weights must be finite and not negative, found -1.0"),
        (lambda: flat(sigma=np.full(3, np.inf)), "sigma must be finite somewhere"),
        (lambda: flat(pixels=0), "pixels must be a whole number of at least 1, got 0"),
        (lambda: flat(caps=np.full(3, 0.5), clipped=True), "expected caps equal to weights"),
        (lambda: bernstein_lower(np.ones(1), 1.0, 0.1), "a confidence bound needs at least 2 draws, got 1"),
        (lambda: certify_errors(np.ones((1, 1, 3)), flat()), "errors must have shape (n, K, 3), K > 1, got (1, 1, 3)"),
        (lambda: certify_errors(np.full((1, 2, 3), np.nan), flat()), "errors must be finite and not negative"),
        (lambda: certify_errors(np.ones((1, 2, 3)), flat(), form="x"), "form must be one of levels, plain, published"),
        (lambda: certify_errors(np.ones((1, 2, 3)), flat(), alpha=1.0), "alpha must lie strictly between 0 and 1"),
        (lambda: certify_errors(np.ones((1, 2, 3)), flat(), groups=0), "groups must be a whole number of at least 1"),
        (lambda: certify_errors(np.ones((1, 2, 3)), flat(), form="published"), "got clipped=False"),
    ],
)
def test_what_cannot_be_bounded_is_refused(call: Callable[[], object], message: str) -> None:
    fails_with(call, message, kind=InputError)


def test_tables_without_a_guarantee_are_refused() -> None:
    world = gaussian(3)
    model, run = world.model, classifier(world)
    images = unit_images(2)

    def certify(cap: float = 1.0, **options: object) -> Callable[[], object]:
        table = run.errors(images, **{"draws": 8, **options})  # type: ignore[arg-type]
        return lambda: certify_table(table, model, cap=cap)

    fails_with(certify(antithetic=True), "confidence bounds need independent draws", kind=InputError)
    fails_with(certify(loss="l1"), "expected method dc with loss l2, got dc with l1", kind=InputError)
    fails_with(certify(cap=0.0), "cap must be positive and finite, got 0.0", kind=InputError)
    table = run.errors(images, draws=8)
    counts = table.counts.copy()
    counts[1, 2] = 4
    early = replace(table, counts=counts, values=table.values[:-4], rule="betting")
    fails_with(
        lambda: certify_table(early, model, cap=1.0), "a table of rule betting that stopped early", kind=InputError
    )
    fails_with(lambda: certify_table(table, gaussian(4).model, cap=1.0), "not of this gaussian", kind=InputError)
    other = replace(table, plan={**table.plan, "method": "epndc"})
    fails_with(lambda: certify_table(other, model, cap=1.0), "got epndc with l2", kind=InputError)
