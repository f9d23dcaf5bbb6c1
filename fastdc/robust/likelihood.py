"""Likelihood maximisation: moves an image to where the unconditional model finds it likelier, before it is classified.

The Robust Diffusion Classifier (Chen et al., arXiv 2305.15241, algorithm 1) minimises the diffusion loss of the network
without a class over images x' near x. Each of N steps draws one noise level t and one noise e:

    g = grad of w_t mean (eps(x'_t, t) - e)^2 at x',    m <- mu m - g / |g|_1,    x' <- clip(x' + gamma m)

where clip keeps x' within eta of x in every pixel, and within [0, 1]. N = 5, eta = 8/255, gamma = 0.1 and mu = 1, on
pixels in [0, 1]. The weight w_t cancels in g / |g|_1, so there is none to choose.

|g|_1 is taken as the mean of |g| over pixels, as is usual for momentum attacks: as a sum, N steps could move a pixel of
a CIFAR-10 image by 0.0005 at most, a sixtieth of eta. ``norm="sum"`` is that reading.

The released program does something else, ``"rdc"``: five steps of Adam at rate 0.1 on pixels in [-1, 1], of the
loss mean (D(x' + sigma e, sigma) - x')^2 with its gradient through both places of x', sigma uniform in [0.4, 0.6], no
ball around x, and [0, 1] enforced once at the end.

The authors' noise is drawn anew from seed 1 for every image; here it is a function of (seed, stream, step) with a
purpose of its own, and the noise levels of (seed, step), so that batch and order change nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.diffusion import make_plan, random_positions
from fastdc.inference import PlanOptions, check_streams, plan_config, streams_of, to_model_range
from fastdc.robust.torch_errors import ModelAndNetwork, cell_errors, denoiser_of, noise_of, place_of, positive_whole
from fastdc.support import InputError, checks, require

require("torch", extra="train")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

PURPOSE_LIKELIHOOD = 16
"""Purpose of the noise, see ``kernels``: independent of the noise that classifies."""

NORMS = ("mean", "sum")
MAX_STEPS = 10_000

_Gradient: TypeAlias = Callable[[int, Tensor], Tensor]
"""Of the loss of step i, each image's by itself, with respect to images in [0, 1]."""


class AbstractMaximization(Protocol):
    """A way to maximise the likelihood. Final classes: :class:`LikelihoodMaximization`, :class:`ReleasedMaximization`.

    Attributes:
        steps: Network evaluations an image, each with its gradient.
        seed: Of the noise and the levels.
    """

    @property
    def steps(self) -> int:
        """See above."""

    @property
    def seed(self) -> int:
        """See above."""

    def rows(self, model: Model) -> npt.NDArray[np.float32]:
        """The coefficient row of each step, float32 (N, 8)."""

    def maximize(self, unit: Tensor, gradient: _Gradient) -> Tensor:
        """Likelier images in [0, 1]. unit: float32 (n, c, h, w) in [0, 1]."""


