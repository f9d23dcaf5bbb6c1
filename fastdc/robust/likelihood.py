"""Likelihood maximisation: moves an image to where the model without a class denoises it better, before classification.

The Robust Diffusion Classifier (Chen et al., arXiv 2305.15241, algorithm 1) minimises the diffusion loss of the network
without a class over images x' near x. Each of N steps draws one noise level t and one noise e:

    g = grad of w_t mean (eps(x'_t, t) - e)^2 at x',    m <- mu m - g / |g|_1,    x' <- clip(x' + gamma m)

where clip keeps x' within eta of x in every pixel, and within [0, 1]. N = 5, eta = 8/255, gamma = 0.1 and mu = 1, on
pixels in [0, 1]. The weight w_t cancels in g / |g|_1, so fastdc has no option for it.

|g|_1 is the mean of |g| over pixels here, as is usual for momentum attacks. With the sum, N steps could move a pixel of
a CIFAR-10 image by 0.0005 at most, a sixtieth of eta; ``norm="sum"`` selects it.

The authors' released program, ``"rdc"``, differs: five steps of Adam at rate 0.1 on pixels in [-1, 1], the loss
mean (D(x' + sigma e, sigma) - x')^2 with its gradient through both places of x', sigma uniform in [0.4, 0.6], no
ball around x, and a single clip to [0, 1] at the end.

The authors' program draws the same noise, from seed 1, for every image. Here the noise is a function of (seed, stream,
step) with a purpose of its own and the noise levels are functions of (seed, step), so the batch and its order change
nothing.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, Unpack

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastdc.bundle import Model
from fastdc.diffusion import make_plan, random_positions
from fastdc.inference import ImageOptions, Images, PlanOptions, plan_config
from fastdc.robust.denoiser import ModelAndNetwork, denoiser_of, place_of
from fastdc.robust.samples import samples_of
from fastdc.robust.torch_errors import Draws, cell_errors
from fastdc.support import Float32, InputError, checks, shown

PURPOSE_LIKELIHOOD = 16
"""Purpose of the noise (``kernels``): independent of the noise that classifies."""

NORMS = ("mean", "sum")
MAX_STEPS = 10_000

_Gradient: TypeAlias = Callable[[int, Tensor], Tensor]
"""(step, images in [0, 1]) -> the gradient of each image's own loss with respect to it."""


@dataclass(frozen=True)
class LikelihoodMaximization:
    """Likelihood maximisation as the paper states it.

    Attributes:
        steps: N, the number of steps, from 0. Each is one evaluation of the network per image, and its gradient.
        eta: Largest change of a pixel, positive, in [0, 1]-pixel units.
        gamma: Step size, positive, in [0, 1]-pixel units for a gradient of norm 1.
        mu: Momentum, from 0.
        norm: ``|g|_1`` as "mean" or "sum" over pixels.
        levels: Band of noise-to-signal ratios (low, high) in which the schedule's position is uniform; "all" is the
            whole schedule, as in the paper, and None is the model's default band.
        seed: Seed of the noise and of the levels, in [0, 2^64).
    """

    steps: int = 5
    eta: float = 8 / 255
    gamma: float = 0.1
    mu: float = 1.0
    norm: str = "mean"
    levels: tuple[float, float] | str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks.whole("steps", self.steps, low=0, high=MAX_STEPS)
        checks.positive("eta", self.eta)
        checks.positive("gamma", self.gamma)
        checks.positive("mu", self.mu, zero=True)
        checks.one_of("norm", self.norm, NORMS)
        checks.seed(self.seed)

    def rows(self, model: Model) -> Float32:
        """The coefficient row of each step, float32 (N, 8): independent uniform positions, residual eps(x_t, t) - e."""
        options: PlanOptions = {
            "draws": max(1, self.steps),
            "levels": self.levels,
            "first": (),
            "weighting": "uniform",
            "loss": "l2",
            "order": "random",
            "order_seed": self.seed,
        }
        return make_plan(model.schedule, model.parameterization, plan_config(model, options)).rows

    def maximize(self, unit: Tensor, gradient: _Gradient) -> Tensor:
        """Likelier images in [0, 1]. unit: float32 (n, c, h, w) in [0, 1]; gradient: see ``_Gradient``."""
        low, high = (unit - self.eta).clamp(min=0), (unit + self.eta).clamp(max=1)
        moved, momentum = unit, torch.zeros_like(unit)
        for step in range(self.steps):
            g = gradient(step, moved)
            size = g.abs().flatten(1)
            norm = size.mean(1) if self.norm == "mean" else size.sum(1)
            # The clamp keeps a loss without a slope (a flat network) from dividing 0 by 0: it moves nothing.
            momentum = self.mu * momentum - g / norm.clamp(min=torch.finfo(g.dtype).tiny).view(-1, 1, 1, 1)
            moved = torch.minimum(torch.maximum(moved + self.gamma * momentum, low), high)
        return moved


