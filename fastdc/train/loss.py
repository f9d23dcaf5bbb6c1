"""The training loss of a class-conditional denoiser of any parameterisation: the network against what it should say.

    u = scale (alpha x0 + sigma e),        loss = mean over pixels of (F(u, timestep, k) - outer (x x0 + e e))^2

This is the architecture's one computation, r = a F + b x0 + c e, with the weight 1 / a^2: the error of the raw output.
It is the loss that each kind of network was published with: the error in e for "epsilon" (Ho et al., arXiv:2006.11239,
eq. 14), in v for "v_prediction" (Salimans & Ho, arXiv:2202.00512), in e - x0 for "flow" (Lipman et al.,
arXiv:2210.02747), and lambda |D - x0|^2 with lambda = 1 / c_out^2 for "edm" (Karras et al., arXiv:2206.00364, section 5
and table 1). With s = sigma and d = sigma_data, EDM's target (x0 - c_skip x_t) / c_out is (s x0 / d - d e) /
sqrt(s^2 + d^2). The code computes this form, which has no cancellation at small sigma and no division by a small c_out.

Over levels, the loss may be weighted: "min_snr" is min(SNR, 5) times the squared error in x0 (Hang et al., arXiv
2303.09556, eq. 9); "medical" is that in e over 1 + min(SNR, 5), which the released code of Favero et al. (arXiv
2502.03687) has for v-prediction. Both agree at low SNR; at high SNR the first falls and the second stays at 1/6.

Noise levels are stratified over the batch: one uniform number from each of b equal cells, so that a small batch covers
the levels evenly. Their distribution is the one that such networks are trained with: ln sigma ~ N(p_mean, p_std^2) for
"edm", logit u ~ N(0, 1) at the position u of a flow (Esser et al., arXiv:2403.03206, section 3.1), and uniform u for
others, which are uniform steps of a DDPM. With p_mean and p_std, ln(sigma / alpha) ~ N(p_mean, p_std^2) for all.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastdc.diffusion import MIN_SNR_GAMMA, AbstractSchedule, EDMSchedule, FlowSchedule, Levels, Parameterization
from fastdc.support import Float64


class Terms(NamedTuple):
    """The numbers of a batch's losses, each float (b,).

    Attributes:
        alpha: Factor of the image in x_t.
        sigma: Standard deviation of the noise in x_t.
        scale: Factor of the network's input, scale x_t.
        outer: Factor of the network's target, outer (x x0 + e eps).
        x: Coefficient of the image in the target.
        e: Coefficient of the noise in the target.
        timestep: Time input of the network.
        weight: Factor of the loss.
    """

    alpha: Tensor
    sigma: Tensor
    scale: Tensor
    outer: Tensor
    x: Tensor
    e: Tensor
    timestep: Tensor
    weight: Tensor


def denoising_loss(network: nn.Module, x0: Tensor, labels: Tensor, eps: Tensor, terms: Terms) -> Tensor:
    """The loss of each image, shape (b,): a mean over pixels.

    Args:
        network: The raw denoiser F.
        x0: Images or latents in the network's units, float (b, c, h, w).
        labels: Conditions, or the null class, int64 (b,).
        eps: Standard normal noise, as x0.
        terms: The coefficients.
    """
    alpha, sigma, scale, outer, x, e = (term[:, None, None, None] for term in terms[:6])
    raw: Tensor = network(scale * (alpha * x0 + sigma * eps), terms.timestep, labels)
    return (raw - outer * (x * x0 + e * eps)).square().mean(dim=(1, 2, 3)) * terms.weight


def edm_terms(sigma: Tensor, sigma_data: float, timestep_scale: float, timestep_offset: float = 0.0) -> Terms:
    """The terms of an EDM network at noise levels sigma, float (b,); its loss is about 1 if F outputs zero."""
    c_in = (sigma.square() + sigma_data**2).rsqrt()
    timestep = timestep_scale * sigma.log()
    if timestep_offset:
        timestep = timestep + timestep_offset
    one = torch.ones_like(sigma)
    return Terms(one, sigma, c_in, c_in, sigma / sigma_data, -sigma_data * one, timestep, one)


def draw_sigmas(batch: int, p_mean: float, p_std: float, device: torch.device | str) -> Tensor:
    """Stratified noise levels, float32 (batch,), from torch's global generator.

    Args:
        batch: Number of levels.
        p_mean: Mean of ln sigma.
        p_std: Standard deviation of ln sigma.
        device: Device of the levels.
    """
    return torch.exp(p_mean + p_std * _normal(_uniform(batch, device))).float()


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a run: which noise levels are drawn, and what the network is compared with.

    Attributes:
        schedule: Noise levels of the model.
        parameterization: What the network predicts.
        p_mean: Mean of ln(sigma / alpha); None: the distribution of such networks. Needed for "edm".
        p_std: Standard deviation of ln(sigma / alpha), None with p_mean.
        weighting: "none", "min_snr" or "medical"; not for "edm".
    """

    schedule: AbstractSchedule
    parameterization: Parameterization
    p_mean: float | None = None
    p_std: float | None = None
    weighting: str = "none"

    def losses(self, network: nn.Module, x0: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image at noise from torch's global generator, shape (b,).

        Args:
            network: The raw denoiser F.
            x0: Images in [-1, 1] or latents, float32 (b, c, h, w).
            labels: Conditions, or the null class, int64 (b,).
        """
        terms, eps = self.noise(x0)
        return denoising_loss(network, x0, labels, eps, terms)

    def noise(self, x0: Tensor) -> tuple[Terms, Tensor]:
        """The terms of a batch at random levels, and its noise, from torch's global generator."""
        return self.draw(len(x0), x0.device), torch.randn_like(x0)

    def draw(self, batch: int, device: torch.device) -> Terms:
        """The terms of a batch at random levels, from torch's global generator."""
        if self.parameterization.kind == "edm":
            assert isinstance(self.schedule, EDMSchedule)  # the only one with alpha = 1
            assert self.parameterization.sigma_data is not None
            assert self.p_mean is not None
            assert self.p_std is not None
            sigma = draw_sigmas(batch, self.p_mean, self.p_std, device)
            scale, offset = self.schedule.timestep_scale, self.schedule.timestep_offset
            return edm_terms(sigma, self.parameterization.sigma_data, scale, offset)
        # Drawn on the CPU, because the levels are computed there; so no step waits for a GPU.
        return self.terms(self._positions(_uniform(batch, "cpu")), device)

    def terms(self, positions: Float64, device: torch.device | str) -> Terms:
        """The terms at positions on the schedule.

        Args:
            positions: Positions in [0, 1], float64 (b,).
            device: Device of the terms.
        """
        levels = self.schedule.levels(positions)
        gx, ge, x, e = self.parameterization.target(levels)
        one = np.ones_like(gx)
        columns = np.stack([gx, ge, one, one, x, e, levels.timestep, self._weights(levels)]).astype(np.float32)
        return Terms(*torch.from_numpy(columns).to(device))

    def _weights(self, levels: Levels) -> Float64:
        """The weight of the squared error of the network's output at each level."""
        if self.weighting == "none":
            return np.ones_like(levels.sigma)
        _, in_x0, _ = self.parameterization.denoiser(levels)  # the error in x0 for one in F
        few = np.minimum(levels.snr, MIN_SNR_GAMMA)
        return in_x0**2 * (few if self.weighting == "min_snr" else levels.snr / (1 + few))

    def _positions(self, uniform: Tensor) -> Float64:
        """Positions of the levels, float64 (b,), for uniform numbers float64 (b,)."""
        if self.p_mean is not None and self.p_std is not None:
            ratios = torch.exp(self.p_mean + self.p_std * _normal(uniform)).tolist()
            return np.array([self.schedule.position_of(ratio) for ratio in ratios])
        if isinstance(self.schedule, FlowSchedule):
            uniform = torch.sigmoid(_normal(uniform))
        found: Float64 = uniform.numpy()
        return found


def _uniform(batch: int, device: torch.device | str) -> Tensor:
    """One uniform number from each of `batch` equal cells of [0, 1), float64 (batch,)."""
    cell = torch.arange(batch, device=device, dtype=torch.float64)
    return (cell + torch.rand(batch, device=device, dtype=torch.float64)) / batch


def _normal(uniform: Tensor) -> Tensor:
    """The normal quantiles of uniform numbers."""
    # Clamped to the open interval, because a draw of exactly 0 would give sigma = 0.
    quantiles: Tensor = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    return quantiles
