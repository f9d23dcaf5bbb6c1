"""Optional packages: imported where they are used, with a one-line error if they are missing.

``require("torch", extra="train")`` returns the module or raises :class:`MissingDependencyError`, which names the extra.
"""

import importlib
import importlib.util
from types import ModuleType

from fastdc.support.exceptions import MissingDependencyError

EXTRA_OF = {
    "onnxruntime": "cpu",
    "torch": "torch",
    "accelerate": "train",
    "tensorrt": "tensorrt",
    "onnx": "export",
    "diffusers": "export",
    "tokenizers": "text",
    "transformers": "export",
    "matplotlib": "plot",
    "pandas": "pandas",
    "pyarrow": "parquet",
    "pydicom": "medical",
    "sklearn": "sklearn",
    "captum": "explain",
}
"""For each import name, the extra that an error names unless the caller says otherwise."""


def require(module: str, *, extra: str | None = None) -> ModuleType:
    """Imports an optional package.

    Args:
        module: Import name, possibly dotted, such as ``"onnxruntime"``.
        extra: The extra to name in the error; default from :data:`EXTRA_OF`.

    Returns:
        The module.

    Raises:
        MissingDependencyError: The package is not installed.

    Example:
        >>> from fastdc.support import require
        >>> require("numpy").__name__
        'numpy'
    """
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != root:  # the package is installed, but one of its own needs is not
            raise
        raise _missing(root, extra) from None


def check_installed(module: str, *, extra: str | None = None) -> None:
    """As :func:`require`, without importing the package: for the checks before one that takes seconds to import.

    Args:
        module: Import name.
        extra: The extra to name in the error; default from :data:`EXTRA_OF`.

    Raises:
        MissingDependencyError: The package is not installed.

    Example:
        >>> from fastdc.support import check_installed
        >>> check_installed("numpy")
    """
    if not installed(module):
        raise _missing(module, extra)


def _missing(module: str, extra: str | None) -> MissingDependencyError:
    from fastdc.support.distribution import install_hint

    hint = install_hint(extra or EXTRA_OF.get(module, "dev"))
    return MissingDependencyError(f"{module} is needed here and is not installed: {hint}", name=module)


def installed(module: str) -> bool:
    """Says whether a package can be imported, without importing it.

    Args:
        module: Import name, possibly dotted.

    Returns:
        True if the package is installed.

    Example:
        >>> from fastdc.support import installed
        >>> installed("numpy"), installed("no_such_package")
        (True, False)
    """
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def version_of(*distributions: str) -> str | None:
    """Finds the version of the first of several distributions that is installed.

    Args:
        distributions: Names as pip knows them, such as ``"onnxruntime-gpu"``.

    Returns:
        The version, or None if none of them is installed.

    Example:
        >>> from fastdc.support import version_of
        >>> version_of("no-such-package", "numpy") == np.__version__
        True
    """
    import importlib.metadata  # takes a while, and --help does without

    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
