"""JSON from files of unknown origin, read strictly."""

import json
from pathlib import Path
from typing import Any

from fastdc.support.exceptions import BundleError

_MAX_INTEGER = 2**63  # no field needs more, and floats overflow on integers that Python alone can hold


def strict_json(content: bytes, path: Path, *, infinities: bool = False) -> Any:
    """JSON as it is defined: no NaN or Infinity, which Python's reader lets through, and no integers beyond floats.

    Args:
        content: Of a file.
        path: Its name, for the message.
        infinities: Let Infinity and -Infinity through: other tools write them.

    Raises:
        BundleError: It is not.
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
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}") from None
