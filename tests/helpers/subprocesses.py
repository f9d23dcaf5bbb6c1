"""Python programs that run in a process of their own."""

import subprocess
import sys

from fastdc.testing import WITHOUT


def without(modules: str, code: str) -> str:
    """Output of a Python program in a process that cannot import `modules` (separated by commas)."""
    command = [sys.executable, "-c", WITHOUT + code, modules]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
