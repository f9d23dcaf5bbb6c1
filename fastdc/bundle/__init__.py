"""What a model is, in memory and on disk."""

from typing import TYPE_CHECKING

from fastdc.bundle.calibration_file import with_calibration_file, write_calibration_file
from fastdc.bundle.folder import Bundle, load_bundle, with_calibration, write_bundle
from fastdc.bundle.manifest import (
    CLASSES,
    DATA,
    DENOISER,
    ENCODER,
    FILES,
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
    parse_manifest,
    saved_by_parts,
    version_of_format,
)
from fastdc.bundle.model import Defaults, Model
from fastdc.bundle.prompts import Prompts, prompts_of, read_class_names, read_prompts
from fastdc.bundle.shipped import find_model, shipped_models
from fastdc.support import lazy_names

if TYPE_CHECKING:
    from fastdc.bundle.architectures import build_network, parameter_count
else:
    __getattr__ = lazy_names(__name__, {"build_network": "architectures", "parameter_count": "architectures"})

__all__ = [
    "CLASSES",
    "DATA",
    "DENOISER",
    "ENCODER",
    "FILES",
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
    "Model",
    "Prompts",
    "build_network",
    "find_model",
    "load_bundle",
    "parameter_count",
    "parse_manifest",
    "prompts_of",
    "read_class_names",
    "read_prompts",
    "saved_by_parts",
    "shipped_models",
    "version_of_format",
    "with_calibration",
    "with_calibration_file",
    "write_bundle",
    "write_calibration_file",
]