@dataclass(frozen=True)
class LikelihoodMaximization:
    """Likelihood maximisation as the paper states it, with its parameters.

    Attributes:
        steps: N, from 0.
        eta: Largest change of a pixel, in [0, 1]-pixel units, positive.
        gamma: Step, positive, in [0, 1]-pixel units for a gradient of norm 1.
        mu: Momentum, from 0.
        norm: |g|_1 as "mean" or "sum" over pixels.
        levels: Band of noise-to-signal ratios (low, high) that levels are drawn from, uniformly in the schedule's
            position, "all", or None: the model's default band. The paper draws from the whole schedule.
        seed: Of the noise and the levels, in [0, 2^64).
    """

    steps: int = 5
    eta: float = 8 / 255
    gamma: float = 0.1
    mu: float = 1.0
    norm: str = "mean"
    levels: tuple[float, float] | str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_whole(self.steps, self.seed)
        for name, number in (("eta", self.eta), ("gamma", self.gamma)):
            if not checks.is_number(number) or not 0 < number < float("inf"):
                raise InputError(f"{name} must be positive, got {number!r:.80}")
        if not checks.is_number(self.mu) or not 0 <= self.mu < float("inf"):
            raise InputError(f"mu must be a number from 0, got {self.mu!r:.80}")
        if self.norm not in NORMS:
            raise InputError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r:.80}")

    def rows(self, model: Model) -> npt.NDArray[np.float32]:
        """See :class:`AbstractMaximization`; levels are independent and uniform, the residual is eps(x_t, t) - e."""
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
        """See :class:`AbstractMaximization`."""
        low, high = (unit - self.eta).clamp(min=0), (unit + self.eta).clamp(max=1)
        moved, momentum = unit, torch.zeros_like(unit)
        for step in range(self.steps):
            g = gradient(step, moved)
            size = g.abs().flatten(1)
            norm = size.mean(1) if self.norm == "mean" else size.sum(1)
            # A loss without a slope (a flat network) moves nothing, where 0 / 0 would.
            momentum = self.mu * momentum - g / norm.clamp(min=torch.finfo(g.dtype).tiny).view(-1, 1, 1, 1)
            moved = torch.minimum(torch.maximum(moved + self.gamma * momentum, low), high)
        return moved


@dataclass(frozen=True)
class ReleasedMaximization:
    """Likelihood maximisation as the paper's released program does it: see the module's text.

    Attributes:
        steps: Steps of Adam, from 0.
        seed: Of the noise and the levels, in [0, 2^64).
    """

    steps: int = 5
    seed: int = 0

    # Of the released program, on pixels in [-1, 1]; torch's defaults for Adam.
    _sigmas = (0.4, 0.6)
    _rate = 0.1
    _beta1, _beta2, _eps = 0.9, 0.999, 1e-8

    def __post_init__(self) -> None:
        _check_whole(self.steps, self.seed)

    def rows(self, model: Model) -> npt.NDArray[np.float32]:
        """See :class:`AbstractMaximization`; sigma is uniform in [0.4, 0.6], the residual is D - x'."""
        low, high = self._sigmas
        half = (model.value_range[1] - model.value_range[0]) / 2
        sigmas = half * (low + (high - low) * random_positions(max(1, self.steps), self.seed))
        levels = model.schedule.levels([model.schedule.position_of(float(sigma)) for sigma in sigmas])
        return model.parameterization.rows(levels, 1.0, "x0")

    def maximize(self, unit: Tensor, gradient: _Gradient) -> Tensor:
        """See :class:`AbstractMaximization`. Adam (Kingma & Ba, arXiv 1412.6980) works pixel by pixel."""
        v = 2 * unit - 1
        first, second = torch.zeros_like(v), torch.zeros_like(v)
        for step in range(self.steps):
            g = gradient(step, (v + 1) / 2) / 2
            first = self._beta1 * first + (1 - self._beta1) * g
            second = self._beta2 * second + (1 - self._beta2) * g * g
            mean, variance = first / (1 - self._beta1 ** (step + 1)), second / (1 - self._beta2 ** (step + 1))
            # The smallest number in place of 0 changes no step, and gives the root a slope.
            v = v - self._rate * mean / (variance.clamp(min=torch.finfo(v.dtype).tiny).sqrt() + self._eps)
        return ((v + 1) / 2).clamp(0, 1)


def maximization_of(given: "AbstractMaximization | str") -> AbstractMaximization:
    """A way to maximise the likelihood: one made by hand, or "paper" or "rdc" with their own parameters.

    Raises:
        InputError: Neither.
    """
    if isinstance(given, (LikelihoodMaximization, ReleasedMaximization)):
        return given
    if given not in ("paper", "rdc"):
        raise InputError(f"likelihood maximization must be paper, rdc or one made by hand, got {given!r:.80}")
    return LikelihoodMaximization() if given == "paper" else ReleasedMaximization()


