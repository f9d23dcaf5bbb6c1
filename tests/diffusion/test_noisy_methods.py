"""Noised diffusion classifiers: rows against the sources' formulas on one pixel, and runs against a slow loop.

The oracle of a row makes x_s by hand, computes the clean pixel that an arbitrary output of the network means, and
subtracts the target. The oracle of a run is a loop over copies, classes and draws in float64 in the Gaussian world.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.diffusion.levels import AbstractSchedule
from fastdc.diffusion.noisy_methods import METHODS, method_of
from fastdc.diffusion.plan import PlanConfig, make_plan
from fastdc.diffusion.stepped_schedules import DiscreteSchedule
from fastdc.inference.images import streams_of, to_model_range
from fastdc.testing.reference import normal
from helpers.parameterizations import PAIRS, image_said, make
from helpers.worlds import Float64, classifier, fails_with, gaussian, unit_images

NOISY = tuple(name for name in METHODS if name != "dc")
WORLD = gaussian(3)
TAU = 0.4
value = st.floats(-3, 3)


def target_of(method: str, x_tau: float, e: float, denoised: float, s: float) -> float:
    """The target of the clean pixel, by the table of the module."""
    if method == "dc":
        return x_tau
    if method == "epndc":  # m = (s^2 x_tau - tau^2 x_s) / (s^2 - tau^2), with x_s = x_tau + sqrt(s^2 - tau^2) e
        x_s = x_tau + math.sqrt(s**2 - TAU**2) * e
        return (s**2 * x_tau - TAU**2 * x_s) / (s**2 - TAU**2)
    return denoised


@pytest.mark.parametrize(("kind", "schedule"), PAIRS)
@pytest.mark.parametrize("method", NOISY)
@settings(max_examples=25)
@given(x_tau=value, e=value, f=value, denoised=value)
def test_a_row_compares_the_denoised_pixel_with_the_target(
    kind: str, schedule: AbstractSchedule, method: str, x_tau: float, e: float, f: float, denoised: float
) -> None:
    config = PlanConfig(4, levels=(0.5, 3.0), weighting="edm", method=method, noise=TAU)
    plan = make_plan(schedule, make(kind), config)
    gx, ge, a, b, c, d = plan.rows[2, :6].astype(np.float64)
    alpha, sigma = float(plan.levels.alpha[2]), float(plan.levels.sigma[2])
    s = sigma / alpha
    replaced = method in ("denoised", "apndc")
    y = denoised if replaced else x_tau
    added = s if replaced else math.sqrt(s**2 - TAU**2)
    x_t = alpha * (y + added * e)
    scale = 1 / math.sqrt(sigma**2 + 0.6**2) if kind == "edm" else 1.0
    assert math.isclose(gx * y + ge * e, scale * x_t, rel_tol=1e-5, abs_tol=1e-5)
    said = image_said(kind, f, x_t, alpha, sigma)
    expected = said - target_of(method, x_tau, e, denoised, s)
    got = a * f + b * y + c * e + d * denoised
    assert math.isclose(got, expected, rel_tol=1e-4, abs_tol=1e-4 * (1 + abs(said)))


def test_epndc_compares_the_posteriors_of_the_paper() -> None:
    """E[p] - E[q] of arXiv 2402.02316 is (s^2 - t^2) / s^2 times our residual, for any step from s to t."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        tau, t, s = np.sort(rng.uniform(0.1, 3, 3))
        x_tau, e, h = rng.normal(size=3)
        x_s = x_tau + math.sqrt(s**2 - tau**2) * e
        q = ((s**2 - t**2) * x_tau + (t**2 - tau**2) * x_s) / (s**2 - tau**2)
        p = ((s**2 - t**2) * h + t**2 * x_s) / s**2
        one, noise, _ = method_of("epndc").target(np.array([s]), tau)
        ours = h - float(one[0] * x_tau + noise[0] * e)
        assert math.isclose(p - q, (s**2 - t**2) / s**2 * ours, rel_tol=1e-9, abs_tol=1e-12)


