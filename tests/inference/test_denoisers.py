"""Denoisers of noisy images: the model without a class, another model, or the mean over classes on request.

The world is a mixture of Gaussian classes, whose estimate without a class is known: the classes' estimates, weighted by
their posterior given the noisy image.
"""

import json
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastdc import BackendError, DiffusionClassifier, InputError, Model, Session
from fastdc.backends import FunctionNetwork
from fastdc.certification import Fixed
from fastdc.diffusion import (
    AbstractSchedule,
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Parameterization,
    PlanConfig,
)
from fastdc.inference import AbstractDenoiser
from fastdc.rules import Calibrated, Paired
from fastdc.testing import reference
from helpers.worlds import SHAPE, Float32, Float64, Int64, ManySlots, classifier, fails_with, gaussian, unit_images

WORLD = gaussian(3, scale=0.8)
CLASSES = len(WORLD.means)
METHODS = ("denoised", "apndc", "apndc-x")
TAU = 0.6  # on [-1, 1]
NOISY: dict[str, Any] = {"rule": "full", "draws": 3, "levels": (0.8, 3.0), "sigma": TAU / 2, "seed": 7}
IMAGES = unit_images(9)


def mixture(x_t: Float64, sigma: Float64) -> Float64:
    """The best estimate of the clean image without a class, (b, c, h, w), of x_t at noises sigma (b,)."""
    distance = ((x_t[:, None] - WORLD.means[None]) ** 2).sum(axis=(2, 3, 4))
    logits = -distance / (2 * (WORLD.spread**2 + sigma[:, None] ** 2))
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    each = [WORLD.denoise(x_t, sigma, np.full(len(x_t), k)) for k in range(CLASSES)]
    return np.asarray(sum(share[:, k, None, None, None] * each[k] for k in range(CLASSES)))