def maximize_tensor(
    how: AbstractMaximization,
    denoiser: nn.Module,
    model: Model,
    unit: Tensor,
    streams: Tensor,
    *,
    differentiable: bool = False,
) -> Tensor:
    """Likelier images.

    Args:
        how: The steps.
        denoiser: The network.
        model: Its model, with a null class.
        unit: float32 (n, c, h, w) in [0, 1], on the network's device.
        streams: int64 (n,).
        differentiable: Whether to keep the graph of all steps, second derivatives of the network included; `unit` then
            requires its gradient.

    Returns:
        float32 (n, c, h, w) in [0, 1].
    """
    low, high = model.value_range
    rows = torch.from_numpy(how.rows(model)).to(unit.device)
    labels = torch.full((len(unit),), null_class_of(model), dtype=torch.int64, device=unit.device)

    def gradient(step: int, moved: Tensor) -> Tensor:
        leaf = moved if differentiable else moved.detach().requires_grad_()
        draws = torch.full_like(streams, step)
        noise = noise_of(streams, draws, model.image_shape, seed=how.seed, purpose=PURPOSE_LIKELIHOOD)
        with torch.enable_grad():
            x = leaf * (high - low) + low
            errors = cell_errors(denoiser, x, rows[step].expand(len(x), -1), noise, labels, loss="l2")
            (slope,) = torch.autograd.grad(errors.sum(), leaf, create_graph=differentiable)
        return slope

    with torch.set_grad_enabled(differentiable):
        return how.maximize(unit, gradient)


def maximize_likelihood(
    classifier: ModelAndNetwork,
    images: Any,
    *,
    method: AbstractMaximization | str = "paper",
    streams: Any = None,
    chunk: int | None = None,
) -> npt.NDArray[np.float32]:
    """Moves images to where the model finds them likelier, to be classified instead of the originals.

    Args:
        classifier: A ``DiffusionClassifier`` on the torch backend whose model has a null class.
        images: (n, c, h, w), uint8 or float in [0, 1].
        method: "paper", "rdc" (the released program), or a :class:`LikelihoodMaximization` with other parameters.
        streams: Noise stream of each image, ints in [0, 2^56); default: from the image's pixels.
        chunk: Images at once; default: the network's batch. Changes no number but by the network's rounding.

    Returns:
        float32 (n, c, h, w) in [0, 1].

    Raises:
        InputError: Images or options cannot be used, or the model has no null class.
        BackendError: The classifier does not run on the torch backend.
    """
    model = classifier.model
    model.check_plain("likelihood maximization")
    how, denoiser = maximization_of(method), denoiser_of(classifier)
    null_class_of(model)
    size = positive_whole("chunk", chunk, default=classifier.network.batch)
    x = to_model_range(images, model)
    noise = torch.from_numpy(streams_of(x) if streams is None else check_streams(streams, len(x)))
    device, _ = place_of(denoiser, classifier.network.device)
    unit = torch.from_numpy(model.to_unit(x)).clamp(0, 1)  # the way to the model's range and back rounds
    parts = [
        maximize_tensor(how, denoiser, model, part.to(device), stream.to(device)).cpu()
        for part, stream in zip(torch.split(unit, size), torch.split(noise, size), strict=True)
    ]
    result: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return result


def null_class_of(model: Model) -> int:
    """The class that stands for none.

    Raises:
        InputError: The model has none.
    """
    if model.null_class is None:
        raise InputError(
            f"likelihood maximization needs a network that can leave out the class: {model.name!r} has no null class"
        )
    return model.null_class


def _check_whole(steps: Any, seed: Any) -> None:
    for name, value, most in (("steps", steps, MAX_STEPS), ("seed", seed, checks.MAX_SEED)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value <= most:
            raise InputError(f"{name} must be a whole number from 0 to {most}, got {value!r:.80}")
