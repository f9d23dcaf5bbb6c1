"""Public names of a wing that need an optional package, imported when they are first used (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose `modules` are imported on first use.

    Args:
        package: The package's ``__name__``.
        modules: For each public name, the module of the package that defines it.

    Example:
        >>> lazy_names("fastdc.support", {"whole": "checks"})("whole")("draws", 16)
        16
    """

    def getter(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return getter
