"""The exceptions of fastdc. Each message is one line that says what was expected and what was found.

Every class also derives from the built-in exception that a Python user would expect, so ``except ValueError`` works.
"""

from typing import Any


class FastdcError(Exception):
    """Base class of the exceptions that fastdc raises on purpose.

    Attributes:
        result: What a run had finished when it failed, where its method says so; otherwise None.
    """

    result: Any = None


class InputError(FastdcError, ValueError):
    """An argument, image or file of the user cannot be used (shape, dtype, range, NaN, empty, unreadable)."""


class BundleError(FastdcError, ValueError):
    """A bundle is missing, corrupt, truncated, hostile, or of a newer format version."""


class MissingDependencyError(FastdcError, ImportError):
    """An optional package is not installed. The message names the extra that installs it."""


class BackendError(FastdcError, RuntimeError):
    """A backend, device or precision that the user asked for is not available, or it failed."""


class PromptWarning(UserWarning):
    """A prompt says more than the text encoder reads; the message names the prompt and what is lost."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. The images that were finished are in ``result``.

    Attributes:
        result: A ``Classification`` of the images that were finished, with their indices; None if there are none.
    """

    def __init__(self, message: str, result: Any = None) -> None:  # pickle gives the message alone
        super().__init__(message)
        self.result = result
