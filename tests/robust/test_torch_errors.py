"""Errors of cells in torch: values against the float64 oracle, two derivatives against central differences.

Derivatives are compared in random directions. A directional derivative is a sum of terms with some thirty float32
roundings each, 30 * 2^-24 < 2e-6: TOLERANCE, in units of the sum of the terms' magnitudes. In float64 the differences
are exact to 1e-9 for the first derivative (steps of 1e-6) and to 1e-7 for the second (steps of 1e-4).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastdc import BackendError
from fastdc.diffusion.kernels import LOSSES
from fastdc.support import Float64
from fastdc.testing import reference
from helpers import oracle
from helpers.oracle import DTYPES, Case, make_case
from helpers.worlds import SHAPE, fails_with

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.robust.torch_errors import Draws, cell_errors
from helpers.torch_worlds import tiny_mlp

DELTA = 0.7
TOLERANCE = 2e-6


class Given(torch.nn.Module):
    """A network that records its inputs and returns outputs made before."""

    def __init__(self, output: "torch.Tensor") -> None:
        super().__init__()
        self.output = torch.nn.Parameter(output, requires_grad=False)
        self.inputs: list[torch.Tensor] = []

    def forward(self, *inputs: "torch.Tensor") -> "torch.Tensor":
        self.inputs = list(inputs)
        return self.output


def draws_of(case: Case, loss: str = "l2") -> Draws:
    rows = torch.from_numpy(case.rows)
    return Draws(rows, case.seed, case.purpose, antithetic=case.antithetic, loss=loss, delta=DELTA)


def tables(case: Case) -> tuple["torch.Tensor", "torch.Tensor"]:
    return torch.from_numpy(case.streams), torch.from_numpy(case.cells)


def output_of(case: Case) -> "torch.Tensor":
    if case.output.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(case.output.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(case.output)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_the_oracles(dtype: str, antithetic: bool) -> None:
    case = make_case(12, "shuffled", dtype, antithetic=antithetic)
    network = Given(output_of(case))
    for loss in LOSSES:
        errors = cell_errors(network, torch.from_numpy(case.images), *tables(case), draws_of(case, loss))
        want, slack = oracle.errors(case, loss, DELTA)
        assert np.all(np.abs(errors.numpy() - want) <= slack)
    sample, timestep, labels = network.inputs
    want, slack = oracle.noisy(case)
    assert sample.dtype == getattr(torch, dtype)
    half = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert np.all(np.abs(sample.double().numpy() - want) <= 1.01 * slack + half * np.abs(want))
    np.testing.assert_array_equal(timestep, case.rows[case.cells[:, 2], 7])
    np.testing.assert_array_equal(labels, case.cells[:, 1])


# --- derivatives -----------------------------------------------------------------------------------------------------


def problem(loss: str, *, antithetic: bool) -> tuple[Case, "torch.Tensor", Callable[[Float64], float]]:
    """A case of images (n, c, h, w), weights of its cells, and the weighted sum of its errors in float64."""
    case = make_case(16, "shuffled", antithetic=antithetic)
    case = replace(case, cells=case.cells[case.cells[:, 1] < 4][:24])  # the classes of tiny_mlp
    network = tiny_mlp().double().eval()
    weights = torch.linspace(-1, 2, len(case.cells))

    def total(images: Float64) -> float:
        result = 0.0
        for cell, weight in zip(case.cells, weights.tolist(), strict=True):
            row, pixels, e = case.rows[cell[2]].astype(np.float64), images[cell[0]].ravel(), oracle.noise_of(case, cell)
            u = torch.from_numpy(reference.noisy_image(pixels, row, e)).reshape(1, *SHAPE)
            output = network(u, torch.tensor(row[7:]), torch.tensor(cell[1:2])).detach().numpy().ravel()
            r = reference.residual(output, pixels, row, e)
            result += weight * row[6] * reference.rho(r, loss, DELTA).mean()
        return result

    return case, weights, total


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_are_those_of_central_differences(loss: str, antithetic: bool) -> None:
    case, weights, total = problem(loss, antithetic=antithetic)
    images = case.images.reshape(-1, *SHAPE)
    x = torch.from_numpy(images).requires_grad_()
    errors = cell_errors(tiny_mlp().eval(), x, *tables(case), draws_of(case, loss))
    np.testing.assert_allclose((weights * errors).sum().item(), total(images.astype(np.float64)), rtol=1e-5)
    (first,) = torch.autograd.grad((weights * errors).sum(), x, create_graph=True)
    for seed in range(3):
        v, w = np.random.default_rng(seed).standard_normal((2, *images.shape))
        slopes = first.detach().double().numpy() * v
        h = 1e-6
        want = (total(images + h * v) - total(images - h * v)) / (2 * h)
        assert abs(slopes.sum() - want) < TOLERANCE * abs(slopes).sum()
        (second,) = torch.autograd.grad((first * torch.from_numpy(v)).sum(), x, retain_graph=True)
        curvatures = second.double().numpy() * w
        h = 1e-4
        ends = [total(images + h * (v + w)), total(images - h * (v + w))]
        sides = [total(images + h * (v - w)), total(images - h * (v - w))]
        want = (sum(ends) - sum(sides)) / (4 * h * h)
        assert abs(curvatures.sum() - want) < TOLERANCE * abs(curvatures).sum()


def test_outputs_of_half_precision_get_gradients_of_their_type() -> None:
    """The derivative of the error with respect to F is a rounded version of the one in float32."""
    gradients = {}
    for dtype in ("float32", "bfloat16"):
        case = make_case(12, "shuffled", dtype)
        network = Given(output_of(case)).requires_grad_()
        errors = cell_errors(network, torch.from_numpy(case.images), *tables(case), draws_of(case))
        errors.sum().backward()  # type: ignore[no-untyped-call]
        assert network.output.grad is not None
        assert network.output.grad.dtype == network.output.dtype
        gradients[dtype] = network.output.grad.float()
    # F differs by 2^-9 of itself, and the gradient 2 weight / D a r is rounded to 2^-9 of itself.
    scale = float(gradients["float32"].abs().max())
    torch.testing.assert_close(gradients["bfloat16"], gradients["float32"], rtol=2**-8, atol=2**-7 * scale)


def test_a_network_must_keep_the_shape() -> None:
    class Cropping(torch.nn.Module):
        def forward(self, sample: Any, _: Any, __: Any) -> Any:
            return sample[:, :, 1:]

    case = make_case(16, "class runs")
    images = torch.from_numpy(case.images).view(-1, *SHAPE)
    fails_with(
        lambda: cell_errors(Cropping(), images, *tables(case), draws_of(case)), "(45, 1, 3, 4)", kind=BackendError
    )
