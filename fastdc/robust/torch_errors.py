"""The errors of cells as torch tensors: the forward pass calls the kernels, the backward pass is their derivative.

For a cell (image x, class k, draw j) with noise e and D pixels (docs/architecture.md):

    u = gx x + ge e,    F = network(u, timestep, k),    r = a F + b x + c e,    error = weight / D * sum of rho(r)

``kernels.add_noise`` makes u and ``kernels.denoising_error`` the error, as they do for every classification. On the CPU
the errors are therefore equal to the engine's to the bit if the network's outputs are. The derivatives are

    du/dx = gx,    derror/dF = weight / D * a rho'(r),    derror/dx = weight / D * b rho'(r)

with rho'(r) = 2 r for "l2", sign(r) for "l1", and r clipped to [-delta, delta] for "huber". The backward pass makes the
noise e again, so no graph keeps it. It consists of torch operations, so it can be differentiated in turn.

An image shared by several cells gets the sum of their gradients, on CUDA in no fixed order (torch's ``index_add``).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdc.diffusion import PURPOSE_DIFFUSION, ROW_FIELDS, kernels
from fastdc.robust.denoiser import place_of
from fastdc.support import BackendError

_TIMESTEP = ROW_FIELDS.index("timestep")


@dataclass(frozen=True, eq=False)
class Draws:
    """The draws that cells refer to, and the loss of their errors.

    Attributes:
        rows: Coefficient rows, float32 (J, 8), on the network's device.
        seed: Seed of the noise, in [0, 2^64).
        purpose: Purpose of the noise, in [0, 256).
        antithetic: Whether draws 2i and 2i + 1 share a noise.
        loss: One of ``kernels.LOSSES``.
        delta: Threshold of the Huber loss.
    """

    rows: Tensor
    seed: int
    purpose: int = PURPOSE_DIFFUSION
    antithetic: bool = False
    loss: str = "l2"
    delta: float = 1.0

    @property
    def noise(self) -> dict[str, Any]:
        """The arguments of the kernels that name the noise."""
        return {"seed": self.seed, "purpose": self.purpose, "antithetic": self.antithetic}

    def columns(self, cells: Tensor, ndim: int) -> dict[str, Tensor]:
        """The coefficients of each cell by name, (B, 1, ..., 1) of `ndim` axes."""
        own = self.rows.index_select(0, cells[:, 2])
        return dict(zip(ROW_FIELDS, own.view(*own.shape, *(1,) * (ndim - 1)).unbind(1), strict=True))


def cell_errors(denoiser: nn.Module, x: Tensor, streams: Tensor, cells: Tensor, draws: Draws) -> Tensor:
    """The errors of cells, differentiable with respect to the images.

    Args:
        denoiser: forward(sample, timestep, class_labels) -> F.
        x: Images, float32 (n, c, h, w) in the model's value range, on the network's device.
        streams: Noise stream of each image, int64 (n,).
        cells: Cells (image, class, draw), int32 (B, 3). Cells in sequence that differ in the class alone share work.
        draws: The draws.

    Returns:
        float32 (B,).

    Raises:
        BackendError: The network returns another shape than it was given.
    """
    _, dtype = place_of(denoiser)
    sample: Tensor = _NoisyImages.apply(x, streams, cells, draws)  # type: ignore[no-untyped-call]
    timestep = draws.rows[:, _TIMESTEP].index_select(0, cells[:, 2])
    output = denoiser(sample.to(dtype), timestep, cells[:, 1].long())
    if output.shape != sample.shape:
        raise BackendError(f"the module returned shape {tuple(output.shape)}, expected {tuple(sample.shape)}")
    if output.dtype == torch.float64:  # the kernels read float32, float16 and bfloat16
        output = output.float()
    errors: Tensor = _Errors.apply(output, x, streams, cells, draws)  # type: ignore[no-untyped-call]
    return errors


class _NoisyImages(torch.autograd.Function):
    """The noisy image u of each cell, float32 (B, c, h, w)."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, streams: Tensor, cells: Tensor, draws: Draws) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.draws, ctx.images = draws, len(images)
        made: Tensor = kernels.add_noise(images, cells, draws.rows, streams, **draws.noise)
        return made

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (cells,) = ctx.saved_tensors
        gx = ctx.draws.columns(cells, slope.dim())["gx"]
        return _by_image(gx * slope, cells, ctx.images), None, None, None


class _Errors(torch.autograd.Function):
    """The error of each cell, float32 (B,), given the network's outputs."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, images: Tensor, streams: Tensor, cells: Tensor, draws: Draws) -> Tensor:
        ctx.save_for_backward(output, images, streams, cells)
        ctx.draws = draws
        made: Tensor = kernels.denoising_error(
            output, images, cells, draws.rows, streams, loss=draws.loss, delta=draws.delta, **draws.noise
        )
        return made

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        output, images, streams, cells = ctx.saved_tensors
        draws: Draws = ctx.draws
        size = images[0].numel()
        at = draws.columns(cells, images.dim())
        number = cells[:, 2] >> 1 if draws.antithetic else cells[:, 2]
        e = kernels.philox_normal(
            streams.index_select(0, cells[:, 0]), number.contiguous(), size, seed=draws.seed, purpose=draws.purpose
        ).view_as(output)
        r = at["a"] * output.float() + (at["b"] * images.index_select(0, cells[:, 0]) + at["c"] * e)
        factor = slope.view_as(at["weight"]) * at["weight"] / size
        pixel = factor * _derivative(r, draws.loss, draws.delta)
        of_images = _by_image(at["b"] * pixel, cells, len(images)) if ctx.needs_input_grad[1] else None
        return (at["a"] * pixel).to(output.dtype), of_images, None, None, None


def _derivative(r: Tensor, loss: str, delta: float) -> Tensor:
    """rho'(r) of each residual."""
    if loss == "l2":
        return 2 * r
    return r.sign() if loss == "l1" else r.clamp(-delta, delta)


def _by_image(values: Tensor, cells: Tensor, count: int) -> Tensor:
    """The sum over each image's cells, (count, ...) of (B, ...)."""
    return values.new_zeros(count, *values.shape[1:]).index_add(0, cells[:, 0], values)
