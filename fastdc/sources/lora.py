"""LoRA weights, merged into a model before it is exported.

A LoRA (Hu et al., arXiv 2106.09685) changes a linear map or a convolution W by a product of thin matrices,

    W' = W + scale * (alpha / r) * up down,    r: number of rows of down.

Once merged, it costs nothing. Files are safetensors in the formats that diffusers reads: its own, peft's, and kohya's,
which names modules in another way. Only diffusers knows which module a name means, so its loader puts the matrices in
place. It may lose alphas on the way, so the factor of each layer is read from the file itself, and the product is added
here. Every tensor of the file must have been used, and every layer must have found its place.
"""

import hashlib
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fastdc.support import BundleError, InputError, checks, one_line, require, shown

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

# Suffixes of the thin matrices down and up in the formats of kohya, peft and diffusers.
_PAIRS = {
    ".lora_down.weight": ".lora_up.weight",
    ".lora_A.weight": ".lora_B.weight",
    ".lora.down.weight": ".lora.up.weight",
    ".lora_linear_layer.down.weight": ".lora_linear_layer.up.weight",
    "_lora.down.weight": "_lora.up.weight",
}
_ALPHA = ".alpha"
_METADATA = "lora_adapter_metadata"  # where diffusers notes peft's options, among them alphas


