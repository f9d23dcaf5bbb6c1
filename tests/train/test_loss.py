"""The training loss is EDM's weighted denoising error, at stratified noise levels."""

from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from fastdc.train.loss import draw_sigmas, edm_loss


def test_sigmas_are_stratified_and_have_the_requested_distribution() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logs = torch.stack([draw_sigmas(64, -0.6, 1.2, "cpu").log() for _ in range(200)]).double()
    assert abs(float(logs.mean()) + 0.6) < 0.01
    assert abs(float(logs.std()) - 1.2) < 0.02
    # One draw in each of 64 equally likely cells, always.
    cells = (64 * torch.special.ndtr((logs + 0.6) / 1.2)).floor()
    assert torch.equal(cells.sort(dim=1).values, torch.arange(64.0, dtype=torch.float64).expand(200, 64))


def test_the_loss_is_the_weighted_denoising_error() -> None:
    """loss = lambda * |D - x0|^2 with lambda = (s^2 + d^2) / (s d)^2, in float64, for a network that is not zero."""
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(6, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 50.0], dtype=torch.float64)
    labels, d = torch.zeros(6, dtype=torch.int64), 0.75

    class Half(torch.nn.Module):
        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            return 0.5 * sample + timestep[:, None, None, None] / 100

    got = edm_loss(Half(), x0, labels, sigma, eps, sigma_data=d, timestep_scale=25.0)
    s = sigma[:, None, None, None]
    x = x0 + s * eps
    raw = 0.5 * x / (s**2 + d**2).sqrt() + 25.0 * s.log() / 100
    denoised = d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * raw
    want = (s**2 + d**2) / (s * d) ** 2 * (denoised - x0) ** 2
    torch.testing.assert_close(got, want.mean(dim=(1, 2, 3)), rtol=1e-8, atol=1e-8)
