"""Likelihood maximisation: it raises the likelihood, keeps to its bounds, and equals two brute-force programs."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdc
from fastdc import BackendError, DiffusionClassifier, InputError
from fastdc.bundle import Model
from fastdc.data import digits_test
from fastdc.diffusion import DiscreteSchedule, random_positions
from fastdc.inference import streams_of, to_model_range
from fastdc.support import Float32, Float64
from fastdc.testing import reference
from helpers.worlds import SHAPE, classifier, fails_with, unit_images

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.robust import LikelihoodMaximization, ReleasedMaximization, maximize_likelihood
from fastdc.robust.likelihood import PURPOSE_LIKELIHOOD, maximize_tensor
from helpers.torch_worlds import gaussian_on_torch, on_torch, tiny_mlp, tiny_model

# Five steps of at most 0.1 whose slopes are ratios with some thirty float32 roundings (2e-6), and the pixels' own.
ROUNDING = 1e-6
# The chain of five second derivatives with 2e-6 each, in units of the sum of the terms' magnitudes.
GRADIENT = 1e-5


def unconditional(clf: DiffusionClassifier) -> DiffusionClassifier:
    """The same network as a classifier of one class, its null class: its error is the loss without a class."""
    null = clf.model.null_class
    network: Any = clf.network

    class Null(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.module

        def forward(self, sample: Any, timestep: Any, labels: Any) -> Any:
            return self.inner(sample, timestep, torch.full_like(labels, int(null or 0)))

    return on_torch(replace(clf.model, class_names=("nothing",), null_class=0), Null())


def noisy_digits(n: int) -> Float32:
    clean = digits_test().images[:n] / np.float32(255)
    noise = 0.1 * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    return np.clip(clean + noise, 0, 1)


@pytest.mark.parametrize("method", ["paper", "rdc", LikelihoodMaximization(steps=10, norm="sum", gamma=0.3)])
def test_the_likelihood_rises(method: Any) -> None:
    """The loss under noise that the steps never saw: another seed, another purpose, 64 draws per image."""
    clf = fastdc.load("digits-mlp", backend="torch")
    images = noisy_digits(24)
    moved = maximize_likelihood(clf, images, method=method)
    losses = [
        unconditional(clf)
        .errors(each, seed=77, draws=64, streams=range(24), levels=(0.3, 1.0))
        .errors.mean(axis=(1, 2))
        for each in (images, moved)
    ]
    assert losses[1].mean() < losses[0].mean()
    assert np.mean(losses[1] < losses[0]) > 0.9


@given(
    steps=st.integers(0, 4),
    eta=st.floats(1e-3, 1.5),
    gamma=st.floats(1e-3, 10),
    mu=st.floats(0, 2),
    norm=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_no_pixel_moves_further_than_eta_or_out_of_range(
    steps: int, eta: float, gamma: float, mu: float, norm: str, seed: int
) -> None:
    _, clf = gaussian_on_torch()
    images = unit_images(3)
    images[0, 0, 0] = (0, 1, 0, 1)
    how = LikelihoodMaximization(steps=steps, eta=eta, gamma=gamma, mu=mu, norm=norm, seed=seed)
    moved = maximize_likelihood(clf, images, method=how)
    assert moved.dtype == np.float32
    assert np.abs(moved - images).max() <= eta + ROUNDING
    assert moved.min() >= 0
    assert moved.max() <= 1
    if steps == 0:
        np.testing.assert_allclose(moved, images, atol=ROUNDING)


def test_images_move_as_far_as_the_ball_and_no_further() -> None:
    _, clf = gaussian_on_torch()
    images = 0.5 + 0.2 * (unit_images(3) - 0.5)
    near, far = (
        maximize_likelihood(clf, images, method=LikelihoodMaximization(eta=eta, gamma=1.0)) for eta in (0.01, 0.2)
    )
    assert np.abs(near - images).max() == pytest.approx(0.01, abs=ROUNDING)
    assert np.abs(far - images).max() > 0.1


# --- two brute-force programs ----------------------------------------------------------------------------------------


def slope(network: Any, model: Model, unit: Float64, sigma: float, e: Float64, *, space: str) -> Float64:
    """The gradient in [0, 1]-pixel units of a loss of EDM's denoiser D (Karras et al., arXiv 2206.00364, equation 7).

    "x0": mean (D(x + sigma e) - x)^2; "eps": mean ((x_t - D) / sigma - e)^2 with e a constant.
    """
    low, high = model.value_range
    data = 0.5
    total = sigma**2 + data**2
    image = torch.from_numpy(unit).requires_grad_()
    x, noise = image * (high - low) + low, torch.from_numpy(e)
    noisy = x + sigma * noise
    timestep = torch.tensor([np.log(sigma)], dtype=torch.float64)
    output = network(noisy[None] / total**0.5, timestep, torch.tensor([model.null_class]))[0]
    denoised = data**2 / total * noisy + sigma * data / total**0.5 * output
    r = denoised - x if space == "x0" else (noisy - denoised) / sigma - noise
    return np.asarray(torch.autograd.grad(r.square().mean(), image)[0].numpy())


def noise(seed: int, stream: int, step: int) -> Float64:
    return reference.normal(seed, stream, step, 16, PURPOSE_LIKELIHOOD).reshape(SHAPE)


def released_steps(unit: Float64, stream: int, seed: int, model: Model) -> Float64:
    """The released program's steps of one image (c, h, w) in [0, 1], in float64."""
    network, half = tiny_mlp().double().eval(), (model.value_range[1] - model.value_range[0]) / 2
    v = 2 * unit - 1
    m, s = np.zeros_like(v), np.zeros_like(v)
    for step, position in enumerate(random_positions(5, seed)):
        sigma = half * (0.4 + 0.2 * position)
        g = slope(network, model, (v + 1) / 2, sigma, noise(seed, stream, step), space="x0") / 2
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
        v = v - 0.1 * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(s / (1 - 0.999 ** (step + 1))) + 1e-8)
    return np.clip((v + 1) / 2, 0, 1)


