"""The torch operators on a device: the values, gradients and compiled steps that they have on the CPU.

tests/test_torch_ops.py compares the CPU's with the kernels and with autograd; its cases are used here. Without a device
the same tests run on the CPU.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastdc.diffusion import kernels
from helpers.cuda_cases import error_tolerance
from helpers.cuda_sides import DEVICES, ON_DEVICE
from helpers.oracle import DTYPES

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from helpers.torch_cases import array_of, case_of, plain_errors, samples, settings, tables, tensor

SIZE = 12  # pixels of these cases


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    return str(request.param)


def moved(value: Any, device: str) -> Any:
    """A value, or the values of a tuple, on a device; tensors are leaves there that want the gradients they wanted."""
    if isinstance(value, tuple):
        return tuple(moved(one, device) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().to(device).requires_grad_(value.requires_grad)


def host(value: "torch.Tensor") -> Any:
    return array_of(value.detach().cpu())


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_values_are_those_of_ops_on_the_cpu(device: str, dtype: str, antithetic: bool) -> None:
    """Noise and maps to the bit, errors up to the order of their sums."""
    case = case_of(dtype, antithetic=antithetic)
    op = torch.ops.fastdc
    images, output, target, *rest = moved(
        (tensor(case.images), tensor(case.output), tensor(case.target), *tables(case)), device
    )
    u = op.add_noise(images, *rest, *settings(case), getattr(torch, dtype))
    assert (u.device.type, u.dtype) == (device, getattr(torch, dtype))
    np.testing.assert_array_equal(host(u), case.add_noise(dtype=dtype))
    for loss in kernels.LOSSES:
        errors = op.denoising_error(output, images, *rest, target, *settings(case), loss, 0.5)
        want = case.denoising_error(loss=loss, delta=0.5)
        np.testing.assert_allclose(host(errors), want, rtol=error_tolerance(SIZE))
    maps = torch.zeros(3, 5, SIZE, device=device)
    assert op.error_map(output, images, *rest, target, maps, *settings(case)) is None
    np.testing.assert_array_equal(host(maps), case.error_map(np.zeros((3, 5, SIZE), np.float32)))
    streams, draws = np.array([5, 2**40]), np.array([0, 7], np.int32)
    normals = op.philox_normal(*moved((tensor(streams), tensor(draws)), device), 70, -1, 2)
    np.testing.assert_array_equal(host(normals), kernels.philox_normal(streams, draws, 70, seed=2**64 - 1, purpose=2))


def test_an_operator_runs_in_the_order_of_torchs_current_stream(device: str) -> None:
    """The images come late on a stream that is not the default one; what ran elsewhere would see zeros."""
    case = case_of()
    late, *rest = moved((tensor(case.images), *tables(case)), device)
    stream = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
    torch.ops.fastdc.add_noise(late, *rest, *settings(case))  # the first launch of a kernel loads it, and may wait
    images = torch.zeros_like(late)
    if stream is not None:
        torch.cuda.synchronize()
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        if stream is not None:
            torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]  # cycles: some hundredths of a second
        images.copy_(late)
        u = torch.ops.fastdc.add_noise(images, *rest, *settings(case))
    if stream is not None:
        stream.synchronize()
    np.testing.assert_array_equal(host(u), case.add_noise(dtype="float32"))


# --- what torch asks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_DEVICE)], indirect=True)
@pytest.mark.parametrize("name", list(samples()))
def test_torchs_own_checks(device: str, name: str) -> None:
    """Those of tests/test_torch_ops.py, on a device only."""
    operator = getattr(torch.ops.fastdc, name.split(maxsplit=1)[0]).default
    torch.library.opcheck(operator, moved(samples()[name], device))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", kernels.LOSSES)
def test_the_gradient_of_errors_is_autograds_on_the_cpu(device: str, loss: str, dtype: str, antithetic: bool) -> None:
    case = case_of(dtype, antithetic=antithetic)
    upstream = torch.linspace(-1, 2, len(case.cells))
    for with_target in (True, False):
        found = []
        for place in (device, "formula"):
            given = [tensor(array).requires_grad_() for array in (case.output, case.images, case.target)]
            output, images, target = given if place == "formula" else moved(tuple(given), place)
            leaves = [output, images, *([target] if with_target else [])]
            if place == "formula":
                errors = plain_errors(case, output, images, target if with_target else None, loss)
            else:
                rest = moved(tables(case), place)
                errors = torch.ops.fastdc.denoising_error(
                    output, images, *rest, target if with_target else None, *settings(case), loss, 0.5
                )
            found.append(torch.autograd.grad((upstream.to(errors.device) * errors).sum(), leaves))
        for got, want in zip(*found, strict=True):
            assert (got.device.type, got.dtype) == (device, want.dtype)
            exact = dtype == "float32" or got.dtype == torch.float32
            np.testing.assert_allclose(got.float().cpu(), want.float(), rtol=1e-5 if exact else 2**-7, atol=1e-6)


def test_the_gradient_of_noised_images_is_their_scale(device: str) -> None:
    case = case_of()
    upstream = torch.linspace(-1, 2, len(case.cells) * SIZE).view(-1, SIZE)
    images, scale, *rest = moved((tensor(case.images).requires_grad_(), upstream, *tables(case)), device)
    (got,) = torch.autograd.grad((scale * torch.ops.fastdc.add_noise(images, *rest, *settings(case))).sum(), images)
    want = np.zeros_like(case.images, np.float64)
    np.add.at(want, case.cells[:, 0], case.rows[case.cells[:, 2], :1].astype(np.float64) * upstream.numpy())
    np.testing.assert_allclose(host(got), want, rtol=1e-5, atol=1e-5)


# --- torch.compile ---------------------------------------------------------------------------------------------------


# Code for the CPU is torch's own business, and takes long.
COMPILERS = [pytest.param("cuda", name, marks=ON_DEVICE) for name in ("aot_eager", "inductor")]


@pytest.mark.parametrize(("device", "backend"), [*COMPILERS, pytest.param("cpu", "aot_eager")], indirect=["device"])
def test_a_step_compiles_whole(device: str, backend: str) -> None:
    """Noise, a network, error and its gradient in one graph without a break, with the numbers of the CPU's."""
    if backend == "inductor":
        pytest.importorskip("triton", reason="torch makes code for a device with triton")
    case = case_of()
    torch.manual_seed(0)
    network = torch.nn.Linear(SIZE, SIZE)
    results = []
    for place, compiled in (("cpu", False), (device, False), (device, True)):
        here = torch.nn.Linear(SIZE, SIZE).to(place)
        here.load_state_dict(network.state_dict())
        rest = moved(tables(case), place)

        def step(images: Any, here: Any = here, rest: Any = rest) -> Any:
            u = torch.ops.fastdc.add_noise(images, *rest, *settings(case))
            return torch.ops.fastdc.denoising_error(here(u), images, *rest, None, *settings(case))

        images = moved(tensor(case.images).requires_grad_(), place)
        errors = (torch.compile(step, fullgraph=True, backend=backend) if compiled else step)(images)
        errors.sum().backward()
        results.append((host(errors), host(images.grad)))
    for got in results[1:]:
        for mine, want in zip(got, results[0], strict=True):
            np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-5)
