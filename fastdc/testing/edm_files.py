"""Pickles in the format of NVlabs EDM, made of fastdc's own networks with random parameters, and hostile variants.

Modules are ``torch.nn.Module`` objects that reduce themselves to ``torch_utils.persistence`` as the originals do, with
the same attributes, options and NumPy scalars; torch writes containers, parameters and storages. The two foreign Python
modules exist only while a file is written.
"""

import contextlib
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdc.sources import edm_network

# Code that a reader must never run; it would leave a file behind.
MODULE_SOURCE = "import pathlib\npathlib.Path('executed-by-fastdc').write_text('module_src was executed')\n"

TINY: dict[str, dict[str, Any]] = {
    "ddpmpp": {"channel_mult": [1, 2], "attn_resolutions": [4], "augment_dim": 9},
    "ncsnpp": {
        "channel_mult": [1, 2, 2],
        "attn_resolutions": [4],
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "skips": {
        "channel_mult": [1, 2, 2],
        "attn_resolutions": [],
        "encoder_type": "skip",
        "decoder_type": "skip",
        "resample_filter": [1, 3, 3, 1],
    },
    "adm": {"channel_mult": [1, 2], "attn_resolutions": [8], "model_channels": 64},
}
"""Options of small networks, by the published variant that they shrink."""

SHAPE = {"img_resolution": 8, "in_channels": 3, "out_channels": 3}


def kind_of(variant: str) -> str:
    """Class name of a variant's network."""
    return "DhariwalUNet" if variant == "adm" else "SongUNet"


def options(variant: str, **more: Any) -> dict[str, Any]:
    """All options of a variant, as stored in a file."""
    base: dict[str, Any] = {**SHAPE, "label_dim": 4, "model_channels": 16, "num_blocks": 1, "dropout": 0.13}
    return {**base, **TINY[variant], **more}


def network(variant: str, *, seed: int = 0, **more: Any) -> nn.Module:
    """A variant's network with random parameters such that every part affects the output.

    Args:
        variant: Key of :data:`TINY`.
        seed: Seed of the parameters.
        **more: Options that differ from the variant's.
    """
    made = edm_network(kind_of(variant), options(variant, **more))
    generator = torch.Generator().manual_seed(seed)
    for name, value in made.state_dict().items():
        fan = max(1, value[0].numel()) if value.ndim > 1 else 16
        drawn = torch.randn(value.shape, generator=generator) / fan**0.5
        if name.endswith("resample_filter"):
            taps = torch.tensor(options(variant, **more).get("resample_filter", [1, 1]), dtype=torch.float32)
            drawn = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
        elif "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.3 * drawn
        value.copy_(drawn)
    return made


def _reconstruct_persistent_obj(meta: Any) -> Any:
    """A pickle needs only the name of this function."""
    raise AssertionError("called while writing")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class EasyDict(dict):  # type: ignore[type-arg]
    """Stands for ``dnnlib.util.EasyDict``."""


EasyDict.__module__ = "dnnlib.util"


class Persistent(nn.Module):
    """A module that reduces itself as the originals do.

    Args:
        class_name: Name of the class in the file.
        init_kwargs: Options that the module was built with.
        **attributes: Plain attributes of the module.
    """

    def __init__(self, class_name: str, init_kwargs: dict[str, Any], **attributes: Any) -> None:
        super().__init__()
        self.__dict__["meta_class"] = class_name
        self.__dict__.update(attributes)
        self._init_args = ()
        self._init_kwargs = init_kwargs

    def __reduce__(self) -> tuple[Any, ...]:
        state = {key: value for key, value in self.__dict__.items() if key != "meta_class"}
        meta = {
            "type": "class",
            "version": 6,
            "module_src": MODULE_SOURCE,
            "class_name": self.meta_class,
            "state": state,
        }
        return (_reconstruct_persistent_obj, (meta,), None)


def stored(module: nn.Module) -> nn.Module:
    """The stored form of one of fastdc's modules."""
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict({name: stored(child) for name, child in module.items()})
    name = type(module).__name__
    # As in the originals, the options of a block include NumPy scalars and nested options.
    more = {"skip_scale": np.sqrt(0.5), "init": {"init_weight": np.sqrt(0.2)}} if name == "UNetBlock" else {}
    made = Persistent(name, more, training=False, **({"skip_scale": np.sqrt(0.5)} if more else {}))
    for key, parameter in module.named_parameters(recurse=False):
        made.register_parameter(key, nn.Parameter(parameter.detach().clone()))
    for key, buffer in module.named_buffers(recurse=False):
        made.register_buffer(key, buffer.clone())
    for key, child in module.named_children():
        made.add_module(key, stored(child))
    return made


def _levels_of_iddpm(steps: int) -> Tensor:
    """The levels u (steps + 1,) of an ``iDDPMPrecond``, computed in float32 as the original does."""
    grid = (0.5 * np.pi * torch.arange(steps + 1) / steps / 1.008).sin() ** 2
    u = torch.zeros(steps + 1)
    for j in range(steps, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (grid[j - 1] / grid[j]).clip(min=0.001) - 1).sqrt()
    return u


PRECONDITIONERS: dict[str, dict[str, Any]] = {
    "EDMPrecond": {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "sigma_min": 1e-3, "sigma_max": 152.0},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000, "sigma_min": 0.0064, "sigma_max": 20291.0},
}
"""Attributes of the preconditioners, as their constructors set them."""


