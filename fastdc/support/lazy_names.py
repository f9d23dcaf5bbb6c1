"""Public names of a wing that need an optional package, imported on first use (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes the ``__getattr__`` of a package that imports some of its modules on first use.

    Args:
        package: The ``__name__`` of the package.
        modules: For each public name, the module of the package that defines it; a name that its own module does not
            define is the module.

    Returns:
        A function from a name to its value. It raises AttributeError for an unknown name.

    Example:
        >>> from fastdc.support import lazy_names
        >>> lazy_names("fastdc.support", {"whole": "checks"})("whole")("draws", 16)
        16
    """

    def getter(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{modules[name]}")
        return getattr(module, name, module) if modules[name] == name else getattr(module, name)

    return getter
