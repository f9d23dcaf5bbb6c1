"""The four kernels as torch operators, so that torch.compile sees through them and autograd where it can.

    torch.ops.fastdc.philox_normal(streams, draws, size, seed, purpose) -> Tensor
    torch.ops.fastdc.add_noise(images, cells, rows, streams, seed, purpose, antithetic, dtype) -> Tensor
    torch.ops.fastdc.denoising_error(network_output, images, cells, rows, streams, target, seed, purpose, antithetic,
                                     loss, delta) -> Tensor
    torch.ops.fastdc.error_map(network_output, images, cells, rows, streams, target, maps!, seed, purpose, antithetic,
                               loss, delta) -> ()

:func:`register` makes them, once a process; importing this module makes nothing. Shapes and ranges are those of
``kernels``. A seed or purpose is a signed integer in torch: seeds from 2^63 on are given minus 2^64.

The gradient of an error, err = w / D * sum rho(r) with r = a F + b x + c e + d z, is that of the same noise e, which
``philox_normal`` makes again:

    d err / d F = w / D * rho'(r) a,    d err / d x = w / D * rho'(r) b (what x adds through F is F's business),
    d err / d z = w / D * rho'(r) d

with rho' = 2 r, sign(r), or r cut at +-delta. The gradient of the noised image u = gx x + ge e is gx. Images that
several cells share get the sum over those cells, on CUDA in no fixed order (torch's ``index_add_``). Tables, noise and
weights have no gradient, and gradients have none.
"""

import threading
from typing import Any

from fastdc.diffusion import kernels
from fastdc.support import require

require("torch", extra="train")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

NAMESPACE = "fastdc"

_SCHEMAS = {
    "philox_normal": "(Tensor streams, Tensor draws, SymInt size, int seed, int purpose=0) -> Tensor",
    "add_noise": (
        "(Tensor images, Tensor cells, Tensor rows, Tensor streams, int seed, int purpose=0, bool antithetic=False, "
        "ScalarType dtype=float) -> Tensor"
    ),
    "denoising_error": (
        "(Tensor network_output, Tensor images, Tensor cells, Tensor rows, Tensor streams, Tensor? target, int seed, "
        'int purpose=0, bool antithetic=False, str loss="l2", float delta=1.0) -> Tensor'
    ),
    "error_map": (
        "(Tensor network_output, Tensor images, Tensor cells, Tensor rows, Tensor streams, Tensor? target, "
        'Tensor(a!) maps, int seed, int purpose=0, bool antithetic=False, str loss="l2", float delta=1.0) -> ()'
    ),
}
_DEVICES = ("CPU", "CUDA")

_lock = threading.Lock()
_library: Any = globals().get("_library")  # its operators live as long as it does, also when this is loaded again


def register() -> None:
    """Makes ``torch.ops.fastdc``; does nothing the second time."""
    global _library  # noqa: PLW0603
    with _lock:
        if _library is not None:
            return
        library = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
        for name, function in _KERNELS.items():
            library.define(name + _SCHEMAS[name])  # type: ignore[no-untyped-call]
            for device in _DEVICES:
                library.impl(name, function, device)  # type: ignore[no-untyped-call]
            torch.library.register_fake(f"{NAMESPACE}::{name}", _FAKES[name], lib=library)
        for name, (backward, setup) in _GRADIENTS.items():
            torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=library)
        _library = library


def _seed(seed: int) -> int:
    return seed % 2**64


# --- kernels ---------------------------------------------------------------------------------------------------------


def _philox_normal(streams: Tensor, draws: Tensor, size: int, seed: int, purpose: int = 0) -> Tensor:
    made: Tensor = kernels.philox_normal(streams, draws, size, seed=_seed(seed), purpose=purpose)
    return made


