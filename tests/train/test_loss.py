"""The training loss is the published one of each kind of network, at stratified noise levels."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from fastdc.diffusion import DiscreteSchedule, EDMSchedule, FlowSchedule, Parameterization, VPSchedule
from fastdc.train.loss import Objective, Terms, denoising_loss, draw_sigmas, edm_terms


class Half(torch.nn.Module):
    """A network that is not zero, and shows its time input and its classes."""

    def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
        return 0.5 * sample + (timestep / 100 + class_labels)[:, None, None, None]


def batch(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Images (count, 1, 3, 3), noise, and classes."""
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(count, 1, 3, 3, generator=generator, dtype=dtype) for _ in range(2))
    return x0, eps, torch.arange(count) % 3


def test_sigmas_are_stratified_and_have_the_requested_distribution() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logs = torch.stack([draw_sigmas(64, -0.6, 1.2, "cpu").log() for _ in range(200)]).double()
    assert abs(float(logs.mean()) + 0.6) < 0.01
    assert abs(float(logs.std()) - 1.2) < 0.02
    # One draw in each of 64 equally likely cells, always.
    cells = (64 * torch.special.ndtr((logs + 0.6) / 1.2)).floor()
    assert torch.equal(cells.sort(dim=1).values, torch.arange(64.0, dtype=torch.float64).expand(200, 64))


def test_edms_loss_is_the_weighted_denoising_error() -> None:
    """loss = lambda * |D - x0|^2 with lambda = (s^2 + d^2) / (s d)^2, in float64."""
    x0, eps, labels = batch(6, torch.float64)
    sigma, d = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 50.0], dtype=torch.float64), 0.75
    got = denoising_loss(Half(), x0, labels, eps, edm_terms(sigma, d, 25.0))
    s = sigma[:, None, None, None]
    x = x0 + s * eps
    raw = 0.5 * x / (s**2 + d**2).sqrt() + 25.0 * s.log() / 100 + labels[:, None, None, None]
    denoised = d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * raw
    want = (s**2 + d**2) / (s * d) ** 2 * (denoised - x0) ** 2
    torch.testing.assert_close(got, want.mean(dim=(1, 2, 3)), rtol=1e-8, atol=1e-8)


def test_edms_loss_keeps_the_bits_of_the_shipped_models() -> None:
    """The order of operations with which the shipped models were trained, in float32."""
    x0, eps, labels = batch(64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sigma = draw_sigmas(64, -0.6, 1.2, "cpu")
    d = 0.7215
    s = sigma[:, None, None, None]
    c_in = (s.square() + d**2).rsqrt()
    raw = Half()(c_in * (x0 + s * eps), 100.0 * sigma.log(), labels)
    want = (raw - c_in * (s / d * x0 - d * eps)).square().mean(dim=(1, 2, 3))
    assert torch.equal(denoising_loss(Half(), x0, labels, eps, edm_terms(sigma, d, 100.0)), want)


def test_edms_terms_are_those_of_its_parameterisation() -> None:
    schedule = EDMSchedule(timestep_scale=0.25, timestep_offset=0.5)
    objective = Objective(schedule, Parameterization("edm", 0.6), -1.2, 1.2)
    positions = np.linspace(0, 1, 9)
    x0, eps, labels = batch(9)
    levels = schedule.levels(positions)
    short = edm_terms(torch.from_numpy(levels.sigma).float(), 0.6, 0.25, 0.5)
    losses = [denoising_loss(Half(), x0, labels, eps, terms) for terms in (short, objective.terms(positions, "cpu"))]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(short.timestep, objective.terms(positions, "cpu").timestep)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_losses_over_steps_are_those_of_diffusers(kind: str, betas: str) -> None:
    """F against the noise, the velocity or the image, at x_t from DDPMScheduler.add_noise."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule=betas, prediction_type=kind)
    steps = torch.tensor([0, 1, 17, 250, 500, 998])
    x0, eps, labels = batch(len(steps))
    raw = Half()(scheduler.add_noise(x0, eps, steps), steps.float(), labels)
    target = {"epsilon": eps, "v_prediction": scheduler.get_velocity(x0, eps, steps), "sample": x0}[kind]
    want = (raw - target).square().mean(dim=(1, 2, 3))
    objective = Objective(DiscreteSchedule(betas), Parameterization(kind))
    terms = objective.terms((steps.numpy() + 0.5) / 1000, "cpu")
    assert torch.equal(terms.timestep, steps.float())
    torch.testing.assert_close(denoising_loss(Half(), x0, labels, eps, terms), want, rtol=2e-5, atol=1e-5)


def test_a_flows_loss_is_that_of_its_velocity() -> None:
    """F against e - x0 at x_t = (1 - t) x0 + t e, the time input 1000 t, and t shifted as diffusers does."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
    x0, eps, labels = batch(5)
    chosen = torch.tensor([10, 300, 500, 800, 990])
    steps, t = scheduler.timesteps[chosen], scheduler.sigmas[chosen]
    raw = Half()(scheduler.scale_noise(x0, steps, eps), steps, labels)
    want = (raw - (eps - x0)).square().mean(dim=(1, 2, 3))
    terms = Objective(FlowSchedule(3.0), Parameterization("flow")).terms((t / (3.0 - 2.0 * t)).double().numpy(), "cpu")
    torch.testing.assert_close(terms.timestep, steps, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(denoising_loss(Half(), x0, labels, eps, terms), want, rtol=1e-3, atol=1e-3)


def test_a_scores_loss_is_the_error_of_minus_the_noise() -> None:
    x0, eps, labels = batch(4)
    terms = Objective(EDMSchedule(0.02, 100.0, 1.0), Parameterization("score")).terms(np.linspace(0, 1, 4), "cpu")
    x_t = x0 + terms.sigma[:, None, None, None] * eps
    want = (Half()(x_t, terms.sigma.log(), labels) + eps).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(denoising_loss(Half(), x0, labels, eps, terms), want, rtol=1e-4, atol=1e-4)


def _drawn(objective: Objective, count: int) -> Terms:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return objective.draw(count, torch.device("cpu"))


def test_steps_are_drawn_alike_and_each_stratum_once() -> None:
    terms = _drawn(Objective(DiscreteSchedule(), Parameterization("epsilon")), 1000)
    assert torch.equal(terms.timestep, torch.arange(1000.0))
    time = _drawn(Objective(VPSchedule(), Parameterization("epsilon")), 500).timestep
    assert float((time / 999 - (torch.arange(500) + 0.5) / 500).abs().max()) < 0.5 / 500 + 2e-5


def test_a_flow_is_drawn_logit_normal_before_its_shift() -> None:
    t = _drawn(Objective(FlowSchedule(3.0), Parameterization("flow")), 4000).sigma.double()
    logit = (t / (1 - t)).log() - np.log(3.0)
    assert abs(float(logit.mean())) < 0.01
    assert abs(float(logit.std()) - 1) < 0.02


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [(DiscreteSchedule(), "epsilon"), (FlowSchedule(3.0), "flow"), (VPSchedule(), "epsilon"), (EDMSchedule(), "edm")],
)
def test_p_mean_and_p_std_are_of_the_noise_to_signal_ratio(schedule: Any, kind: str) -> None:
    parameterization = Parameterization(kind, 0.5 if kind == "edm" else None)
    terms = _drawn(Objective(schedule, parameterization, -0.5, 0.8), 500)
    logs = (terms.sigma.double() / terms.alpha.double()).log()
    assert abs(float(logs.mean()) + 0.5) < 0.02
    assert abs(float(logs.std()) - 0.8) < 0.02