@dataclass(frozen=True)
class ReleasedMaximization:
    """Likelihood maximisation as the paper's released program does it.

    Attributes:
        steps: Number of steps of Adam, from 0. Each is one evaluation of the network per image, and its gradient.
        seed: Seed of the noise and of the levels, in [0, 2^64).
    """

    steps: int = 5
    seed: int = 0

    # Constants of the released program, which works on pixels in [-1, 1]; torch's defaults for Adam.
    _sigmas = (0.4, 0.6)
    _rate = 0.1
    _beta1, _beta2, _eps = 0.9, 0.999, 1e-8

    def __post_init__(self) -> None:
        checks.whole("steps", self.steps, low=0, high=MAX_STEPS)
        checks.seed(self.seed)

    def rows(self, model: Model) -> Float32:
        """The coefficient row of each step, float32 (N, 8): sigma uniform in [0.4, 0.6], residual D - x'."""
        low, high = self._sigmas
        half = model.noise_ratio(0.5)
        sigmas = half * (low + (high - low) * random_positions(max(1, self.steps), self.seed))
        levels = model.schedule.levels([model.schedule.position_of(float(sigma)) for sigma in sigmas])
        return model.parameterization.rows(levels, 1.0, "x0")

    def maximize(self, unit: Tensor, gradient: _Gradient) -> Tensor:
        """Likelier images in [0, 1], by Adam on each pixel (Kingma & Ba, arXiv 1412.6980).

        unit: float32 (n, c, h, w) in [0, 1]; gradient: see ``_Gradient``.
        """
        v = 2 * unit - 1
        first, second = torch.zeros_like(v), torch.zeros_like(v)
        for step in range(self.steps):
            g = gradient(step, (v + 1) / 2) / 2
            first = self._beta1 * first + (1 - self._beta1) * g
            second = self._beta2 * second + (1 - self._beta2) * g * g
            mean, variance = first / (1 - self._beta1 ** (step + 1)), second / (1 - self._beta2 ** (step + 1))
            # The smallest positive number in place of 0 changes no step and gives the root a finite slope.
            v = v - self._rate * mean / (variance.clamp(min=torch.finfo(v.dtype).tiny).sqrt() + self._eps)
        return ((v + 1) / 2).clamp(0, 1)


Maximization: TypeAlias = LikelihoodMaximization | ReleasedMaximization


def maximization_of(given: Maximization | str) -> Maximization:
    """The maximisation that a user names: "paper", "rdc", or an object with other parameters.

    Raises:
        InputError: `given` is something else.
    """
    if isinstance(given, (LikelihoodMaximization, ReleasedMaximization)):
        return given
    if given not in ("paper", "rdc"):
        raise InputError(f"likelihood maximization must be paper, rdc or one made by hand, got {shown(given)}")
    return LikelihoodMaximization() if given == "paper" else ReleasedMaximization()