@dataclass(frozen=True)
class Lora:
    """A file of LoRA weights.

    Attributes:
        path: The safetensors file.
        scale: Factor of the change, finite: 1 applies the LoRA as trained, 0 has no effect.

    Raises:
        InputError: The scale is not a finite number.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not checks.is_finite(self.scale):
            raise InputError(f"the scale of a LoRA must be finite, got {shown(self.scale)}")

    def __str__(self) -> str:
        return f"{Path(self.path).name} x {self.scale:g}"


def fuse_lora(pipeline: str, components: Mapping[str, nn.Module], lora: Sequence[Lora]) -> None:
    """Merges LoRAs into the networks of a pipeline, in place and one after the other.

    Args:
        pipeline: The pipeline's class name in diffusers, such as "StableDiffusionPipeline".
        components: Networks by the pipeline's names, such as "unet", "transformer" or "text_encoder".
        lora: The LoRAs to merge.

    Raises:
        InputError: A file is missing or is not a safetensors file.
        BundleError: A LoRA does not fit the model in whole or in part, or leads to weights that are not finite.
        MissingDependencyError: peft is not installed.
    """
    if not lora:
        return
    require("peft", extra="export")
    holder = _holder(pipeline, components)
    for index, one in enumerate(lora):
        path = Path(one.path)
        if path.suffix != ".safetensors" or not path.is_file():
            raise InputError(f"a LoRA must be a .safetensors file, got {path}")
        try:
            with _quiet():
                wanted = _merge(holder, path, f"lora_{index}", one.scale)
        except (BundleError, InputError):
            raise
        except Exception as error:  # safetensors, peft, torch and diffusers raise all kinds
            raise BundleError(f"LoRA {path} does not fit {pipeline}: {one_line(error)}") from None
        if not wanted:
            raise BundleError(f"LoRA {path} holds no LoRA weights")
    for network in components.values():
        network.eval().requires_grad_(False)


def _holder(pipeline: str, components: Mapping[str, nn.Module]) -> Any:
    """A pipeline object that holds only the networks; its class knows the format of its LoRAs."""
    diffusers = require("diffusers", extra="export")
    kind = getattr(diffusers, pipeline)
    parameters = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {
        name: None for name, entry in parameters.items() if name != "self" and entry.default is inspect.Parameter.empty
    }
    options.update(components)
    if "requires_safety_checker" in parameters:
        options["requires_safety_checker"] = False
    if "add_watermarker" in parameters:
        options["add_watermarker"] = False
    return kind(**options)


@dataclass(frozen=True)
class _File:
    """The content of a file of LoRA weights.

    Attributes:
        weights: Its tensors, without the alphas.
        factors: For each layer, alpha / r by the digest of its two matrices.
        names: The layers' names in the file, by the same digests.
        options: peft's options of the training, by dotted names such as "unet.lora_alpha"; empty if not noted.
    """

    weights: dict[str, Tensor]
    factors: dict[bytes, float]
    names: dict[bytes, str]
    options: dict[str, Any]


def _read(path: Path) -> tuple[_File, int]:
    """The content of a file, and its number of layers; refuses tensors that no LoRA has, and contradicting factors."""
    with safe_open(str(path), framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
        options = json.loads((opened.metadata() or {}).get(_METADATA, "{}"))
    layers = {key.removesuffix(down): (key, down) for key in tensors for down in _PAIRS if key.endswith(down)}
    used: set[str] = set()
    file = _File({}, {}, {}, options)
    for name, (key, suffix) in layers.items():
        down, up, alpha = tensors[key], tensors.get(name + _PAIRS[suffix]), tensors.get(name + _ALPHA)
        if up is None or down.ndim < 2 or up.ndim < 2 or up.shape[1] != len(down):
            raise BundleError(f"LoRA {path}: {name} has no pair of matrices of one rank")
        used |= {key, name + _PAIRS[suffix], name + _ALPHA}
        if alpha is not None and (options or alpha.numel() != 1 or not torch.isfinite(alpha)):
            raise BundleError(f"LoRA {path}: {name}{_ALPHA} must be a finite number, and the only one given")
        factor, digest = 1.0 if alpha is None else float(alpha) / len(down), _digest(down, up)
        if file.factors.setdefault(digest, factor) != factor and up.any():
            raise BundleError(f"LoRA {path}: {name} and {file.names[digest]} hold the same matrices with other alphas")
        file.names[digest] = name
    unknown = sorted(tensors.keys() - used)
    if unknown:
        raise BundleError(f"LoRA {path} holds {unknown[0]:.120}, which is no part of a plain LoRA")
    file.weights.update((key, value) for key, value in tensors.items() if not key.endswith(_ALPHA))
    return file, len(layers)


def _digest(down: Tensor, up: Tensor) -> bytes:
    """Identifies a pair of matrices, whatever a loader calls them."""
    parts = (str(tuple(one.shape)).encode() + one.detach().float().contiguous().numpy().tobytes() for one in (down, up))
    return hashlib.sha256(b"".join(parts)).digest()


def _merge(holder: Any, path: Path, adapter: str, scale: float) -> int:
    """Loads one LoRA, merges it, and removes the adapter; returns the number of layers that it changed."""
    file, wanted = _read(path)
    if file.options:  # the loader reads them from the file alone
        where = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
        holder.load_lora_weights(str(path.parent), adapter_name=adapter, **where)
    else:
        holder.load_lora_weights(dict(file.weights), adapter_name=adapter)
    layers = _layers(holder, adapter)
    placed = {_digest(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight) for layer in layers.values()}
    lost = [name for digest, name in file.names.items() if digest not in placed]
    if len(layers) != wanted or lost:
        which = f": not {lost[0]:.120}" if lost else ""
        raise BundleError(f"LoRA {path} changes {wanted} layers, of which the model has {len(layers)}{which}")
    for name, layer in layers.items():
        component = name.partition(".")[0]
        if any(key.startswith(f"{component}.") for key in file.options):
            factor = layer.scaling[adapter]  # peft's own, made of the options of the training
        else:
            factor = file.factors[_digest(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)]
        _add(layer, adapter, scale * factor, f"LoRA {path}: {name}")
    holder.unload_lora_weights()
    return wanted


def _layers(holder: Any, adapter: str) -> dict[str, Any]:
    """The layers that an adapter changes, by "component.module"."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        f"{component}.{name}": layer
        for component in holder._lora_loadable_modules
        if getattr(holder, component, None) is not None
        for name, layer in getattr(holder, component).named_modules()
        if isinstance(layer, BaseTunerLayer) and adapter in getattr(layer, "lora_A", ())
    }


def _add(layer: Any, adapter: str, factor: float, what: str) -> None:
    """Adds factor * up down to a layer's weight, in float64 and rounded once; `what` names the layer in messages."""
    down, up = layer.lora_A[adapter].weight.detach().double(), layer.lora_B[adapter].weight.detach().double()
    weight = layer.get_base_layer().weight
    if up[0, 0].numel() != 1 or len(up) * down[0].numel() != weight.numel() or layer.use_dora.get(adapter):
        raise BundleError(f"{what} cannot be merged: its matrices are no plain product")
    changed = weight.detach().double() + factor * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    if not torch.isfinite(changed).all():
        raise BundleError(f"{what} leads to weights that are not finite")
    weight.data.copy_(changed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the loader's warnings, because their causes are errors here."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
