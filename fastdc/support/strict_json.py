"""JSON from files of unknown origin, read strictly."""

import json
from pathlib import Path
from typing import Any

from fastdc.support.exceptions import BundleError

_MAX_INTEGER = 2**63  # no field needs more, and converting a larger one to a float may overflow


def strict_json(content: bytes, path: Path, *, infinities: bool = False) -> Any:
    """Parses JSON without Python's extensions: NaN and Infinity are refused, and so are integers above 2^63.

    Args:
        content: Bytes of a file.
        path: Name of the file, for the message.
        infinities: Whether to accept Infinity and -Infinity, which other tools write.

    Returns:
        The parsed value.

    Raises:
        BundleError: The content is not valid JSON in this sense.

    Example:
        >>> from fastdc.support import strict_json
        >>> strict_json(b'{"draws": 16}', folder / "plan.json")
        {'draws': 16}
    """

    def constant(name: str) -> Any:
        if infinities and name != "NaN":
            return float(name)
        raise ValueError(f"{name} is not a JSON number")

    def integer(digits: str) -> int:
        value = int(digits) if len(digits) < 32 else _MAX_INTEGER + 1
        if abs(value) > _MAX_INTEGER:
            raise ValueError(f"the number {digits[:20]}... is too large")
        return value

    try:
        return json.loads(content, parse_constant=constant, parse_int=integer)
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:  # its text differs between versions of Python
        raise BundleError(f"{path} is not valid JSON: nested too deeply") from None
