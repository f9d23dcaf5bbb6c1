"""The models that come with fastdc, and where a model's name leads."""

import os
from pathlib import Path

from fastdc.support import BundleError

_SHIPPED = Path(__file__).resolve().parents[1] / "models"


def shipped_models() -> tuple[str, ...]:
    """Names of the models that come with fastdc."""
    return tuple(sorted(path.name for path in _SHIPPED.iterdir() if (path / "fastdc.json").is_file()))


def find_model(model: str | os.PathLike[str]) -> Path:
    """The folder of a shipped model's name, or the given folder. A folder needs a separator or must not be a name.

    Raises:
        BundleError: Neither.
    """
    name = os.fspath(model)
    if name in shipped_models():
        return _SHIPPED / name
    path = Path(name)
    if not path.exists():
        raise BundleError(f"no model {name!r}: expected a bundle folder or one of {', '.join(shipped_models())}")
    return path