def papers_steps(unit: Float64, stream: int, how: LikelihoodMaximization, model: Model) -> Float64:
    """Algorithm 1 of one image (c, h, w) in [0, 1] in the model's default band, in float64."""
    network = tiny_mlp().double().eval()
    assert isinstance(model.defaults.levels, tuple)
    low, high = model.defaults.levels
    x, m = unit, np.zeros_like(unit)
    for step, position in enumerate(random_positions(how.steps, how.seed)):
        sigma = np.exp(np.log(low) + position * np.log(high / low))  # uniform in the schedule's position, ln sigma
        g = slope(network, model, x, sigma, noise(how.seed, stream, step), space="eps")
        m = how.mu * m - g / (np.abs(g).mean() if how.norm == "mean" else np.abs(g).sum())
        x = np.clip(np.clip(x + how.gamma * m, unit - how.eta, unit + how.eta), 0, 1)
    return x


def setting(value_range: tuple[float, float] = (-1.0, 1.0)) -> tuple[DiffusionClassifier, Any, int]:
    """A classifier, an image away from the edges of [0, 1], and its stream."""
    clf = on_torch(tiny_model(value_range=value_range), tiny_mlp())
    images = 0.3 + 0.4 * unit_images(1, seed=2)
    return clf, images, int(streams_of(to_model_range(images, clf.model))[0])


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_released_steps_are_those_of_a_brute_force_program(seed: int, value_range: tuple[float, float]) -> None:
    clf, images, stream = setting(value_range)
    moved = maximize_likelihood(clf, images, method=ReleasedMaximization(seed=seed))
    want = released_steps(images[0].astype(np.float64), stream, seed, clf.model)
    np.testing.assert_allclose(moved[0], want, atol=ROUNDING)
    if seed == 0:
        np.testing.assert_array_equal(moved, maximize_likelihood(clf, images, method="rdc"))
    assert np.abs(moved - images).max() > 0.1


NEAR = [
    LikelihoodMaximization(gamma=0.02, eta=0.06, mu=0.9, seed=3),
    LikelihoodMaximization(gamma=0.3, eta=0.06, norm="sum", seed=3),
]


@pytest.mark.parametrize("how", NEAR)
def test_the_papers_steps_are_those_of_a_brute_force_program(how: LikelihoodMaximization) -> None:
    clf, images, stream = setting()
    moved = maximize_likelihood(clf, images, method=how)
    want = papers_steps(images[0].astype(np.float64), stream, how, clf.model)
    np.testing.assert_allclose(moved[0], want, atol=ROUNDING)
    assert np.abs(moved - images).max() > 0.03


def test_the_papers_parameters_are_the_defaults() -> None:
    how = LikelihoodMaximization()
    assert (how.steps, how.eta, how.gamma, how.mu) == (5, 8 / 255, 0.1, 1.0)
    clf, images, _ = setting()
    moved = maximize_likelihood(clf, images, method=how)
    np.testing.assert_array_equal(maximize_likelihood(clf, images), moved)
    np.testing.assert_array_equal(maximize_likelihood(clf, images, method="paper"), moved)


@pytest.mark.parametrize("how", [ReleasedMaximization(), *NEAR])
def test_the_gradient_of_all_steps_is_that_of_central_differences(how: Any) -> None:
    """The differences are the brute-force programs', in random directions."""
    clf, images, stream = setting()
    network = tiny_mlp().eval().requires_grad_(False)
    unit, streams = torch.from_numpy(images).requires_grad_(), torch.tensor([stream])
    moved = maximize_tensor(how, network, clf.model, unit, streams, differentiable=True)
    plain = maximize_tensor(how, network, clf.model, unit.detach(), streams)
    np.testing.assert_allclose(moved.detach(), plain, atol=ROUNDING)

    def brute(image: Float64) -> Float64:
        if isinstance(how, ReleasedMaximization):
            return released_steps(image, stream, how.seed, clf.model)
        return papers_steps(image, stream, how, clf.model)

    for seed in range(3):
        upstream, direction = np.random.default_rng(seed).standard_normal((2, *SHAPE))
        (given,) = torch.autograd.grad(moved, unit, torch.from_numpy(upstream)[None].float(), retain_graph=True)
        got = given[0].double().numpy() * direction
        h = 1e-6
        start = images[0].astype(np.float64)
        want = (upstream * (brute(start + h * direction) - brute(start - h * direction))).sum() / (2 * h)
        assert abs(got.sum() - want) < GRADIENT * np.abs(got).sum()