def precond(variant: str, *, preconditioner: str = "EDMPrecond", **more: Any) -> Persistent:
    """The object in a file: a preconditioner around a variant's network."""
    if preconditioner == "iDDPMPrecond":
        more = {"out_channels": 6, **more}
    inner_options = options(variant, **more)
    inner = stored(network(variant, **more))
    assert isinstance(inner, Persistent)
    inner.__dict__["meta_class"] = kind_of(variant)
    inner._init_kwargs = EasyDict(inner_options)
    if kind_of(variant) == "SongUNet" and "map_noise" not in inner._modules:
        inner.add_module("map_noise", Persistent("PositionalEmbedding", {"num_channels": 16}, num_channels=16))
    made = Persistent(
        preconditioner,
        {"img_resolution": 8, "img_channels": 3, "label_dim": inner_options["label_dim"], "use_fp16": True},
        img_resolution=8,
        img_channels=3,
        label_dim=inner_options["label_dim"],
        use_fp16=True,
        **PRECONDITIONERS[preconditioner],
    )
    if preconditioner == "iDDPMPrecond":
        made.register_buffer("u", _levels_of_iddpm(PRECONDITIONERS[preconditioner]["M"]))
    made.add_module("model", inner)
    return made


@contextlib.contextmanager
def _foreign_modules() -> Iterator[None]:
    """Makes NVlabs' modules importable inside the block, as pickling needs."""
    entries: dict[str, dict[str, Any]] = {
        "torch_utils": {},
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib": {},
        "dnnlib.util": {"EasyDict": EasyDict},
    }
    assert not set(entries) & set(sys.modules)
    for name, content in entries.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in entries:
            del sys.modules[name]


def dumped(content: Any, *, protocol: int = 4) -> bytes:
    """The bytes of a pickle; its content may include persistent objects."""
    with _foreign_modules():
        return pickle.dumps(content, protocol=protocol)


def write_edm(path: Path, variant: str, *, protocol: int = 4, preconditioner: str = "EDMPrecond", **more: Any) -> Path:
    """Writes a small EDM model with random weights, in NVlabs' format and with the objects besides the network.

    Args:
        path: The file to write.
        variant: Network: "ddpmpp", "ncsnpp" or "skips" (SongUNet), or "adm" (DhariwalUNet).
        protocol: Protocol of the pickle.
        preconditioner: "EDMPrecond", "VPPrecond", "VEPrecond" or "iDDPMPrecond".
        **more: Options of the network that differ from the variant's, such as ``label_dim=10``.

    Returns:
        The path.

    Example:
        >>> from fastdc.testing import write_edm
        >>> write_edm(folder / "net.pkl", "adm").stat().st_size > 10_000
        True
    """
    loss = Persistent("EDMLoss", {}, P_mean=-1.2, P_std=1.2, sigma_data=0.5)
    content = {
        "ema": precond(variant, preconditioner=preconditioner, **more),
        "loss_fn": loss,
        "augment_pipe": Persistent("AugmentPipe", {"p": 0.12}, rotate_frac_max=np.float32(1.0)),
        "dataset_kwargs": {"path": "data.zip", "use_labels": True},
    }
    path.write_bytes(dumped(content, protocol=protocol))
    return path


def with_meta(meta: dict[str, Any]) -> bytes:
    """A file whose network is a persistent object with any description, valid or not."""
    return dumped({"ema": Call(_reconstruct_persistent_obj, meta)})


def with_tensor(tensor: Any) -> bytes:
    """A file whose network is a module with one parameter: any object that can be pickled."""
    made = Persistent("EDMPrecond", {})
    made.__dict__["_parameters"] = {"weight": tensor}
    return dumped({"ema": made})


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def storage_of(values: Tensor) -> Any:
    """A tensor's storage, as torch pickles it."""
    made: Any = torch.storage.TypedStorage
    return made(wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True)


def rebuilt(values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    """A tensor on the storage of `values` with any offset, size and stride, valid or not."""
    from torch._utils import _rebuild_tensor_v2

    return Call(_rebuild_tensor_v2, storage_of(values), offset, size, stride, False, {})