def _add_noise(
    images: Tensor,
    cells: Tensor,
    rows: Tensor,
    streams: Tensor,
    seed: int,
    purpose: int = 0,
    antithetic: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    made: Tensor = kernels.add_noise(
        images,
        cells,
        rows,
        streams,
        seed=_seed(seed),
        purpose=purpose,
        antithetic=antithetic,
        dtype=str(dtype).removeprefix("torch."),
    )
    return made


def _denoising_error(
    network_output: Tensor,
    images: Tensor,
    cells: Tensor,
    rows: Tensor,
    streams: Tensor,
    target: Tensor | None,
    seed: int,
    purpose: int = 0,
    antithetic: bool = False,
    loss: str = "l2",
    delta: float = 1.0,
) -> Tensor:
    made: Tensor = kernels.denoising_error(
        network_output,
        images,
        cells,
        rows,
        streams,
        target=target,
        seed=_seed(seed),
        purpose=purpose,
        antithetic=antithetic,
        loss=loss,
        delta=delta,
    )
    return made


def _error_map(
    network_output: Tensor,
    images: Tensor,
    cells: Tensor,
    rows: Tensor,
    streams: Tensor,
    target: Tensor | None,
    maps: Tensor,
    seed: int,
    purpose: int = 0,
    antithetic: bool = False,
    loss: str = "l2",
    delta: float = 1.0,
) -> None:
    kernels.error_map(
        network_output,
        images,
        cells,
        rows,
        streams,
        maps,
        target=target,
        seed=_seed(seed),
        purpose=purpose,
        antithetic=antithetic,
        loss=loss,
        delta=delta,
    )


_KERNELS = {
    "philox_normal": _philox_normal,
    "add_noise": _add_noise,
    "denoising_error": _denoising_error,
    "error_map": _error_map,
}


# --- shapes ----------------------------------------------------------------------------------------------------------


def _fake_normal(streams: Tensor, draws: Tensor, size: int, *rest: Any, **more: Any) -> Tensor:
    return streams.new_empty((streams.shape[0], size), dtype=torch.float32)


def _fake_noise(
    images: Tensor,
    cells: Tensor,
    rows: Tensor,
    streams: Tensor,
    seed: int,
    purpose: int = 0,
    antithetic: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return images.new_empty((cells.shape[0], *images.shape[1:]), dtype=dtype)


def _fake_error(network_output: Tensor, images: Tensor, cells: Tensor, *rest: Any, **more: Any) -> Tensor:
    return images.new_empty((cells.shape[0],), dtype=torch.float32)


def _fake_map(*args: Any, **more: Any) -> None:
    return None


_FAKES: dict[str, Any] = {
    "philox_normal": _fake_normal,
    "add_noise": _fake_noise,
    "denoising_error": _fake_error,
    "error_map": _fake_map,
}


# --- gradients -------------------------------------------------------------------------------------------------------


def _columns(rows: Tensor, cells: Tensor, ndim: int) -> dict[str, Tensor]:
    """The coefficients of each cell, to be multiplied with (B, ...)."""
    own = rows[cells[:, 2].long()]
    shape = (-1, *(1,) * (ndim - 1))
    return {name: own[:, index].view(shape) for index, name in enumerate(kernels.ROW_FIELDS)}


def _spread(gradient: Tensor, like: Tensor, cells: Tensor) -> Tensor:
    """The gradient of images (n, ...) from that of their cells (B, ...)."""
    return torch.zeros_like(like).index_add_(0, cells[:, 0].long(), gradient.to(like.dtype))


def _keep_noise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _noise_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    images, cells, rows = ctx.saved_tensors
    gx = _columns(rows, cells, images.dim())["gx"]
    spread = _spread(gx * gradient.float().view(-1, *images.shape[1:]), images, cells)
    return (spread, *(None,) * 7)


def _keep_error(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:]


def _error_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    network_output, images, cells, rows, streams, target = ctx.saved_tensors
    seed, purpose, antithetic, loss, delta = ctx.settings
    which, draws = cells[:, 0].long(), cells[:, 2]
    shape = (-1, *images.shape[1:])
    at = _columns(rows, cells, images.dim())
    size = images[0].numel()
    draws = (draws >> 1 if antithetic else draws).contiguous()
    noise = torch.ops.fastdc.philox_normal(streams[which], draws, size, seed, purpose).view(shape)
    r = at["a"] * network_output.float().view(shape) + at["b"] * images[which] + at["c"] * noise
    if target is not None:
        r = r + at["d"] * target.view(images.shape)[which]
    slope = {"l2": lambda: 2 * r, "l1": r.sign, "huber": lambda: r.clamp(-delta, delta)}[loss]()
    slope = slope * at["weight"] / size * gradient.view(-1, *(1,) * (images.dim() - 1))
    needed = ctx.needs_input_grad
    of_output = (at["a"] * slope).to(network_output.dtype).view(network_output.shape) if needed[0] else None
    of_images = _spread(at["b"] * slope, images, cells) if needed[1] else None
    of_target = None
    if target is not None and needed[5]:
        of_target = _spread(at["d"] * slope, images, cells).view(target.shape)
    return (of_output, of_images, None, None, None, of_target, *(None,) * 5)


_GRADIENTS: dict[str, Any] = {
    "add_noise": (_noise_backward, _keep_noise),
    "denoising_error": (_error_backward, _keep_error),
}
