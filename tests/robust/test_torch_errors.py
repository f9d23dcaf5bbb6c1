"""Errors of cells in torch: against the float64 oracle, and their gradients against central differences."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastdc import BackendError, InputError
from fastdc.diffusion.kernels import LOSSES
from fastdc.diffusion.plan import PlanConfig, make_plan
from fastdc.testing import reference
from helpers.worlds import SHAPE, classifier, fails_with, gaussian

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.robust.torch_errors import cell_errors, check_rows, denoiser_of, noise_of, place_of, positive_whole
from helpers.torch_worlds import gaussian_on_torch, on_torch, tiny_mlp, tiny_model

CELLS = 6


def case(seed: int = 0) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """x, rows, noise and labels of cells, float64; weights positive, d z left out."""
    rng = np.random.default_rng(seed)
    x, noise = rng.uniform(-1, 1, (CELLS, *SHAPE)), rng.standard_normal((CELLS, *SHAPE))
    rows = rng.uniform(-1.5, 1.5, (CELLS, 8))
    rows[:, 6] = rng.uniform(0.1, 2, CELLS)
    labels = rng.integers(0, 4, CELLS)
    return torch.from_numpy(x), torch.from_numpy(rows), torch.from_numpy(noise), torch.from_numpy(labels)


@pytest.mark.parametrize("loss", LOSSES)
def test_errors_are_the_oracles(loss: str) -> None:
    network = tiny_mlp().double().eval()
    x, rows, noise, labels = case()
    got = cell_errors(network, x, rows, noise, labels, loss=loss, delta=0.7).detach().numpy()
    for i in range(CELLS):
        row, pixels, e = rows[i].numpy(), x[i].numpy().ravel(), noise[i].numpy().ravel()
        u = torch.from_numpy(reference.noisy_image(pixels, row, e)).reshape(1, *SHAPE)
        output = network(u, rows[i, 7:], labels[i : i + 1]).detach().numpy().ravel()
        want = row[6] * reference.rho(reference.residual(output, pixels, row, e), loss, 0.7).mean()
        np.testing.assert_allclose(got[i], want, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_central_differences(loss: str) -> None:
    network = tiny_mlp().double().eval().requires_grad_(False)
    x, rows, noise, labels = case(1)
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda images: cell_errors(network, images, rows, noise, labels, loss=loss, delta=0.7), (x,), eps=1e-6
    )


def test_noise_is_the_engines() -> None:
    streams, draws = torch.tensor([5, 5, 2**56 - 1]), torch.tensor([0, 7, 3])
    made = noise_of(streams, draws, SHAPE, seed=11, purpose=4)
    assert made.shape == (3, *SHAPE)
    for row, stream, draw in zip(made, streams.tolist(), draws.tolist(), strict=True):
        np.testing.assert_allclose(row.ravel(), reference.normal(11, stream, draw, 16, 4), rtol=1e-6, atol=1e-12)


def test_the_denoiser_shares_weights_and_leaves_the_network_alone() -> None:
    clf = on_torch(tiny_model(), tiny_mlp())
    module: Any = clf.network
    original, copied = module.module, denoiser_of(clf)
    pairs = list(zip(original.parameters(), copied.parameters(), strict=True))
    assert len(pairs) > 5
    for ours, theirs in pairs:
        assert ours.data_ptr() == theirs.data_ptr()
        assert ours.requires_grad
        assert not theirs.requires_grad
    assert not copied.training
    copied.double()
    assert place_of(copied)[1] == torch.float64
    assert place_of(original)[1] == torch.float32


def test_a_network_without_weights_has_the_place_it_is_told() -> None:
    assert place_of(torch.nn.Identity(), "cpu") == (torch.device("cpu"), torch.float32)


def test_other_backends_are_refused() -> None:
    fails_with(lambda: denoiser_of(classifier(gaussian())), "torch", "function", kind=BackendError)


def test_a_network_must_keep_the_shape() -> None:
    class Cropping(torch.nn.Module):
        def forward(self, sample: Any, _: Any, __: Any) -> Any:
            return sample[:, :, 1:]

    fails_with(lambda: cell_errors(Cropping(), *case(), loss="l2"), "(6, 1, 3, 4)", kind=BackendError)


def test_methods_that_denoise_first_are_refused() -> None:
    _, clf = gaussian_on_torch()
    plans = {
        method: make_plan(
            clf.model.schedule,
            clf.model.parameterization,
            PlanConfig(draws=2, levels=(0.5, 2.0), method=method, noise=0.25),
        )
        for method in ("epndc", "apndc", "apndc-x", "denoised")
    }
    check_rows(plans.pop("epndc"))
    for method, plan in plans.items():
        fails_with(lambda plan=plan: check_rows(plan), method, kind=InputError)  # type: ignore[misc]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_a_count_is_positive_and_whole(value: Any) -> None:
    fails_with(lambda: positive_whole("chunk", value, default=3), "chunk", repr(value), kind=InputError)
    assert positive_whole("chunk", None, default=3) == 3
    assert positive_whole("chunk", np.int64(7), default=3) == 7
