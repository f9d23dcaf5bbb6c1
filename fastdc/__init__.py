"""fastdc: classify and certify images with diffusion models, fast.

    import fastdc
    clf = fastdc.load("digits")
    result = clf(images)               # pictures, paths, bytes, arrays, tensors, or an iterable of them
    result.labels, result.probabilities, result.evaluations

A diffusion classifier asks a conditional diffusion model how well it denoises an image under each class; the class with
the smallest error wins (Li et al., arXiv 2303.16203).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec(f"{__name__}._C") is None:
    raise ImportError(
        f"fastdc._C, the compiled part, is missing: Python imports the sources beside {__file__}, which were not "
        "built. Work in another folder if fastdc is installed, or build it there: pip install -e ."
    )

from fastdc.support import (
    BackendError,
    BundleError,
    FastdcError,
    InputError,
    Interrupted,
    MissingDependencyError,
)

if TYPE_CHECKING:
    from fastdc.build_info import build_config
    from fastdc.bundle import Bundle, Defaults, Model, load_bundle, shipped_models
    from fastdc.classifier import DiffusionClassifier
    from fastdc.estimator import DiffusionClassifierEstimator as DiffusionClassifierEstimator
    from fastdc.inference import Classification, ErrorTable, Options, Progress
    from fastdc.loading import load
    from fastdc.rules import Calibration
    from fastdc.session import Session
    from fastdc.support import __version__

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

_WING_OF = {
    "build_config": "build_info",
    **dict.fromkeys(("Bundle", "Defaults", "Model", "load_bundle", "shipped_models"), "bundle"),
    "DiffusionClassifier": "classifier",
    "DiffusionClassifierEstimator": "estimator",  # not in __all__: `from fastdc import *` must not need scikit-learn
    **dict.fromkeys(("Classification", "ErrorTable", "Options", "Progress"), "inference"),
    "load": "loading",
    "Calibration": "rules",
    "Session": "session",
    "__version__": "support",
}
"""Where each name is imported from, on first use: the command line answers --help and typing errors without NumPy."""


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _WING_OF:
            value = getattr(import_module(f"{__name__}.{_WING_OF[name]}"), name)
            globals()[name] = value
            return value
        module = f"{__name__}.{name}"
        if not name.startswith("_"):  # a wing, as in fastdc.bundle
            try:
                return import_module(module)
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*__all__, *_WING_OF})
