"""The file that holds a component's weights: one rule for folders on disk and for lists of files on the hub.

Weights are named STEM.safetensors or, for a variant, STEM.VARIANT.safetensors. Weights in several files are named by an
index, STEM.safetensors.index.json or STEM.safetensors.index.VARIANT.json. Variants are precisions (fp16, bf16, fp32) or
other weights of the same network, such as ema and non_ema.
"""

import re
from collections.abc import Collection
from pathlib import Path

import safetensors

from fastdc.support import BundleError, InputError, one_line

STEMS = ("diffusion_pytorch_model", "model")
"""Beginning of the names of weights: diffusers' and transformers'."""

DEFAULT_ORDER = (None, "fp32", "fp16", "bf16")
"""Variants that are read without being asked for, the first that is there; None is a name without a variant."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of weights that would execute their content."""

SINGLE_FILES = (*PICKLES, ".safetensors", ".gguf")
"""Endings of files that hold a whole model."""

VARIANT = re.compile(r"[A-Za-z0-9_]{1,40}")

_WHOLE = re.compile(rf"({'|'.join(STEMS)})(?:\.({VARIANT.pattern}))?\.safetensors")
_INDEX = re.compile(rf"({'|'.join(STEMS)})\.safetensors\.index(?:\.({VARIANT.pattern}))?\.json")


def is_shard_index(name: str) -> bool:
    """Whether a file names the files of weights in shards."""
    return _INDEX.fullmatch(name) is not None


def variants_of(names: Collection[str]) -> dict[str | None, str]:
    """The variants in a component's folder, each with the file that holds or names its weights.

    Args:
        names: Names of the files in the folder.
    """
    found: dict[str | None, str] = {}
    for stem in reversed(STEMS):
        for pattern in (_INDEX, _WHOLE):  # later ones replace earlier ones: a whole file goes before an index
            for match in filter(None, map(pattern.fullmatch, names)):
                if match[1] == stem:
                    found[match[2]] = match[0]
    return found


def choose_weights(names: Collection[str], model: str, component: str, wanted: str | None) -> tuple[str, str | None]:
    """Chooses the weights of a component.

    Args:
        names: Names of the files in the component's folder.
        model: Name of the model, for messages.
        component: Name of the component, for messages.
        wanted: The variant that the user asks for. A component without it has its default, as some files have no
            variants.

    Returns:
        The file that holds the weights or names their shards, and its variant or None.

    Raises:
        InputError: There are several variants, and none is a default.
        BundleError: There are no weights, or pickles alone.
    """
    found = variants_of(names)
    order = DEFAULT_ORDER if wanted is None else (wanted, *DEFAULT_ORDER)
    chosen = next((variant for variant in order if variant in found), None)
    if len(found) == 1:
        chosen = next(iter(found))
    if chosen in found:
        return found[chosen], chosen
    if found:
        listed = ", ".join(sorted(map(str, found)))
        raise InputError(f"{model}: {component} has weights of the variants {listed}: choose one (--variant)")
    others = sorted(name for name in names if name.endswith(PICKLES))
    if others:
        raise BundleError(
            f"{model}/{component}/{others[0]:.80} is a pickle, which is not read: convert the model with its own "
            "pipeline, save_pretrained(folder, safe_serialization=True)"
        )
    raise BundleError(f"{model} is incomplete: {component} has no {STEMS[0]}.safetensors")


def single_file(path: str) -> str:
    """One line about a file that holds a whole model, which is not read, and the way out."""
    return (
        f"{path} holds a model in one file, which is not read: convert it with diffusers, for example "
        "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and export the folder"
    )


def count_numbers(files: list[Path], where: str) -> tuple[int, int]:
    """The counts (tensors, numbers) in safetensors files, from headers that the library checks against the files."""
    tensors = numbers = 0
    for file in files:
        try:
            with safetensors.safe_open(str(file), framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a mapping
                    count = 1
                    for side in opened.get_slice(key).get_shape():
                        count *= int(side)
                    tensors, numbers = tensors + 1, numbers + count
        except Exception as error:  # SafetensorError, OSError
            raise BundleError(f"{where}/{file.name} is truncated or not safetensors: {one_line(error)}") from None
    return tensors, numbers
