"""Where things lie in the repository."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
SHIPPED = ROOT / "fastdc" / "models"


def with_helpers() -> dict[str, str]:
    """The environment of a subprocess that imports helpers of the tests, as the tests themselves do."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
