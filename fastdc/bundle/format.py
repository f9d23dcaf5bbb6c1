"""The bundle format: its versions, the names of its files, and limits on what a manifest may hold.

docs/bundle.md describes every file and field.
"""

from typing import Any

FORMAT = "fastdc-bundle"
VERSION = 3
"""The newest version, and the largest that this fastdc reads."""

MANIFEST = "fastdc.json"
DENOISER = "denoiser.onnx"
WEIGHTS = "weights.safetensors"  # weights of the denoiser, for torch
DATA = "denoiser.data"  # weights that the graphs of the denoiser share
PREFIX, CLASSES, REST = "prefix.onnx", "classes.onnx", "rest.onnx"  # the denoiser in parts, to share computation
ENCODER = "encoder.onnx"  # images to latents
DECODER = "decoder.onnx"  # latents to images, for pictures of samples
TABLES = "conditions.safetensors"  # one row per class or prompt
TEXT = "text.onnx"  # prompts to rows of the tables
SCORED = "scored.onnx"  # images and noise to errors, for other runtimes
TOKENIZERS = ("tokenizer.json", "tokenizer_2.json", "tokenizer_3.json")
FILES = (DENOISER, WEIGHTS, DATA, PREFIX, CLASSES, REST, ENCODER, DECODER, TABLES, TEXT, SCORED, *TOKENIZERS)

PRECISIONS = ("float32", "float16", "bfloat16", "int8")

MAX_MANIFEST_BYTES = 64 * 2**20
MAX_PIXELS = 2**28
MAX_CLASSES = 10_000_000
MAX_FIRST = 10_000
MAX_NOISED = 256

# A reader of version 1 would overlook these fields, or refuse these files.
_NEW_FIELDS = ("latent", "transform", "prompts", "class_of", "precision")
_NEW_SCHEDULES = ("ddpm_table", "continuous", "vp", "cosine")
_NEW_FILES = frozenset(FILES) - {DENOISER, WEIGHTS}


def version_of_format(manifest: dict[str, Any]) -> int:
    """The lowest version that can express a manifest.

    Args:
        manifest: The manifest, complete except for its version.
    """
    schedule, parameterization = manifest.get("schedule"), manifest.get("parameterization")
    timed = isinstance(schedule, dict) and (schedule.get("kind") in _NEW_SCHEDULES or "timestep_offset" in schedule)
    scored = isinstance(parameterization, dict) and parameterization.get("kind") == "score"
    files, image = manifest.get("files") or {}, manifest.get("image")
    if isinstance(image, dict) and image.get("fit", "crop") != "crop":  # a reader of version 2 would crop
        return 3
    return 2 if timed or scored or any(map(manifest.get, _NEW_FIELDS)) or _NEW_FILES & set(files) else 1


def saved_by_parts(cost: dict[str, Any], classes: int) -> float:
    """Share of the operations that running the denoiser in parts saves.

    Args:
        cost: The field ``cost`` of a manifest, with the operations of the parts.
        classes: Number of classes that share a draw.

    Returns:
        A share in [0, 1).

    Example:
        >>> from fastdc.bundle import saved_by_parts
        >>> saved_by_parts({"flops": 100, "pair_flops": 50, "cell_flops": 50}, classes=2)
        0.25
    """
    return 1 - float((cost["cell_flops"] + cost["pair_flops"] / classes) / cost["flops"])
