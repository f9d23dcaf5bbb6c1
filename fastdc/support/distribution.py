"""The name under which fastdc is distributed, its version, and the command that installs one of its extras.

The import name and the command are ``fastdc``. On the package index that name belongs to another project, so the
distribution has a name of its own. It is written here and in pyproject.toml, and nowhere else.
"""

import importlib.metadata
import json
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "fast-diffusion-classifier"


def _find() -> importlib.metadata.Distribution | None:
    """The installed distribution; None if fastdc was imported from sources that were never installed."""
    try:
        return importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_version() -> str:
    """The version of the installed package. It is written once, in pyproject.toml.

    Example:
        >>> fastdc.__version__.count(".")
        2
    """
    found = _find()
    return "0+unknown" if found is None else found.version


def install_hint(*extras: str) -> str:
    """The command that installs extras of fastdc: by name, or from the clone that fastdc was installed from.

    Args:
        extras: Names of extras, such as "cpu".

    Returns:
        A shell command: ``pip install 'fast-diffusion-classifier[cpu]'``, or, after an installation from a clone,
        ``cd CLONE && pip install -c constraints.txt '.[cpu]'``, whose pins keep torch at a tested version.

    Example:
        >>> from fastdc.support import install_hint
        >>> install_hint("cpu", "export").endswith("[cpu,export]'")
        True
    """
    chosen = ",".join(extras)
    folder, editable = _clone()
    if folder is None:
        return f"pip install '{DISTRIBUTION}[{chosen}]'"
    return f"cd {shlex.quote(str(folder))} && pip install -c constraints.txt {'-e ' * editable}'.[{chosen}]'"


def _clone() -> tuple[Path | None, bool]:
    """The clone that fastdc was installed from or is imported from, if there is one, and whether it is used itself."""
    found = _find()
    if found is None:
        return Path(__file__).parents[2], True
    # The origin of an installation from a folder, https://packaging.python.org/specifications/direct-url.
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    folder = Path(unquote(urlsplit(origin.get("url", "")).path))
    if "dir_info" not in origin or not (folder / "constraints.txt").is_file():
        return None, False
    return folder, bool(origin["dir_info"].get("editable"))