def with_null(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
    """The world's network; the label after its classes means "no class"."""
    sigma = np.exp(timestep.astype(np.float64) / WORLD.schedule.timestep_scale)
    x_t = sample.astype(np.float64)
    bare = (labels == CLASSES)[:, None, None, None]
    return np.where(bare, mixture(x_t, sigma), WORLD.denoise(x_t, sigma, np.minimum(labels, CLASSES - 1)))


NULL = DiffusionClassifier(replace(WORLD.model, null_class=CLASSES), FunctionNetwork(with_null, SHAPE))


@dataclass(frozen=True)
class Kind:
    """An unconditional model of the mixture: what its network predicts, on which schedule and range."""

    kind: str
    schedule: AbstractSchedule
    value_range: tuple[float, float] = (-1.0, 1.0)

    def open(self, *, batch: int = 128, slots: int = 1, replicas: int = 0) -> DiffusionClassifier:
        model = Model("bare", SHAPE, ("any",), self.schedule, self._parameterization, value_range=self.value_range)
        first, *others = (ManySlots(self._network, SHAPE, batch=batch, slots=slots) for _ in range(1 + replicas))
        return DiffusionClassifier(model, first, replicas=tuple(others))

    @property
    def _parameterization(self) -> Parameterization:
        return Parameterization(self.kind, 0.7 if self.kind == "edm" else None)

    def _network(self, sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        assert (labels == 0).all()
        u, t = sample.astype(np.float64), timestep.astype(np.float64)
        one = np.ones_like(t)
        if isinstance(self.schedule, EDMSchedule):
            sigma = np.exp(t / self.schedule.timestep_scale)
            alpha, scale = one, (sigma**2 + 0.49) ** -0.5 if self.kind == "edm" else one
        elif isinstance(self.schedule, FlowSchedule):
            sigma, scale = t / self.schedule.timestep_scale, one
            alpha = 1 - sigma
        else:
            assert isinstance(self.schedule, DiscreteSchedule)
            bar = self.schedule.alphas_cumprod[t.astype(int)]
            alpha, sigma, scale = np.sqrt(bar), np.sqrt(1 - bar), one
        alpha, sigma, scale = (part[:, None, None, None] for part in (alpha, sigma, scale))
        x_t = u / scale
        low, high = self.value_range
        width = (high - low) / 2
        clean = mixture((x_t / alpha - low) / width - 1, (sigma / alpha / width)[:, 0, 0, 0])
        clean = (clean + 1) * width + low
        if self.kind == "sample":
            return clean
        if self.kind == "edm":
            skip, out = 0.49 / (sigma**2 + 0.49), sigma * 0.7 * (sigma**2 + 0.49) ** -0.5
            return np.asarray((clean - skip * x_t) / out)
        noise = (x_t - alpha * clean) / sigma
        return np.asarray(noise - clean if self.kind == "flow" else noise)


SAME = Kind("sample", WORLD.schedule)
# A schedule of steps has the level of tau itself only by chance; this one is fine enough.
OTHERS = (
    Kind("edm", EDMSchedule(0.01, 50.0, timestep_scale=0.25)),
    Kind("epsilon", DiscreteSchedule("linear", 1e-6, 2e-4, 100_000)),
    Kind("flow", FlowSchedule(shift=3.0), (0.0, 1.0)),
    Kind("epsilon", EDMSchedule(0.5, 500.0), (0.0, 255.0)),
)


def bare_classifier() -> DiffusionClassifier:
    return classifier(WORLD, batch=5, slots=2)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_same_network_as_a_second_model_gives_the_same_numbers(method: str) -> None:
    want = NULL.classify(IMAGES, method=method, **NOISY)
    for denoiser in (SAME.open(), SAME.open(batch=2, slots=3), SAME.open(batch=2, slots=2, replicas=2)):
        got = bare_classifier().classify(IMAGES, method=method, denoiser=denoiser, **NOISY)
        np.testing.assert_array_equal(got.table.errors, want.table.errors)
        np.testing.assert_array_equal(got.evaluations, want.evaluations)
        assert (got.evaluations == CLASSES * 3 + 1).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.kind)
def test_a_denoiser_may_have_another_schedule_parameterization_and_range(method: str, kind: Kind) -> None:
    want = NULL.errors(IMAGES, method=method, **{key: NOISY[key] for key in ("draws", "levels", "sigma", "seed")})
    got = bare_classifier().classify(IMAGES, method=method, denoiser=kind.open(), **NOISY)
    np.testing.assert_allclose(got.table.errors, want.errors, rtol=2e-3, atol=1e-4)
    mean = bare_classifier().classify(IMAGES, method=method, denoiser="mean", **NOISY)
    assert np.abs(mean.table.errors - want.errors).max() > 0.05  # which the tolerance above tells apart


def test_errors_are_those_of_the_closed_form() -> None:
    """The image apndc-x compares with is the mixture's estimate, and noise is added to the noisy image itself."""
    job = bare_classifier().settings(method="apndc-x", denoiser=OTHERS[2].open(), **NOISY).job
    x = (2 * IMAGES[:2] - 1).astype(np.float32)
    errors = job.table(x, np.array([3, 4])).errors
    h = mixture(x.astype(np.float64), np.full(2, TAU))
    for i, stream in enumerate((3, 4)):
        for j, s in enumerate(job.plan.levels.sigma.tolist()):
            e = reference.normal(7, stream, j, x[0].size).reshape(SHAPE)
            x_s = np.repeat((x[i] + np.sqrt(s**2 - TAU**2) * e)[None], CLASSES, axis=0)
            said = WORLD.denoise(x_s, np.full(CLASSES, s), np.arange(CLASSES))
            want = job.plan.rows[j, 6] * ((said - h[i]) ** 2).mean(axis=(1, 2, 3))
            np.testing.assert_allclose(errors[i, :, j], want, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_certificates_and_sessions_use_the_denoiser(method: str) -> None:
    options: dict[str, Any] = {**NOISY, "rule": "calibrated", "rule_options": {"limit": 2.0}, "method": method}
    smoothing = Fixed(TAU / 2, 40, 0.01)
    ours = {**options, "denoiser": SAME.open(batch=4, slots=2)}
    want, got = (
        [
            (made.label, made.radius, made.evaluations)
            for made in clf.certify(IMAGES[:3], smoothing, n0=8, base=clf.base(**given))
        ]
        for clf, given in ((NULL, options), (bare_classifier(), ours))
    )
    assert got == want
    with Session(bare_classifier(), **ours) as session:
        results = [future.result(20) for future in [session.submit(image) for image in IMAGES]]
    whole = NULL.classify(IMAGES, **options)
    np.testing.assert_array_equal(np.concatenate([result.errors for result in results]), whole.errors)


def test_progress_counts_images_of_several_calls() -> None:
    """Images are denoised as there is room: more of them than a call of the denoiser takes."""
    images = unit_images(70, seed=3)
    denoiser = SAME.open(batch=4, slots=2)
    want = NULL.classify(images, method="apndc", **NOISY)
    got = bare_classifier().classify(images, method="apndc", denoiser=denoiser, **NOISY)
    np.testing.assert_array_equal(got.table.errors, want.table.errors)
    network: Any = denoiser.network
    assert sum(network.recorded) == 70
    assert max(network.recorded) == 4


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_without_a_null_class_the_ways_out_are_named(method: str) -> None:
    clf = classifier(WORLD)
    options: dict[str, Any] = {"method": method, "sigma": 0.3, "draws": 2}
    calls: list[Any] = [
        lambda: clf.classify(IMAGES, **options),
        lambda: clf.errors(IMAGES, **options),
        lambda: clf.calibrate(IMAGES, **options),
        lambda: clf.base(**options),
        lambda: Session(clf, **options),
    ]
    for call in calls:
        fails_with(call, f"method {method}", "no null class", "epndc", "--denoiser", '"mean"', kind=InputError)
    network: Any = clf.network
    assert not network.recorded


def test_what_cannot_denoise_is_refused() -> None:
    model = SAME.open().model
    clf = classifier(WORLD)

    def other(**changes: Any) -> AbstractDenoiser:
        return DiffusionClassifier(replace(model, **changes), FunctionNetwork(with_null, changes["image_shape"]))

    latents = replace(model, latent_shape=(1, 2, 2))
    small = Kind("sample", EDMSchedule(sigma_min=0.7, sigma_max=5.0))
    cases: list[tuple[Any, tuple[str, ...]]] = [
        ("median", ("denoiser must be a classifier", '"mean"', "'median'")),
        (3, ("denoiser must be a classifier", "3")),
        (model, ("denoiser must be a classifier",)),
        (other(image_shape=(3, 4, 4)), ("denoiser bare", "(3, 4, 4)", "(1, 4, 4)")),
        (classifier(gaussian(4)), ("denoiser gaussian", "4 classes", "unconditional")),
        (clf, ("gaussian", "3 classes")),
        (small.open(), ("denoiser bare", "0.7 to 5", "0.6")),
        (type("Fake", (), {"model": latents, "networks": ()})(), ("denoiser bare", "latents")),
    ]
    for denoiser, named in cases:
        fails_with(partial(clf.base, method="apndc", sigma=0.3, denoiser=denoiser), *named, kind=InputError)
    fails_with(lambda: NULL.base(method="apndc", sigma=0.3, denoiser=NULL), "classifier itself", kind=InputError)
    for method in ("dc", "epndc"):
        options: dict[str, Any] = {"method": method, "sigma": 0.3, "denoiser": "mean"}
        fails_with(partial(clf.base, **options), f"method {method} does not denoise", kind=InputError)


def test_noise_outside_the_schedule_is_refused_for_the_own_null_class_too() -> None:
    fails_with(lambda: NULL.base(method="apndc", sigma=0.01), "0.05 to 5", "0.02", kind=InputError)


def test_a_denoiser_in_the_middle_of_a_run_is_busy() -> None:
    denoiser = SAME.open(batch=1)
    options: dict[str, Any] = {"method": "apndc", "denoiser": denoiser, **NOISY}
    running = denoiser.stream(IMAGES, chunk=1, draws=2)
    next(running)
    fails_with(lambda: bare_classifier().classify(IMAGES, **options), "busy", "this thread", kind=BackendError)
    list(running)
    bare_classifier().classify(IMAGES, **options)


def test_two_models_that_denoise_for_each_other_do_not_lock_each_other_out() -> None:
    """Each run needs both networks, one of them only now and then."""
    pair = [DiffusionClassifier(NULL.model, FunctionNetwork(with_null, SHAPE)) for _ in range(2)]
    options = [{"method": "apndc", "denoiser": other, **NOISY} for other in pair[::-1]]
    want = pair[0].classify(IMAGES, **options[0]).errors
    found: list[Any] = []

    def work(i: int) -> None:
        for _ in range(8):
            found.append(pair[i].classify(IMAGES, **options[i]).errors)
        base = pair[i].base(method="apndc", sigma=0.3, denoiser=pair[1 - i])
        pair[i].certify(IMAGES[:2], Fixed(0.3, 20, 0.1), n0=8, base=base)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(found) == 32
    assert all(np.array_equal(errors, want) for errors in found)


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_run_names_its_denoiser() -> None:
    told = bare_classifier().base(method="apndc", sigma=0.3, denoiser=SAME.open()).describe()
    assert json.loads(json.dumps(told))["denoiser"] == {
        "model": "bare",
        "sha256": "",
        "backend": "function",
        "device": "cpu",
        "precision": "float32",
    }
    assert told["plan"]["denoiser"] == "model bare"
    mean = bare_classifier().base(method="apndc", sigma=0.3, denoiser="mean").describe()
    assert mean["plan"]["denoiser"] == "mean"
    assert "denoiser" not in mean
    assert "denoiser" not in NULL.base(method="apndc", sigma=0.3).describe()["plan"]


def test_plans_keep_their_denoiser() -> None:
    plan = PlanConfig(4, levels=(0.8, 3.0), method="apndc", noise=0.6, denoiser="mean")
    assert PlanConfig.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert "denoiser" not in replace(plan, denoiser=None).to_dict()
    wrong: Any
    for wrong in ("", 3):
        fails_with(partial(replace, plan, denoiser=wrong), "denoiser must be a name", kind=InputError)


def test_a_race_fits_the_denoiser_that_it_was_calibrated_with() -> None:
    clf = classifier(WORLD)
    options: dict[str, Any] = {"sigma": 0.3, "method": "apndc", "levels": (0.8, 3.0)}
    found = clf.calibrate(unit_images(19), delta=0.05, seeds=1, draws=4, denoiser=SAME.open(), **options)
    assert found.plan["denoiser"] == "model bare"
    known = replace(clf, model=replace(clf.model, noised_calibrations=(found,)))
    named = replace(SAME.open(), model=replace(SAME.open().model, identity="ab" * 32))
    denoisers: list[tuple[Any, type]] = [(SAME.open(), Calibrated), (named, Paired), ("mean", Paired)]
    for denoiser, rule in denoisers:
        job = known.base(**{**options, "levels": None}, denoiser=denoiser).job
        assert isinstance(job.rule, rule), denoiser
    assert known.base(sigma=0.3, method="apndc", denoiser=SAME.open()).job.plan.config.levels == (0.8, 3.0)
