"""The operators in torch: what torch's own checks ask of an operator, gradients against autograd, and compiled code.

On the CPU. On a device the same operators call the kernels that tests/test_cuda.py is about.
"""

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastdc.diffusion import kernels
from helpers.oracle import DTYPES
from helpers.torch_cases import array_of, case_of, plain_errors, samples, settings, tables, tensor

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.diffusion import torch_kernels

torch_kernels.register()


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_values_are_those_of_ops(dtype: str, antithetic: bool) -> None:
    case = case_of(dtype, antithetic=antithetic)
    op = torch.ops.fastdc
    u = op.add_noise(tensor(case.images), *tables(case), *settings(case), getattr(torch, dtype))
    np.testing.assert_array_equal(array_of(u), case.add_noise(dtype=dtype))
    for loss in kernels.LOSSES:
        errors = op.denoising_error(
            tensor(case.output), tensor(case.images), *tables(case), tensor(case.target), *settings(case), loss, 0.5
        )
        np.testing.assert_array_equal(errors.numpy(), case.denoising_error(loss=loss, delta=0.5))
    maps = torch.zeros(3, 5, 12)
    none = op.error_map(
        tensor(case.output), tensor(case.images), *tables(case), tensor(case.target), maps, *settings(case)
    )
    assert none is None
    np.testing.assert_array_equal(maps.numpy(), case.error_map(np.zeros((3, 5, 12), np.float32)))
    streams, draws = torch.tensor([5, 2**40]), torch.tensor([0, 7], dtype=torch.int32)
    normals = op.philox_normal(streams, draws, 70, -1, 2)
    want = kernels.philox_normal(streams.numpy(), draws.numpy(), 70, seed=2**64 - 1, purpose=2)
    np.testing.assert_array_equal(normals.numpy(), want)


# --- what torch asks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(samples()))
def test_torchs_own_checks(name: str) -> None:
    """Schema, fake tensors, registration of the gradient, tracing with dynamic shapes."""
    operator = getattr(torch.ops.fastdc, name.split(maxsplit=1)[0]).default
    torch.library.opcheck(operator, samples()[name])


def test_registering_twice_changes_nothing() -> None:
    before = torch_kernels._library
    assert before is not None
    torch_kernels.register()
    assert importlib.reload(torch_kernels)._library is before
    torch_kernels.register()
    test_the_values_are_those_of_ops("float32", False)


def test_importing_registers_nothing() -> None:
    code = """
import torch, fastdc.diffusion.torch_kernels as t
assert not hasattr(torch.ops.fastdc, "add_noise")
t.register(); t.register()
assert hasattr(torch.ops.fastdc, "add_noise")
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", kernels.LOSSES)
def test_the_gradient_of_errors_is_autograds(loss: str, dtype: str, antithetic: bool) -> None:
    case = case_of(dtype, antithetic=antithetic)
    upstream = torch.linspace(-1, 2, len(case.cells))
    for with_target in (True, False):
        found = []
        for own in (True, False):
            output, images = tensor(case.output).requires_grad_(), tensor(case.images).requires_grad_()
            target = tensor(case.target).requires_grad_() if with_target else None
            if own:
                arguments = (output, images, *tables(case), target, *settings(case), loss, 0.5)
                errors = torch.ops.fastdc.denoising_error(*arguments)
            else:
                errors = plain_errors(case, output, images, target, loss)
            leaves = [output, images, *([target] if target is not None else [])]
            found.append(torch.autograd.grad((upstream * errors).sum(), leaves))
        for got, want in zip(*found, strict=True):
            assert got.dtype == want.dtype
            exact = dtype == "float32" or got.dtype == torch.float32
            np.testing.assert_allclose(got.float(), want.float(), rtol=1e-5 if exact else 2**-7, atol=1e-6)


def test_the_gradient_of_noised_images_is_their_scale() -> None:
    case = case_of()
    images = tensor(case.images).requires_grad_()
    upstream = torch.linspace(-1, 2, len(case.cells) * 12).view(-1, 12)
    (got,) = torch.autograd.grad(
        (upstream * torch.ops.fastdc.add_noise(images, *tables(case), *settings(case))).sum(), images
    )
    want = np.zeros_like(case.images, np.float64)
    np.add.at(want, case.cells[:, 0], case.rows[case.cells[:, 2], :1].astype(np.float64) * upstream.numpy())
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)


def test_only_what_is_needed_is_made() -> None:
    case = case_of()
    output = tensor(case.output).requires_grad_()
    errors = torch.ops.fastdc.denoising_error(output, tensor(case.images), *tables(case), None, 3)
    errors.sum().backward()
    assert output.grad is not None
    assert not torch.ops.fastdc.philox_normal(
        torch.tensor([1]), torch.tensor([0], dtype=torch.int32), 4, 3
    ).requires_grad


# --- torch.compile ---------------------------------------------------------------------------------------------------


def test_a_step_compiles_whole() -> None:
    """Noise, a network, error and its gradient in one graph without a break."""
    case = case_of()
    network = torch.nn.Linear(12, 12)
    rest = tables(case)

    def step(images: Any) -> Any:
        u = torch.ops.fastdc.add_noise(images, *rest, *settings(case))
        return torch.ops.fastdc.denoising_error(network(u), images, *rest, None, *settings(case))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        images = tensor(case.images).requires_grad_()
        errors = function(images)
        errors.sum().backward()
        results.append((errors.detach(), images.grad))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
