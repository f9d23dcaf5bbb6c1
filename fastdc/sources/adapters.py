"""Training a LoRA on a text-conditional model: adapters of peft on its attention, and the file that others read.

A LoRA (Hu et al., arXiv 2106.09685) adds a product of thin matrices to the projections of queries, keys, values and
outputs. Only the matrices are trained. alpha equals the rank, so that the factor alpha / r is 1 and a file needs no
alpha: peft's names after the name of the pipeline's network, as diffusers' ``save_lora_weights`` writes them.
"""

from collections.abc import Mapping, Sequence

from fastdc.support import InputError, require

require("torch", extra="export")

from torch import Tensor, nn  # noqa: E402

from fastdc.sources.base import Source  # noqa: E402
from fastdc.sources.lora import Lora, fuse_lora  # noqa: E402
from fastdc.sources.pipelines import PLAIN  # noqa: E402

_ADAPTER = "default"
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The projections of attention in UNets and, with those of the text's own stream, in joint transformers."""


def add_lora(source: Source, rank: int) -> None:
    """Adds a LoRA that is to be trained to the network of a source, in place. Its matrices are from torch's generator.

    The product starts at zero, so that the network computes what it did. Nothing but the matrices requires gradients.

    Args:
        source: A text-conditional model.
        rank: Rank of the matrices.

    Raises:
        InputError: The model is not text-conditional.
        MissingDependencyError: peft is not installed.

    Example:
        >>> from fastdc import bundle, sources, testing
        >>> source = sources.open_source(testing.tiny_sd(folder / "sd"), prompts=bundle.prompts_of(("cat", "dog")))
        >>> sources.add_lora(source, rank=2)
        >>> {p.shape[0] for name, p in source.denoiser.named_parameters() if "lora_A" in name}
        {2}
    """
    _, network = _network_of(source)
    peft = require("peft", extra="export")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(_PROJECTIONS))
    source.denoiser.requires_grad_(False)
    peft.inject_adapter_in_model(config, network, _ADAPTER)


def lora_weights(source: Source, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a LoRA file, by the names that diffusers and ``open_source(lora=...)`` read.

    Args:
        source: The model to which :func:`add_lora` added a LoRA, or the same one without it.
        weights: Its matrices by their names in the denoiser; others are left out.

    Raises:
        InputError: The model is not text-conditional.

    Example:
        >>> from fastdc import bundle, sources, testing
        >>> source = sources.open_source(testing.tiny_sd(folder / "sd"), prompts=bundle.prompts_of(("cat", "dog")))
        >>> sources.add_lora(source, rank=2)
        >>> sorted(sources.lora_weights(source, dict(source.denoiser.named_parameters())))[0]
        'unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight'
    """
    component, _ = _network_of(source)
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        start, found, layer = name.partition(f"{component}.")
        if found and f".{_ADAPTER}." in layer and not start:
            named[f"{component}.{layer.replace(f'.{_ADAPTER}.', '.')}"] = tensor.detach().cpu().contiguous()
    return named


def merge_lora(source: Source, lora: Sequence[Lora]) -> None:
    """Merges LoRAs into the network of a source, in place, as ``open_source(lora=...)`` does.

    Args:
        source: A text-conditional model without adapters.
        lora: The LoRAs, which change its network alone.

    Raises:
        InputError: The model is not text-conditional, or a file is missing.
        BundleError: A LoRA does not fit the network.
        MissingDependencyError: peft is not installed.

    Example:
        >>> from fastdc import bundle, sources, testing
        >>> source = sources.open_source(testing.tiny_sd(folder / "sd"), prompts=bundle.prompts_of(("cat", "dog")))
        >>> sources.merge_lora(source, [])  # or [sources.Lora(folder / "l.safetensors", scale=0.5)]
    """
    name, network = _network_of(source)
    fuse_lora(PLAIN[source.family], {name: network}, lora)


def _network_of(source: Source) -> tuple[str, nn.Module]:
    """The name and the module of the pipeline's network inside a denoiser."""
    for name in ("unet", "transformer"):
        network = getattr(source.denoiser, name, None)
        if source.text is not None and isinstance(network, nn.Module):
            return name, network
    raise InputError(f"a LoRA is for a text-conditional model, {source.model.name} is none")
