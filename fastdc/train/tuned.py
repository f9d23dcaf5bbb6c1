"""What a run has made, as a model that can be exported: its network or its base, with the trained weights.

The network of a base is read again, because a run keeps only what was trained. A LoRA is merged from a file in the
format that others read, as ``fastdc export --lora`` merges it.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from fastdc.bundle import build_network
from fastdc.sources import Lora, Source, lora_weights, merge_lora
from fastdc.support import InputError, one_line
from fastdc.train.base import Base, open_base
from fastdc.train.run import RunFolder, RunInfo
from fastdc.train.run_model import run_model

_PREFIX = "denoiser."  # of the names in a network that is bound to its condition tables


def trained_source(folder: RunFolder, info: RunInfo, wanted: str | None) -> tuple[Source, int, str]:
    """The model of a run; :func:`fastdc.train.run_source` describes it."""
    weights, step, chosen = folder.averaged(wanted)
    known: dict[str, Any] = {"class_counts": info.class_counts, "seen": folder.seen(info, wanted)}
    if info.base.get("kind", "own") == "own":
        source = Source("module", run_model(info), _built(info, weights))
        return dataclasses.replace(source, **known), step, chosen
    _, base = open_base(info.config)
    base.check_same(info)
    if base.source is None:
        return dataclasses.replace(_latent_source(base, info, weights), **known), step, chosen
    source, _ = base.for_classes(info.class_names, info.config)
    source = dataclasses.replace(source, **known)
    if base.kind == "prompts":
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "lora.safetensors"
            file.write_bytes(lora_content(source, weights))
            merge_lora(source, [Lora(file)])
    else:
        _load(source.denoiser, weights, info)
    return source, step, chosen


def lora_content(source: Source, weights: Mapping[str, Tensor]) -> bytes:
    """The file of a LoRA, from averaged weights by their names in the network that was trained."""
    return save(lora_weights(source, {name.removeprefix(_PREFIX): one for name, one in weights.items()}))


def _load(network: nn.Module, weights: Mapping[str, Tensor], info: RunInfo) -> None:
    """Puts the trained weights into a network, which may have others that were not trained."""
    own = network.state_dict()
    wrong = next((name for name, one in weights.items() if name not in own or own[name].shape != one.shape), None)
    if wrong is not None:
        raise InputError(f"{info.config.out} holds weights that do not fit its network: {wrong:.100}")
    network.load_state_dict(weights, strict=False)


def _latent_source(base: Base, info: RunInfo, weights: Mapping[str, Tensor]) -> Source:
    """A new network on the latents of an encoder."""
    channels, factor = base.encoder.channels, base.encoder.factor
    latent = (channels, info.shape[1] // factor, info.shape[2] // factor)
    model = dataclasses.replace(run_model(info), latent_shape=latent)
    return Source("module", model, _built(info, weights), encoder=base.encoder)


def _built(info: RunInfo, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of a run, with its trained weights."""
    network = build_network(info.network["kind"], info.network["config"])
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{info.config.out} holds weights that do not fit its network: {one_line(error)}") from None
    return network.eval().requires_grad_(False)
