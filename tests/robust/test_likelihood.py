"""Likelihood maximisation: it does raise the likelihood, stays where it must, and is what the two programs compute."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdc
from fastdc import BackendError, DiffusionClassifier, InputError
from fastdc.bundle.model import Model
from fastdc.data import digits_test
from fastdc.diffusion import DiscreteSchedule
from fastdc.diffusion.plan import random_positions
from fastdc.inference.images import streams_of, to_model_range
from fastdc.testing import reference
from helpers.worlds import SHAPE, classifier, fails_with, unit_images

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.robust import LikelihoodMaximization, ReleasedMaximization, maximize_likelihood
from fastdc.robust.likelihood import PURPOSE_LIKELIHOOD, maximize_tensor
from helpers.torch_worlds import gaussian_on_torch, on_torch, tiny_mlp, tiny_model

FloatArray = npt.NDArray[np.float64]
ROUNDING = 1e-6


def unconditional(clf: DiffusionClassifier) -> DiffusionClassifier:
    """The same network as a classifier of one class, the null class: its error is the loss without a class."""
    null = clf.model.null_class
    network: Any = clf.network

    class Nothing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.module

        def forward(self, sample: Any, timestep: Any, labels: Any) -> Any:
            return self.inner(sample, timestep, torch.full_like(labels, int(null or 0)))

    return on_torch(replace(clf.model, class_names=("nothing",), null_class=0), Nothing())


def noisy_digits(n: int) -> npt.NDArray[np.float32]:
    clean = digits_test().images[:n] / np.float32(255)
    noise = 0.1 * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    return np.clip(clean + noise, 0, 1)


@pytest.mark.parametrize("method", ["paper", "rdc", LikelihoodMaximization(steps=10, norm="sum", gamma=0.3)])
def test_the_likelihood_rises(method: Any) -> None:
    """The loss under noise that the steps never saw: another seed and another purpose, 64 draws an image."""
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


def test_the_ball_is_reached_and_is_what_stops_it() -> None:
    _, clf = gaussian_on_torch()
    images = 0.5 + 0.2 * (unit_images(3) - 0.5)
    near, far = (
        maximize_likelihood(clf, images, method=LikelihoodMaximization(eta=eta, gamma=1.0)) for eta in (0.01, 0.2)
    )
    assert np.abs(near - images).max() == pytest.approx(0.01, abs=ROUNDING)
    assert np.abs(far - images).max() > 0.1


def slope(
    network: Any, model: Model, unit: FloatArray, sigma: float, e: FloatArray, *, space: str, h: float = 1e-6
) -> FloatArray:
    """Central differences, pixel by pixel in [0, 1], of the loss of EDM's denoiser D written out (Karras et al.).

    "x0": mean (D(x + sigma e) - x)^2; "eps": mean ((x_t - D) / sigma - e)^2 with e a constant.
    """
    low, high = model.value_range
    data = 0.5
    assert model.null_class is not None

    def loss(image: FloatArray) -> float:
        x = image * (high - low) + low
        noisy = x + sigma * e
        total = sigma**2 + data**2
        sample = torch.from_numpy(noisy / np.sqrt(total))[None]
        timestep = torch.tensor([np.log(sigma)], dtype=torch.float64)
        output = network(sample, timestep, torch.tensor([model.null_class])).detach().numpy()[0]
        denoised = data**2 / total * noisy + sigma * data / np.sqrt(total) * output
        r = denoised - x if space == "x0" else (noisy - denoised) / sigma - e
        return float((r**2).mean())

    result = np.zeros_like(unit)
    for index in np.ndindex(unit.shape):
        ends = []
        for side in (-h, h):
            image = unit.copy()
            image[index] += side
            ends.append(loss(image))
        result[index] = (ends[1] - ends[0]) / (2 * h)
    return result


def setting(value_range: tuple[float, float] = (-1.0, 1.0)) -> tuple[DiffusionClassifier, Any, Any, Any]:
    """A classifier, its network in float64, an image away from the edges, and its stream."""
    clf = on_torch(tiny_model(value_range=value_range), tiny_mlp())
    images = 0.3 + 0.4 * unit_images(1, seed=2)
    return clf, tiny_mlp().double().eval(), images, int(streams_of(to_model_range(images, clf.model))[0])


def noise(seed: int, stream: int, step: int) -> FloatArray:
    return reference.normal(seed, stream, step, 16, PURPOSE_LIKELIHOOD).reshape(SHAPE)


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_released_steps_are_those_of_a_brute_force_program(seed: int, value_range: tuple[float, float]) -> None:
    clf, network, images, stream = setting(value_range)
    half = (value_range[1] - value_range[0]) / 2
    v = images[0].astype(np.float64) * 2 - 1
    m, s = np.zeros_like(v), np.zeros_like(v)
    for step, position in enumerate(random_positions(5, seed)):
        sigma = half * (0.4 + 0.2 * position)
        g = slope(network, clf.model, (v + 1) / 2, sigma, noise(seed, stream, step), space="x0") / 2
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
        v = v - 0.1 * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(s / (1 - 0.999 ** (step + 1))) + 1e-8)
    moved = maximize_likelihood(clf, images, method=ReleasedMaximization(seed=seed))
    # Adam's first step is rate * sign(g): a pixel with a slope near 0 may differ, none does here.
    np.testing.assert_allclose(moved[0], np.clip((v + 1) / 2, 0, 1), atol=2e-4)
    if seed == 0:
        np.testing.assert_array_equal(moved, maximize_likelihood(clf, images, method="rdc"))
    assert np.abs(moved - images).max() > 0.1


@pytest.mark.parametrize("norm", ["mean", "sum"])
def test_the_papers_steps_are_those_of_a_brute_force_program(norm: str) -> None:
    clf, network, images, stream = setting()
    gamma, eta, mu = (0.02, 0.06, 0.9) if norm == "mean" else (0.3, 0.06, 1.0)
    start = images[0].astype(np.float64)
    x, m = start, np.zeros_like(start)
    for step, position in enumerate(random_positions(5, 3)):
        sigma = np.exp(np.log(0.3) + position * np.log(1.0 / 0.3))  # uniform in the schedule's position, ln sigma
        g = slope(network, clf.model, x, sigma, noise(3, stream, step), space="eps")
        m = mu * m - g / (np.abs(g).mean() if norm == "mean" else np.abs(g).sum())
        x = np.clip(np.clip(x + gamma * m, start - eta, start + eta), 0, 1)
    how = LikelihoodMaximization(gamma=gamma, eta=eta, mu=mu, norm=norm, levels=(0.3, 1.0), seed=3)
    moved = maximize_likelihood(clf, images, method=how)
    np.testing.assert_allclose(moved[0], x, atol=1e-5)
    assert np.abs(x - start).max() > 0.03


@pytest.mark.parametrize(
    "how",
    [
        ReleasedMaximization(),
        LikelihoodMaximization(gamma=0.02, eta=0.06),
        LikelihoodMaximization(gamma=0.3, eta=0.06, norm="sum"),
    ],
)
def test_the_gradient_of_all_steps_is_that_of_central_differences(how: Any) -> None:
    _, network, images, stream = setting()
    network.requires_grad_(False)
    unit = torch.from_numpy(images.astype(np.float64)).requires_grad_()

    def moved(given: "torch.Tensor") -> "torch.Tensor":
        return maximize_tensor(how, network, tiny_model(), given, torch.tensor([stream]), differentiable=True)

    assert torch.autograd.gradcheck(moved, (unit,), eps=1e-7, atol=1e-4, rtol=1e-3)
    plain = maximize_tensor(how, network, tiny_model(), unit.detach(), torch.tensor([stream]))
    np.testing.assert_allclose(moved(unit).detach(), plain, rtol=1e-12)


def test_the_papers_parameters_are_the_defaults() -> None:
    how = LikelihoodMaximization()
    assert (how.steps, how.eta, how.gamma, how.mu) == (5, 8 / 255, 0.1, 1.0)


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
    np.testing.assert_allclose(maximize_likelihood(clf, images, chunk=2), whole, atol=1e-4)
    np.testing.assert_allclose(maximize_likelihood(clf, images[order]), whole[order], atol=1e-4)
    np.testing.assert_array_equal(maximize_likelihood(clf, torch.from_numpy(images)), whole)
    other = maximize_likelihood(clf, images, streams=range(7))
    assert np.abs(other - whole).max() > 0.01, "the noise is the stream's"


def test_a_flat_loss_moves_nothing() -> None:
    class Zero(torch.nn.Module):
        def forward(self, sample: Any, _: Any, __: Any) -> Any:
            return torch.zeros_like(sample)  # eps = 0: the loss is mean e^2, whatever x is

    clf = on_torch(tiny_model(kind="epsilon", schedule=DiscreteSchedule()), Zero())
    images = unit_images(2)
    np.testing.assert_allclose(maximize_likelihood(clf, images, method="paper"), images, atol=ROUNDING)


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
