"""Where things lie in the repository, and the shipped models in the installed package."""

import os
from pathlib import Path

import fastdc

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
SHIPPED = Path(fastdc.__file__).parent / "models"


def with_helpers() -> dict[str, str]:
    """The environment of a subprocess that imports helpers of the tests, as the tests themselves do."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