def slow_errors(method: str, x: Float64, streams: list[int], plan: Any, *, classes: list[int]) -> Float64:
    """Errors (n, K, J) of noisy images x (n, c, h, w) in the Gaussian world."""
    spread = WORLD.spread

    def h(noisy: Float64, s: float, k: int) -> Float64:
        return np.asarray((spread**2 * noisy + s**2 * WORLD.means[k]) / (spread**2 + s**2))

    errors = np.zeros((len(x), len(WORLD.means), len(plan.levels)))
    for i, image in enumerate(x):
        denoised = np.mean([h(image, TAU, k) for k in classes], axis=0)
        for j, s in enumerate(plan.levels.sigma):
            e = normal(7, streams[i], j, image.size).reshape(image.shape)
            for k in range(len(WORLD.means)):
                replaced = method in ("denoised", "apndc")
                above = method in ("epndc", "apndc-x")
                y = denoised if replaced else image
                added = math.sqrt(s**2 - TAU**2) if above else s
                x_s = y + added * e
                if method == "epndc":
                    target = (s**2 * image - TAU**2 * x_s) / (s**2 - TAU**2)
                else:
                    target = image if method == "dc" else denoised
                errors[i, k, j] = plan.rows[j, 6] * np.mean((h(x_s, s, k) - target) ** 2)
    return errors


def mean(method: str) -> dict[str, Any]:
    """The options of a method in a world that always needs a class."""
    return {"denoiser": "mean"} if method_of(method).denoises else {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("batch", "slots"), [(1, 1), (5, 2), (64, 1)])
def test_a_run_is_the_slow_loop(method: str, batch: int, slots: int) -> None:
    clf = classifier(WORLD, batch=batch, slots=slots)
    job = clf.settings(
        rule="full", seed=7, draws=3, levels=(0.5, 3.0), method=method, sigma=TAU / 2, **mean(method)
    ).job
    assert job.plan.config.noise == TAU
    x = to_model_range(unit_images(4), clf.model)
    x = x + np.float32(TAU) * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    streams = streams_of(x)
    errors: Float64 = job.table(x, streams).errors.astype(np.float64)
    expected = slow_errors(method, x.astype(np.float64), streams.tolist(), job.plan, classes=[0, 1, 2])
    np.testing.assert_allclose(errors, expected, rtol=2e-4, atol=1e-6)


def test_denoising_evaluations_are_counted() -> None:
    clf = classifier(WORLD)
    images = unit_images(5)
    plain = clf.classify(images, rule="full", draws=2)
    noisy: dict[str, Any] = {"rule": "full", "draws": 2, "method": "denoised", "sigma": 0.2, "levels": (0.5, 3.0)}
    denoised = clf.classify(images, **noisy, denoiser="mean")
    assert (denoised.evaluations == plain.evaluations + 3).all()  # the mean over all classes
    assert denoised.provenance["plan"]["denoiser"] == "mean"
    assert denoised.provenance["method"] == "denoised"


def test_the_level_of_denoising_is_the_nearest_one() -> None:
    schedule = DiscreteSchedule()
    config = PlanConfig(1, levels=(0.5, 3.0), method="apndc", noise=TAU)
    row = make_plan(schedule, make("epsilon"), config).denoising_row
    assert row is not None
    alpha_bar = schedule.alphas_cumprod
    distance = np.abs(np.log((1 - alpha_bar) / alpha_bar) - 2 * math.log(TAU))
    assert row[0, 7] == np.argmin(distance)
    assert row[0, 1] == 0


@pytest.mark.parametrize("method", NOISY)
def test_the_noise_must_be_known_and_the_levels_above_it(method: str) -> None:
    fails_with(lambda: PlanConfig(1, method=method), method, "noise", kind=InputError)
    if method_of(method).above:
        for levels, first in (((0.4, 3.0), ()), ((0.5, 3.0), (0.3,))):
            with pytest.raises(InputError, match=rf"^method {method} needs levels above the images' noise 0\.4 "):
                PlanConfig(4, levels=levels, first=first, method=method, noise=TAU)
        whole = PlanConfig(4, method=method, noise=TAU)
        schedule, parameterization = WORLD.model.schedule, WORLD.model.parameterization
        fails_with(lambda: make_plan(schedule, parameterization, whole), method, "0.4", kind=InputError)


def test_unknown_methods_are_refused() -> None:
    fails_with(lambda: method_of("ndc"), "ndc", "epndc", kind=InputError)
