"""The error of cells in torch, where it can be differentiated with respect to the image.

The formula is that of the kernels (docs/architecture.md): for a cell (image x, class k, draw j) with noise e,

    u = gx x + ge e,    F = network(u, timestep, k),    r = a F + b x + c e,    error = weight * mean rho(r) over pixels

with the plan's rows and, from ``kernels.philox_normal``, the same noise. Value and gradient come from this one
function, so that no gradient can be of another function than the one evaluated.
"""

import copy
from typing import Any, Protocol

import numpy as np

from fastdc.backends import AbstractNetwork
from fastdc.bundle import Model
from fastdc.diffusion import PURPOSE_DIFFUSION, ROW_FIELDS, Plan, kernels
from fastdc.support import BackendError, InputError, require

require("torch", extra="train")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402


class ModelAndNetwork(Protocol):
    """What is needed of a ``DiffusionClassifier``."""

    @property
    def model(self) -> Model:
        """Shapes, classes, schedule, parameterisation, defaults."""

    @property
    def network(self) -> AbstractNetwork:
        """A ``TorchNetwork``."""


def denoiser_of(classifier: ModelAndNetwork) -> nn.Module:
    """The network as a module of its own, which shares the weights and keeps no gradient for them.

    A copy of the module's structure, not of its tensors: moving it to another device or type leaves the classifier's
    network alone, and with weights that need no gradient a graph keeps fewer activations.

    Raises:
        BackendError: The classifier does not run on the torch backend.
    """
    from fastdc.backends import TorchNetwork

    network = classifier.network
    if not isinstance(network, TorchNetwork):
        raise BackendError(f"gradients need backend torch: load the model with it, got backend {network.backend}")
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.module.parameters()}
    shared |= {id(buffer): buffer for buffer in network.module.buffers()}
    return copy.deepcopy(network.module, shared).eval()


def place_of(denoiser: nn.Module, fallback: str = "cpu") -> tuple[torch.device, torch.dtype]:
    """Where a network runs and the element type it takes: those of its first weight."""
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device(fallback), torch.float32


def rho(r: Tensor, loss: str, delta: float) -> Tensor:
    """The loss of each residual; see ``kernels.LOSSES``."""
    if loss == "l2":
        return r * r
    if loss == "l1":
        return r.abs()
    magnitude = r.abs()
    return torch.where(magnitude <= delta, 0.5 * r * r, delta * (magnitude - 0.5 * delta))


def cell_errors(
    denoiser: nn.Module, x: Tensor, rows: Tensor, noise: Tensor, labels: Tensor, *, loss: str, delta: float = 1.0
) -> Tensor:
    """The errors of m cells.

    Args:
        denoiser: forward(sample, timestep, class_labels) -> F.
        x: The cells' images, (m, c, h, w) in the model's value range.
        rows: The cells' coefficient rows, (m, 8).
        noise: e, (m, c, h, w).
        labels: int64 (m,).
        loss: One of ``kernels.LOSSES``.
        delta: Threshold of the Huber loss.

    Returns:
        (m,) of x's type.

    Raises:
        BackendError: The network returns another shape than it was given.
    """
    columns = dict(zip(ROW_FIELDS, rows.unbind(1), strict=True))
    gx, ge, a, b, c = (columns[name].view(-1, 1, 1, 1) for name in ("gx", "ge", "a", "b", "c"))
    _, dtype = place_of(denoiser)
    output = denoiser((gx * x + ge * noise).to(dtype), columns["timestep"], labels).to(x.dtype)
    if output.shape != x.shape:
        raise BackendError(f"the module returned shape {tuple(output.shape)}, expected {tuple(x.shape)}")
    r = a * output + (b * x + c * noise)
    return columns["weight"] * rho(r, loss, delta).flatten(1).mean(1)


def noise_of(
    streams: Tensor, draws: Tensor, shape: tuple[int, ...], *, seed: int, purpose: int = PURPOSE_DIFFUSION
) -> Tensor:
    """The noise e of (stream, draw) pairs, float32 (m, c, h, w). streams: int64 (m,); draws: integers (m,)."""
    size = int(np.prod(shape))
    made: Tensor = kernels.philox_normal(streams.contiguous(), draws.to(torch.int32), size, seed=seed, purpose=purpose)
    return made.view(-1, *shape)


def check_rows(plan: Plan) -> None:
    """Refuses plans whose error needs more than the image itself.

    Raises:
        InputError: The plan's method denoises the image first.
    """
    if plan.method.denoises:
        raise InputError(f"gradients are of methods dc and epndc: got method {plan.config.method}")


def positive_whole(name: str, value: Any, *, default: int) -> int:
    """A positive whole number given by a user, or the default for None.

    Raises:
        InputError: Something else.
    """
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} must be a positive whole number or None, got {value!r:.80}")
    return int(value)
