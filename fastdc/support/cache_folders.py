"""Where fastdc keeps what it can make again: engines, and the choices of ``fastdc bench``."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """``$FASTDC_CACHE/KIND``, or ``fastdc/KIND`` in the user's cache folder (XDG_CACHE_HOME, ~/.cache).

    Args:
        kind: Name of the folder, such as "engines".

    Raises:
        RuntimeError: No variable names a folder, and the user has no home.

    Example:
        >>> from fastdc.support import cache_folder
        >>> cache_folder("engines").name
        'engines'
    """
    own = os.environ.get("FASTDC_CACHE")
    if own:
        return Path(own) / kind
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"  # the XDG standard ignores relative paths
    return base / "fastdc" / kind
