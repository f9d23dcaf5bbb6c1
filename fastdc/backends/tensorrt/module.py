"""TensorRT as a parameter: ``tensorrt`` (10 and 11, data-centre and consumer GPUs) or ``tensorrt_rtx`` (RTX GPUs).

Both modules have the same classes. Everything in this package takes a :class:`TensorRT` and rarely asks which one it
is. They differ in that ``tensorrt`` needs a driver for everything, while ``tensorrt_rtx`` builds engines on a machine
without a GPU and needs one only to run them.
"""

import importlib
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastdc.backends.tensorrt import driver
from fastdc.support import BackendError, MissingDependencyError, checks, install_hint, installed, one_line, shorten

FLAVOURS = ("tensorrt", "tensorrt_rtx")
_MAJORS = {"tensorrt": (10, 11), "tensorrt_rtx": (1,)}
_KEPT_MESSAGES = 1000


@dataclass(frozen=True, eq=False)
class TensorRT:
    """A TensorRT that can be used.

    Attributes:
        module: The module ``tensorrt`` or ``tensorrt_rtx``, or a double of it.
        flavour: One of :data:`FLAVOURS`.
        version: Version in all four parts, such as "11.4.0.106"; plans and timing caches fit no other version.
        logger: Logger of all builders, parsers and runtimes; it keeps their messages.
    """

    module: Any
    flavour: str
    version: str
    logger: Any

    @property
    def name(self) -> str:
        """Name for messages, such as "TensorRT 11.4.0.106"."""
        return f"{'TensorRT-RTX' if self.flavour == 'tensorrt_rtx' else 'TensorRT'} {self.version}"

    def make(self, kind: str) -> Any:
        """A new "Builder" or "Runtime".

        Raises:
            BackendError: TensorRT cannot make one, for example on a GPU that this version does not know.
        """
        with self.refusals(f"makes no {kind}"):
            return getattr(self.module, kind)(self.logger)

    @contextmanager
    def refusals(self, what: str) -> Iterator[None]:
        """Turns an exception of the bindings into one line; some of their calls return False instead, or do both.

        Args:
            what: What TensorRT refuses, as a predicate.

        Raises:
            BackendError: The code in the context raised.
        """
        mark = self.logger.mark()
        try:
            yield
        except BackendError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:  # TypeError: a constructor that got nothing
            raise BackendError(f"{self.name} {what}: {self.logger.error(mark, one_line(error))}") from None


def open_tensorrt(flavour: str = "auto") -> TensorRT:
    """Imports TensorRT on a machine with a GPU.

    Args:
        flavour: One of :data:`FLAVOURS`; "auto" is ``tensorrt`` if it is installed, else ``tensorrt_rtx``.

    Raises:
        InputError: The flavour is unknown.
        MissingDependencyError: The module is not installed.
        BackendError: There is no GPU or driver, the version is unknown, or libraries of TensorRT are missing.
    """
    checks.one_of("flavour", flavour, ("auto", *FLAVOURS))
    if flavour == "auto":
        flavour = next(filter(installed, FLAVOURS), "tensorrt")
    if not installed(flavour):
        raise MissingDependencyError(
            f"{flavour} is needed here and is not installed: {install_hint('tensorrt')}, or, for RTX GPUs alone, "
            f"{install_hint('tensorrt-rtx')}",
            name=flavour,
        )
    driver.check_driver()
    return import_tensorrt(flavour)


@cache
def import_tensorrt(flavour: str) -> TensorRT:
    """Imports TensorRT without checking for a GPU, which ``tensorrt_rtx`` does not need to build engines.

    It is opened once per process, because TensorRT keeps the first logger that it is given.

    Args:
        flavour: One of :data:`FLAVOURS`.

    Raises:
        BackendError: The version is unknown, or libraries of TensorRT are missing.
    """
    try:
        module = importlib.import_module(flavour)
    except Exception as error:  # a missing library raises an ImportError, a damaged one may raise anything
        raise BackendError(f"{flavour} is installed and cannot be loaded: {one_line(error)}") from None
    return use_module(module, flavour)


def use_module(module: Any, flavour: str) -> TensorRT:
    """A :class:`TensorRT` of a module that is imported already, after checking its version.

    Args:
        module: The module.
        flavour: "tensorrt" or "tensorrt_rtx".

    Raises:
        BackendError: The version is unknown.

    Example:
        >>> import tensorrt_rtx
        >>> from fastdc.backends.tensorrt import use_module
        >>> use_module(tensorrt_rtx, "tensorrt_rtx").flavour
        'tensorrt_rtx'
    """
    version = str(getattr(module, "__version__", "?"))
    major = version.partition(".")[0]
    known = _MAJORS[flavour]
    if not major.isdigit() or int(major) not in known or not hasattr(module, "OnnxParser"):
        wanted = " or ".join(map(str, known))
        raise BackendError(f"{flavour} {wanted} with builder and parser is needed, found {version}")
    return TensorRT(module, flavour, version, _make_logger(module))


def _make_logger(module: Any) -> Any:
    """A logger that keeps messages and prints nothing.

    ``mark()`` is a position in the log, ``since(mark)`` gives the messages after it, and ``error(mark, otherwise)``
    gives the errors among them in one line, or `otherwise` if there are none.
    """

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._said: deque[tuple[int, bool, str]] = deque(maxlen=_KEPT_MESSAGES)
            self._count = 0

        def log(self, severity: Any, msg: str) -> None:
            if severity > module.ILogger.Severity.INFO:
                return
            is_error = severity <= module.ILogger.Severity.ERROR
            line = f"{severity.name}: {shorten(msg, 500)}"
            with self._lock:
                self._count += 1
                self._said.append((self._count, bool(is_error), line))

        def mark(self) -> int:
            return self._count

        def since(self, mark: int) -> tuple[str, ...]:
            with self._lock:
                return tuple(line for number, _, line in self._said if number > mark)

        def error(self, mark: int, otherwise: str = "no reason given") -> str:
            with self._lock:
                lines = [line.partition(": ")[2] for number, is_error, line in self._said if is_error and number > mark]
            return shorten("; ".join(dict.fromkeys(lines)), 500) or otherwise

    return Logger()
