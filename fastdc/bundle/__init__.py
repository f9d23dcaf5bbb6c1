"""Models in memory, and bundles: models on disk."""

from typing import TYPE_CHECKING

from fastdc.bundle.calibration_file import calibration_in, with_calibration_file, write_calibration_file
from fastdc.bundle.folder import Bundle, load_bundle, with_calibration, write_bundle
from fastdc.bundle.format import (
    CLASSES,
    DATA,
    DECODER,
    DENOISER,
    ENCODER,
    FORMAT,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PRECISIONS,
    PREFIX,
    REST,
    SCORED,
    TABLES,
    TEXT,
    TOKENIZERS,
    VERSION,
    WEIGHTS,
    saved_by_parts,
)
from fastdc.bundle.haar import HaarTransform, transform_from_dict
from fastdc.bundle.manifest import parse_manifest
from fastdc.bundle.model import Defaults, Model
from fastdc.bundle.pixel_range import PixelRange
from fastdc.bundle.place import bundle_place, put_in_place
from fastdc.bundle.prompts import Prompts, prompts_of, read_class_names, read_prompts, read_prompts_with
from fastdc.bundle.seen import SeenImages, fingerprints
from fastdc.bundle.shipped import find_model, shipped_models
from fastdc.bundle.tokenizer_file import checked_tokenizer
from fastdc.support import lazy_names

if TYPE_CHECKING:
    from fastdc.bundle.architectures import build_network, parameter_count
    from fastdc.bundle.haar_in_torch import torch_samples
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "build_network": "architectures",
            "parameter_count": "architectures",
            "torch_samples": "haar_in_torch",
        },
    )

__all__ = [
    "CLASSES",
    "DATA",
    "DECODER",
    "DENOISER",
    "ENCODER",
    "FORMAT",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "PRECISIONS",
    "PREFIX",
    "REST",
    "SCORED",
    "TABLES",
    "TEXT",
    "TOKENIZERS",
    "VERSION",
    "WEIGHTS",
    "Bundle",
    "Defaults",
    "HaarTransform",
    "Model",
    "PixelRange",
    "Prompts",
    "SeenImages",
    "build_network",
    "bundle_place",
    "calibration_in",
    "checked_tokenizer",
    "find_model",
    "fingerprints",
    "load_bundle",
    "parameter_count",
    "parse_manifest",
    "prompts_of",
    "put_in_place",
    "read_class_names",
    "read_prompts",
    "read_prompts_with",
    "saved_by_parts",
    "shipped_models",
    "torch_samples",
    "transform_from_dict",
    "with_calibration",
    "with_calibration_file",
    "write_bundle",
    "write_calibration_file",
]