@pytest.mark.parametrize("method", ["paper", "rdc"])
def test_pixels_outside_the_range_are_moved_inside(method: str) -> None:
    """As the module takes them: an attack or an optimizer steps outside for a moment."""
    images = unit_images(2)
    images[0, 0, 0, :2] = (1.01, -0.02)
    moved = maximize_likelihood(on_torch(tiny_model(), tiny_mlp()), images, method=method)
    assert (moved.min(), moved.max()) >= (0, 0)
    assert moved.max() <= 1
    images[0, 0, 0, 0] = np.nan
    fails_with(
        lambda: maximize_likelihood(on_torch(tiny_model(), tiny_mlp()), images), "finite", "image 0", kind=InputError
    )


# --- options and refusals --------------------------------------------------------------------------------------------


def test_levels_are_the_models_unless_given() -> None:
    model = tiny_model()
    for levels, low, high in ((None, 0.2, 2.0), ("all", 0.05, 5.0), ((0.5, 0.6), 0.5, 0.6)):
        sigma = np.exp(LikelihoodMaximization(steps=300, levels=levels).rows(model)[:, 7])
        assert low <= sigma.min() < low * 1.1
        assert high / 1.1 < sigma.max() <= high


def test_chunk_batch_and_order_change_rounding_only() -> None:
    clf = on_torch(tiny_model(), tiny_mlp())
    images = unit_images(7)
    whole = maximize_likelihood(clf, images)
    order = np.random.default_rng(0).permutation(7)
    np.testing.assert_allclose(maximize_likelihood(clf, images, chunk=2), whole, atol=ROUNDING)
    np.testing.assert_allclose(maximize_likelihood(clf, images[order]), whole[order], atol=ROUNDING)
    np.testing.assert_array_equal(maximize_likelihood(clf, torch.from_numpy(images)), whole)
    other = maximize_likelihood(clf, images, streams=range(7))
    assert np.abs(other - whole).max() > 0.01, "the noise must be the stream's"


@pytest.mark.parametrize("how", [LikelihoodMaximization(), ReleasedMaximization()])
def test_a_flat_loss_moves_nothing_and_has_a_gradient(how: Any) -> None:
    class Zero(torch.nn.Module):
        def forward(self, sample: Any, _: Any, __: Any) -> Any:
            return torch.zeros_like(sample)  # eps = 0: neither loss depends on x

    model = tiny_model(kind="epsilon", schedule=DiscreteSchedule())
    images = 0.3 + 0.4 * unit_images(2)
    np.testing.assert_allclose(maximize_likelihood(on_torch(model, Zero()), images, method=how), images, atol=ROUNDING)
    unit = torch.from_numpy(images).requires_grad_()
    moved = maximize_tensor(how, Zero(), model, unit, torch.tensor([1, 2]), differentiable=True)
    (gradient,) = torch.autograd.grad(moved.sum(), unit)
    np.testing.assert_allclose(gradient, np.ones_like(images), atol=ROUNDING)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"steps": -1}, ["steps", "-1"]),
        ({"steps": 2.0}, ["steps", "2.0"]),
        ({"seed": 2**64}, ["seed"]),
        ({"eta": 0}, ["eta", "0"]),
        ({"eta": float("inf")}, ["eta", "inf"]),
        ({"gamma": -0.1}, ["gamma", "-0.1"]),
        ({"mu": float("nan")}, ["mu", "nan"]),
        ({"norm": "max"}, ["norm", "mean", "max"]),
    ],
)
def test_unusable_parameters_are_refused(options: dict[str, Any], parts: list[str]) -> None:
    fails_with(lambda: LikelihoodMaximization(**options), *parts, kind=InputError)


def test_unusable_requests_are_refused() -> None:
    world, clf = gaussian_on_torch()
    images = unit_images(2)
    fails_with(lambda: ReleasedMaximization(steps=-1), "steps", kind=InputError)
    fails_with(lambda: maximize_likelihood(clf, images, method="adam"), "paper", "rdc", "adam", kind=InputError)
    fails_with(lambda: maximize_likelihood(clf, images, chunk=0), "chunk", "0", kind=InputError)
    fails_with(lambda: maximize_likelihood(clf, images, streams=[1]), "streams", "2", kind=InputError)
    fails_with(lambda: maximize_likelihood(clf, images[:, :, 1:]), "(2, 1, 3, 4)", kind=InputError)
    bad = LikelihoodMaximization(levels=(10.0, 20.0))
    fails_with(lambda: maximize_likelihood(clf, images, method=bad), "levels", kind=InputError)
    fails_with(lambda: maximize_likelihood(classifier(world), images), "torch", kind=BackendError)
    without = DiffusionClassifier(world.model, clf.network)
    fails_with(lambda: maximize_likelihood(without, images), "null class", "gaussian", kind=InputError)
