"""Cases of the kernels as torch tensors, and the errors that plain torch gives."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastdc.diffusion import kernels
from helpers.oracle import DTYPES, Case, make_case

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")
from fastdc.diffusion import torch_kernels
from fastdc.robust.torch_errors import rho

torch_kernels.register()


LAYOUT = "shuffled"


def case_of(dtype: str = "float32", **changes: Any) -> Case:
    return replace(make_case(12, LAYOUT, dtype, target=True), **changes)


def tensor(array: Any) -> "torch.Tensor":
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def tables(case: Case) -> tuple[Any, ...]:
    return tensor(case.cells), tensor(case.rows), tensor(case.streams)


def signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


def settings(case: Case) -> tuple[Any, ...]:
    return signed(case.seed), case.purpose, case.antithetic


def array_of(value: "torch.Tensor") -> Any:
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return value.numpy()


def samples() -> dict[str, tuple[Any, ...]]:
    """Arguments of every operator, with gradients where there are."""
    case = case_of()
    images, output = tensor(case.images).requires_grad_(), tensor(case.output).requires_grad_()
    target = tensor(case.target).requires_grad_()
    return {
        "philox_normal": (torch.tensor([5, 9]), torch.tensor([0, 7], dtype=torch.int32), 6, 3),
        "add_noise": (images, *tables(case), *settings(case)),
        "add_noise half": (images, *tables(case), *settings(case), torch.float16),
        "denoising_error": (output, images, *tables(case), target, *settings(case)),
        "denoising_error huber": (output, images, *tables(case), None, *settings(case), "huber", 0.3),
        "error_map": (tensor(case.output), tensor(case.images), *tables(case), None, torch.zeros(3, 5, 12), 3),
    }


def plain_errors(
    case: Case, output: "torch.Tensor", images: "torch.Tensor", target: "torch.Tensor | None", loss: str
) -> "torch.Tensor":
    """The formula in torch, for autograd to differentiate."""
    cells, rows, streams = tables(case)
    which, draws = cells[:, 0].long(), cells[:, 2]
    own = rows[draws.long()]
    _, _, a, b, c, d, weight, _ = (column[:, None] for column in own.unbind(1))
    noise = kernels.philox_normal(
        streams[which], draws // 2 if case.antithetic else draws, 12, seed=case.seed, purpose=case.purpose
    )
    r = a * output.float() + b * images[which] + c * noise
    if target is not None:
        r = r + d * target[which]
    errors: torch.Tensor = weight[:, 0] * rho(r, loss, 0.5).mean(1)
    return errors
