"""The EDM training loss of a class-conditional denoiser (Karras et al., arXiv:2206.00364, section 5 and table 1).

    D(x; sigma, k) = c_skip x + c_out F(c_in x, c_noise, k),        x = x0 + sigma eps
    loss = E lambda(sigma) ||D - x0||^2 = E ||F - (x0 - c_skip x) / c_out||^2,       lambda = 1 / c_out^2

With s = sigma and d = sigma_data, the target simplifies to (s x0 / d - d eps) / sqrt(s^2 + d^2). The code computes this
form, which has no cancellation at small sigma and no division by a small c_out. Noise levels are drawn from
ln sigma ~ N(p_mean, p_std^2), stratified over the batch: one uniform number from each of b equal cells, so that a small
batch covers the levels evenly. c_noise is ``timestep_scale * ln sigma``; EDM has ln(sigma) / 4.
"""

import dataclasses

import torch
from torch import Tensor, nn

from fastdc.train.config import TrainConfig


def draw_sigmas(batch: int, p_mean: float, p_std: float, device: torch.device | str) -> Tensor:
    """Stratified noise levels, float32 (batch,), from torch's global generator.

    Args:
        batch: Number of levels.
        p_mean: Mean of ln sigma.
        p_std: Standard deviation of ln sigma.
        device: Device of the levels.
    """
    cell = torch.arange(batch, device=device, dtype=torch.float64)
    uniform = (cell + torch.rand(batch, device=device, dtype=torch.float64)) / batch
    # Clamped to the open interval, because a draw of exactly 0 would give sigma = 0.
    normal = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    return torch.exp(p_mean + p_std * normal).float()


def edm_loss(
    network: nn.Module,
    x0: Tensor,
    labels: Tensor,
    sigma: Tensor,
    eps: Tensor,
    *,
    sigma_data: float,
    timestep_scale: float,
) -> Tensor:
    """The weighted loss of each image, shape (b,): a mean over pixels, about 1 for a network that outputs zero.

    Args:
        network: The raw denoiser F.
        x0: Images in [-1, 1], float32 (b, c, h, w).
        labels: Classes, or the null class, int64 (b,).
        sigma: Noise levels, float32 (b,).
        eps: Standard normal noise, float32 (b, c, h, w).
        sigma_data: Standard deviation of the data.
        timestep_scale: Factor of the time input, timestep_scale * ln sigma.
    """
    s = sigma[:, None, None, None]
    c_in = (s.square() + sigma_data**2).rsqrt()
    raw: Tensor = network(c_in * (x0 + s * eps), timestep_scale * sigma.log(), labels)
    target = c_in * (s / sigma_data * x0 - sigma_data * eps)
    return (raw - target).square().mean(dim=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a run: which noise levels are drawn, and what the network is compared with.

    Attributes:
        p_mean: Mean of ln sigma.
        p_std: Standard deviation of ln sigma.
        sigma_data: Standard deviation of the data.
        timestep_scale: Factor of the time input, timestep_scale * ln sigma.
    """

    p_mean: float
    p_std: float
    sigma_data: float
    timestep_scale: float

    @classmethod
    def of(cls, config: TrainConfig, sigma_data: float) -> "Objective":
        """The objective of a recipe."""
        assert config.p_mean is not None
        assert config.p_std is not None
        return cls(config.p_mean, config.p_std, sigma_data, config.timestep_scale)

    def losses(self, network: nn.Module, x0: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image at noise from torch's global generator, shape (b,).

        Args:
            network: The raw denoiser F.
            x0: Images in [-1, 1], float32 (b, c, h, w).
            labels: Classes, or the null class, int64 (b,).
        """
        sigma = draw_sigmas(len(x0), self.p_mean, self.p_std, x0.device)
        eps = torch.randn_like(x0)
        scale = self.timestep_scale
        return edm_loss(network, x0, labels, sigma, eps, sigma_data=self.sigma_data, timestep_scale=scale)
