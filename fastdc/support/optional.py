"""Optional packages: imported where they are used, with one clear line when they are missing.

``require("torch", extra="train")`` returns the module or raises :class:`MissingDependencyError` naming the extra.
"""

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from fastdc.support.exceptions import MissingDependencyError

# Import name -> the extra that a user is told to install when the caller does not say which.
EXTRA_OF = {
    "onnxruntime": "cpu",
    "torch": "cuda",
    "tensorrt": "tensorrt",
    "onnx": "export",
    "diffusers": "export",
    "tokenizers": "text",
    "transformers": "export",
    "matplotlib": "plot",
}


def require(module: str, *, extra: str | None = None) -> ModuleType:
    """Imports an optional package.

    Args:
        module: Import name, possibly dotted, such as ``"onnxruntime"``.
        extra: The extra to name in the error; default from :data:`EXTRA_OF`.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != root:  # it is there, but one of its own needs is not
            raise
        wanted = extra or EXTRA_OF.get(root, "dev")
        message = f"{root} is needed here and is not installed: pip install 'fastdc[{wanted}]'"
        raise MissingDependencyError(message, name=root) from None


def installed(module: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def version_of(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed, or None."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
