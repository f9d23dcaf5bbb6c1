"""The kernels on torch tensors: the bits are those of NumPy arrays in any layout."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.diffusion import kernels
from helpers.oracle import DTYPES, make_case

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

CASE = make_case(60, "shuffled", target=True)
SEED: dict[str, Any] = {"seed": CASE.seed, "purpose": CASE.purpose}


def tensor(array: Any) -> "torch.Tensor":
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def bits(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return bytes(value.contiguous().view(torch.uint8).numpy().tobytes())


TENSORS = tensor(CASE.images), tensor(CASE.cells), tensor(CASE.rows), tensor(CASE.streams)


def test_philox_normal() -> None:
    streams, draws = torch.arange(5), torch.arange(5, dtype=torch.int32)
    made = kernels.philox_normal(streams, draws, 70, seed=1)
    assert isinstance(made, torch.Tensor)
    assert bits(made) == bits(kernels.philox_normal(streams.numpy(), draws.numpy(), 70, seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_noise(dtype: str) -> None:
    made = kernels.add_noise(*TENSORS, **SEED, dtype=dtype)
    assert made.dtype == getattr(torch, dtype)
    assert bits(made) == bits(CASE.add_noise(dtype=dtype))
    timestep, labels = torch.empty(45), torch.empty(45, dtype=torch.int64)
    out = torch.empty_like(made)
    assert kernels.add_noise(*TENSORS, **SEED, out=out, timestep=timestep, labels=labels) is out
    assert bits(out) == bits(made)
    assert labels.tolist() == CASE.cells[:, 1].tolist()
    assert timestep.tolist() == CASE.rows[CASE.cells[:, 2], 7].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_and_maps(dtype: str) -> None:
    case = make_case(60, "shuffled", dtype, target=True)
    assert case.target is not None
    output, target = tensor(case.output), tensor(case.target)
    errors = kernels.denoising_error(output, *TENSORS, **SEED, target=target)
    assert isinstance(errors, torch.Tensor)
    assert bits(errors) == bits(case.denoising_error())
    maps = torch.zeros(3, 5, 60)
    assert kernels.error_map(output, *TENSORS, maps, **SEED, target=target) is maps
    assert bits(maps) == bits(case.error_map(np.zeros((3, 5, 60), np.float32)))


def test_layouts_and_gradients() -> None:
    images, cells, rows, streams = TENSORS
    transposed = images.T.contiguous().T.requires_grad_()
    strided = cells.repeat_interleave(2, dim=0)[::2]
    assert not transposed.is_contiguous()
    assert not strided.is_contiguous()
    made = kernels.add_noise(transposed, strided, rows, streams, **SEED)
    assert not made.requires_grad
    assert bits(made) == bits(CASE.add_noise())


def test_views_see_tensors() -> None:
    images = TENSORS[0].clone()
    view = kernels.view(images)
    images += 1
    expected = kernels.add_noise(images, *TENSORS[1:], **SEED)
    out = torch.empty(45, 60)
    kernels.add_noise(view, *map(kernels.view, TENSORS[1:]), **SEED, out=kernels.view(out))
    assert bits(out) == bits(expected)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(60, 45).T, "^out: array of shape .* is not contiguous"),
        (torch.empty(45, 60, requires_grad=True), "^out: "),
        (torch.empty(45, 60, dtype=torch.float64), "^out: unsupported element type"),
        (torch.empty(45, 60, device="meta"), "^out: "),
        (torch.zeros(45, 60).to_sparse(), "^out: "),
    ],
)
def test_bad_outputs_are_refused(out: "torch.Tensor", message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        kernels.add_noise(*TENSORS, **SEED, out=out)
    assert "\n" not in str(caught.value)


def test_bad_inputs_are_refused() -> None:
    for images in (TENSORS[0].to_sparse(), TENSORS[0].to("meta"), TENSORS[0].to(torch.complex64)):
        with pytest.raises(InputError, match=r"^images: "):
            kernels.add_noise(images, *TENSORS[1:], **SEED, out=torch.empty(45, 60))


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="needs a CPU with a flush-to-zero mode")
def test_a_flush_to_zero_mode_changes_no_bits() -> None:
    """torch sets the mode of the calling thread. Float32 must keep the subnormals of half precision."""
    case = make_case(60, "shuffled", "float16")
    case.output[:] = np.arange(case.output.size, dtype=np.uint16).view(np.float16).reshape(case.output.shape)
    expected = case.add_noise(dtype="float16"), case.denoising_error(), case.denoising_error(loss="l1")
    torch.set_flush_denormal(True)
    try:
        flushed = case.add_noise(dtype="float16"), case.denoising_error(), case.denoising_error(loss="l1")
    finally:
        torch.set_flush_denormal(False)
    for actual, wanted in zip(flushed, expected, strict=True):
        assert bits(actual) == bits(wanted)
