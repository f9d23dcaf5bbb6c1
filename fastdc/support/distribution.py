"""The name under which fastdc is distributed, its version, and the command that installs one of its extras.

The import name and the command are ``fastdc``. On the package index that name belongs to another project, so the
distribution has a name of its own. It is written here and in pyproject.toml, and nowhere else.
"""

import importlib.metadata
import json

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
        A shell command such as ``pip install 'fast-diffusion-classifier[cpu]'``, without its quotes in a sentence.

    Example:
        >>> from fastdc.support import install_hint
        >>> install_hint("cpu", "export").endswith("[cpu,export]'")
        True
    """
    return f"pip install {_requirement()}[{','.join(extras)}]'"


def _requirement() -> str:
    """What to install, with the options that go before it and an opening quote."""
    found = _find()
    if found is None:
        return "-e '."
    # The origin of an installation from a folder, https://packaging.python.org/specifications/direct-url.
    folder = json.loads(found.read_text("direct_url.json") or "{}").get("dir_info")
    if folder is None:
        return f"'{DISTRIBUTION}"
    return "-e '." if folder.get("editable") else "'."
