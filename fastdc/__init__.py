"""fastdc: classify and certify images with diffusion models, fast.

    import fastdc
    clf = fastdc.load("digits")
    result = clf.classify(images)      # uint8, or float in [0, 1]; (n, channels, height, width)
    result.labels, result.probabilities, result.evaluations

A diffusion classifier asks a conditional diffusion model how well it denoises an image under each class; the class with
the smallest error wins (Li et al., arXiv 2303.16203).
"""

from fastdc.build_info import build_config
from fastdc.bundle.folder import Bundle, load_bundle
from fastdc.bundle.model import Defaults, Model
from fastdc.bundle.shipped import shipped_models
from fastdc.classifier import DiffusionClassifier
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.results import Classification, Progress
from fastdc.loading import load
from fastdc.rules.calibration import Calibration
from fastdc.session import Session
from fastdc.support.exceptions import (
    BackendError,
    BundleError,
    FastdcError,
    InputError,
    Interrupted,
    MissingDependencyError,
)
from fastdc.support.version import __version__

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
    "Progress",
    "Session",
    "__version__",
    "build_config",
    "load",
    "load_bundle",
    "shipped_models",
]
