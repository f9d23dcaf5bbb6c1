"""fastdc: classify and certify images with diffusion models, fast.

    import fastdc
    clf = fastdc.load("digits")
    result = clf.classify(images)      # uint8, or float in [0, 1]; (n, channels, height, width)
    result.labels, result.probabilities, result.evaluations

A diffusion classifier asks a conditional diffusion model how well it denoises an image under each class; the class with
the smallest error wins (Li et al., arXiv 2303.16203).
"""

from fastdc.build_info import build_config
from fastdc.bundle import Bundle, Defaults, Model, load_bundle, shipped_models
from fastdc.classifier import DiffusionClassifier
from fastdc.inference import Classification, ErrorTable, Options, Progress
from fastdc.loading import load
from fastdc.rules import Calibration
from fastdc.session import Session
from fastdc.support import (
    BackendError,
    BundleError,
    FastdcError,
    InputError,
    Interrupted,
    MissingDependencyError,
    __version__,
)

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Calibration",
    "Classification",
    "Defaults",
    "DiffusionClassifier",
    "ErrorTable",
    "FastdcError",
    "InputError",
    "Interrupted",
    "MissingDependencyError",
    "Model",
    "Options",
    "Progress",
    "Session",
    "__version__",
    "build_config",
    "load",
    "load_bundle",
    "shipped_models",
]
