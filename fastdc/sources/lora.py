"""LoRA weights, merged into a model before it is exported.

A LoRA (Hu et al., arXiv 2106.09685) changes a linear map or a convolution W by a product of thin matrices,

    W' = W + scale * (alpha / r) * up down,    r: number of rows of down.

Once merged, it costs nothing. Files are safetensors in the formats that diffusers reads: its own, peft's, and kohya's,
which names modules in another way. Only diffusers knows which weight a name means, so its loader does the work. The
loader merely warns about a layer that it cannot place; here every layer in the file must find its place.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fastdc.support import BundleError, InputError, checks, one_line, require

require("torch", extra="export")

from torch import nn  # noqa: E402

# Suffixes of the thin matrix that is applied first, in peft's and diffusers' names (kohya's have been converted).
_DOWN = (".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight", "_lora.down.weight")


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
            raise InputError(f"the scale of a LoRA must be finite, got {self.scale!r:.80}")

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


def _merge(holder: Any, path: Path, adapter: str, scale: float) -> int:
    """Loads, checks and merges one LoRA, then removes the adapter; returns the number of layers that it changed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    where = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
    unet = getattr(holder, "unet", None)
    blocks = {} if unet is None else {"unet_config": unet.config}
    read = holder.lora_state_dict(str(path.parent), **where, **blocks)
    weights = read[0] if isinstance(read, tuple) else read
    with safe_open(str(path), framework="pt") as opened:
        if any(name.endswith("dora_scale") for name in opened.keys()):  # noqa: SIM118 - not a mapping
            raise BundleError(f"LoRA {path} is a DoRA with dora_scale, which the loader would leave out")
    names = [name for name in holder._lora_loadable_modules if getattr(holder, name, None) is not None]
    wanted: int = sum(name.endswith(_DOWN) for name in weights)
    holder.load_lora_weights(str(path.parent), adapter_name=adapter, **where)
    networks = [getattr(holder, name) for name in names]
    layers = [
        layer
        for network in networks
        for layer in network.modules()
        if isinstance(layer, BaseTunerLayer)
        and any(adapter in getattr(layer, kind) for kind in layer.adapter_layer_names)
    ]
    if len(layers) != wanted:
        raise BundleError(f"LoRA {path} changes {wanted} layers, of which the model has {len(layers)}")
    if wanted:
        holder.fuse_lora(components=names, lora_scale=scale, safe_fusing=True, adapter_names=[adapter])
    holder.unload_lora_weights()
    return wanted


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the loader's warnings, because their causes are errors here."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