def maximize_tensor(
    how: Maximization,
    denoiser: nn.Module,
    model: Model,
    unit: Tensor,
    streams: Tensor,
    *,
    differentiable: bool = False,
) -> Tensor:
    """Likelier images, on the network's device.

    Args:
        how: The maximisation.
        denoiser: The network.
        model: Its model, which has a null class.
        unit: Images, float32 (n, c, h, w) in [0, 1], on the network's device.
        streams: Noise stream of each image, int64 (n,).
        differentiable: Whether to keep the graph of all steps. It contains second derivatives of the network, and
            `unit` must require its gradient.

    Returns:
        float32 (n, c, h, w) in [0, 1].
    """
    rows = torch.from_numpy(how.rows(model)).to(unit.device)
    draws = Draws(rows, how.seed, PURPOSE_LIKELIHOOD)
    image = torch.arange(len(unit), dtype=torch.int32, device=unit.device)
    null = torch.full_like(image, null_class_of(model))

    def gradient(step: int, moved: Tensor) -> Tensor:
        leaf = moved if differentiable else moved.detach().requires_grad_()
        cells = torch.stack([image, null, torch.full_like(image, step)], dim=1)
        with torch.enable_grad():
            errors = cell_errors(denoiser, samples_of(model, leaf), streams, cells, draws)
            (slope,) = torch.autograd.grad(errors.sum(), leaf, create_graph=differentiable)
        return slope

    # torch's fused attention has no second derivative; the formula that it computes has one.
    attention = sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext()
    with torch.set_grad_enabled(differentiable), attention:
        return how.maximize(unit, gradient)


def maximize_likelihood(
    classifier: ModelAndNetwork,
    images: Any,
    *,
    method: Maximization | str = "paper",
    streams: Any = None,
    chunk: int | None = None,
    **reading: Unpack[ImageOptions],
) -> Float32:
    """Moves images to where the model without a class denoises them better; classify the result in their place.

    Args:
        classifier: A ``DiffusionClassifier`` on the torch backend whose model has a null class.
        images: Images of any kind, see :func:`fastdc.data.prepare`. Pixels belong in [0, 1]; floats outside are moved
            inside, as far as it takes.
        method: "paper", "rdc" (the released program), or a :class:`LikelihoodMaximization` or
            :class:`ReleasedMaximization` with other parameters.
        streams: Noise stream of each image, n whole numbers in [0, 2^56); default: the hash of its pixels.
        chunk: Number of images per step of the network; default: the network's batch. Numbers change only as far as
            the network's rounding depends on the batch.
        **reading: How images are read: window, layout, max_pixels, skip_bad and split, see :class:`fastdc.Options`.

    Returns:
        float32 (n, c, h, w) in [0, 1].

    Raises:
        InputError: Images or options cannot be used, or the model has no null class.
        BackendError: The classifier does not run on the torch backend.

    Source:
        Chen et al., arXiv 2305.15241, algorithm 1.

    Example:
        >>> from fastdc.robust import maximize_likelihood
        >>> on_torch = fastdc.load("digits-mlp", backend="torch")
        >>> moved = maximize_likelihood(on_torch, images[:2]) - images[:2] / np.float32(255)
        >>> bool(0.02 < abs(moved).max() < 8 / 255 + 1e-6)
        True
    """
    model = classifier.model
    model.check_plain("likelihood maximization")
    how, denoiser = maximization_of(method), denoiser_of(classifier)
    null_class_of(model)
    size = checks.whole_or("chunk", chunk, classifier.network.batch)
    given = Images.of(images, model, streams, bounded=False, **reading)
    device, _ = place_of(denoiser, classifier.network.device)
    parts = [
        maximize_tensor(how, denoiser, model, unit.to(device), noise.to(device)).cpu()
        for unit, noise in zip(
            torch.split(torch.from_numpy(given.unit), size),
            torch.split(torch.from_numpy(given.streams), size),
            strict=True,
        )
    ]
    result: Float32 = torch.cat(parts).numpy()
    return result


def null_class_of(model: Model) -> int:
    """The label with which the network leaves out the class.

    Raises:
        InputError: The model has no null class.
    """
    if model.null_class is None:
        raise InputError(
            f"likelihood maximization needs a network that can leave out the class: {model.name!r} has no null class"
        )
    return model.null_class
