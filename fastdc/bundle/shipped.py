"""The models that come with fastdc, and the folder that a model's name stands for."""

import os
from pathlib import Path

from fastdc.bundle.format import MANIFEST
from fastdc.bundle.place import recover
from fastdc.support import BundleError, InputError, did_you_mean, shown

_SHIPPED = Path(__file__).resolve().parents[1] / "models"


def shipped_models() -> tuple[str, ...]:
    """Names of the models that come with fastdc.

    Example:
        >>> fastdc.shipped_models()
        ('digits', 'digits-mlp', 'mnist', 'phantoms', 'shapes')
    """
    return tuple(sorted(path.name for path in _SHIPPED.iterdir() if (path / MANIFEST).is_file()))


def find_model(model: str | os.PathLike[str]) -> Path:
    """The folder of a model.

    Args:
        model: Name of a shipped model, or a folder. A folder with the name of a shipped model needs a separator:
            ``./digits``.

    Raises:
        InputError: The model is neither a name nor a path.
        BundleError: There is neither a shipped model nor a folder of that name.

    Example:
        >>> from fastdc.bundle import find_model
        >>> find_model("digits").name
        'digits'
    """
    path, name = folder_of(model), os.fspath(model)
    if name in shipped_models():
        return _SHIPPED / name
    recover(path)
    if not name or not path.exists():
        folders = {str(found.parent) for found in path.parent.glob(f"*/{MANIFEST}")}
        meant = did_you_mean(name, {*shipped_models(), *folders})
        raise BundleError(f"no model {shown(name)}: {_expected()}{meant}")
    return path


def folder_of(model: str | os.PathLike[str]) -> Path:
    """The path of a bundle, or a model's name, that a user gave.

    Raises:
        InputError: It is something else.
        BundleError: It is empty, or can be no path.
    """
    place = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    if not isinstance(place, str):
        raise InputError(f"model must be the name of a shipped model or a bundle folder, got {shown(model)}")
    if not place or "\0" in place:
        raise BundleError(f"no model {shown(place)}: {_expected()}")
    return Path(place)


def place_of(folder: Path) -> str:
    """What :func:`find_model` finds a folder by, from any working folder and, for shipped models, any installation."""
    shipped = folder.parent == _SHIPPED and folder.name in shipped_models()
    return folder.name if shipped else os.path.abspath(folder)


def _expected() -> str:
    return f"expected a bundle folder or one of {', '.join(shipped_models())}"
