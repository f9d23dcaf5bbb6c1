"""The exceptions of fastdc. Each message is one line that says what was expected and what came.

Every class also derives from the built-in exception a Python user would expect, so ``except ValueError`` keeps working.
"""

from typing import Any


class FastdcError(Exception):
    """Base class: everything that fastdc raises on purpose."""


class InputError(FastdcError, ValueError):
    """An argument, image or file given by the user cannot be used (shape, dtype, range, NaN, empty, unreadable)."""


class BundleError(FastdcError, ValueError):
    """A bundle is missing, corrupt, truncated, hostile, or of a newer format version."""


class MissingDependencyError(FastdcError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class BackendError(FastdcError, RuntimeError):
    """A backend, device or precision that was asked for is not available or failed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. What was finished is not lost: see ``result``.

    Attributes:
        result: A ``Classification`` of the images that were finished, with their indices; None if there are none.
    """

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
