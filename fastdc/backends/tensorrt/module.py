"""TensorRT as a parameter: ``tensorrt`` (10 and 11, data-centre and consumer GPUs) or ``tensorrt_rtx`` (RTX GPUs).

Both have the same classes, so everything in this package takes a :class:`TensorRT` and asks no more which one it is.
What differs:

* ``tensorrt`` needs a driver for anything, and a runtime object made without one takes the process down with it. The
  driver is therefore asked first, through libcuda itself.
* ``tensorrt_rtx`` builds on a machine without a GPU; only running needs one.

What has not run on a GPU: :func:`gpu`, :func:`use_device` and everything after a driver was found.
"""

import ctypes
import importlib
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastdc.backends.protocol import one_line
from fastdc.diffusion import kernels
from fastdc.support import BackendError, InputError, MissingDependencyError, installed

FLAVOURS = ("tensorrt", "tensorrt_rtx")
_MAJORS = {"tensorrt": (10, 11), "tensorrt_rtx": (1,)}
_KEPT_MESSAGES = 1000

# cuda.h: CUdevice_attribute
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True, eq=False)
class TensorRT:
    """A TensorRT that can be used.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``, or what stands in for it in a test.
        flavour: One of :data:`FLAVOURS`.
        version: All four parts, such as "11.4.0.106": plans and timing caches fit no other.
        logger: Of all builders, parsers and runtimes; keeps what they say.
    """

    module: Any
    flavour: str
    version: str
    logger: Any

    @property
    def name(self) -> str:
        """For messages, such as "TensorRT 11.4.0.106"."""
        return f"{'TensorRT-RTX' if self.flavour == 'tensorrt_rtx' else 'TensorRT'} {self.version}"

    def make(self, kind: str) -> Any:
        """A "Builder" or a "Runtime".

        Raises:
            BackendError: It cannot be made, as on a GPU that this version does not know.
        """
        with self.refusals(f"makes no {kind}"):
            return getattr(self.module, kind)(self.logger)

    @contextmanager
    def refusals(self, what: str) -> Iterator[None]:
        """Makes one line of what the bindings raise: some calls of theirs return False, others raise, or both.

        Raises:
            BackendError: What was called raised.
        """
        mark = self.logger.mark()
        try:
            yield
        except BackendError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:  # TypeError: a constructor that got nothing
            raise BackendError(f"{self.name} {what}: {self.logger.error(mark, one_line(error))}") from None


@dataclass(frozen=True)
class Gpu:
    """What a plan depends on besides TensorRT itself.

    Attributes:
        name: As the driver says it.
        sm: Compute capability, such as "9.0".
        driver: Major version of CUDA that the driver brings.
    """

    name: str
    sm: str
    driver: int


def open_tensorrt(flavour: str = "auto", *, need_gpu: bool = True) -> TensorRT:
    """Imports TensorRT and checks that it can be used.

    Args:
        flavour: One of :data:`FLAVOURS`; "auto": ``tensorrt`` where it is installed, else ``tensorrt_rtx``.
        need_gpu: Refuse where there is no GPU. False: only ``tensorrt_rtx``, which then builds and cannot run.

    Raises:
        InputError: Unknown flavour.
        MissingDependencyError: It is not installed.
        BackendError: There is no GPU or driver, the version is not known, or its libraries are missing.
    """
    if flavour not in ("auto", *FLAVOURS):
        raise InputError(f"flavour must be auto or one of {', '.join(FLAVOURS)}, got {flavour!r}")
    if flavour == "auto":
        flavour = next(filter(installed, FLAVOURS), "tensorrt")
    if not installed(flavour):
        raise MissingDependencyError(
            f"{flavour} is needed here and is not installed: pip install 'fastdc[tensorrt]', or, for RTX GPUs alone, "
            "'fastdc[tensorrt-rtx]'",
            name=flavour,
        )
    if need_gpu or flavour == "tensorrt":
        check_driver()
    return _opened(flavour)


@cache
def _opened(flavour: str) -> TensorRT:
    try:
        module = importlib.import_module(flavour)
    except Exception as error:  # a missing library is an ImportError, a damaged one may be anything
        raise BackendError(f"{flavour} is installed and cannot be loaded: {one_line(error)}") from None
    return use_module(module, flavour)


def use_module(module: Any, flavour: str) -> TensorRT:
    """A :class:`TensorRT` of a module that is imported already, after checking its version.

    Raises:
        BackendError: The version is not known.
    """
    version = str(getattr(module, "__version__", "?"))
    major = version.partition(".")[0]
    known = _MAJORS[flavour]
    if not major.isdigit() or int(major) not in known or not hasattr(module, "OnnxParser"):
        wanted = " or ".join(map(str, known))
        raise BackendError(f"{flavour} {wanted} with builder and parser is needed, found {version}")
    return TensorRT(module, flavour, version, make_logger(module))


def check_driver() -> None:
    """Refuses a machine without a GPU, before any object of TensorRT is made.

    Raises:
        BackendError: There is no driver, it does not start, or it has no device.
    """
    try:
        driver = _libcuda()
    except OSError:
        raise BackendError("backend tensorrt needs an NVIDIA GPU: no driver is installed (libcuda.so.1)") from None
    status = int(driver.cuInit(0))
    if status:
        raise BackendError(f"backend tensorrt needs an NVIDIA GPU: its driver does not start (cuInit: {status})")
    if not _device_count(driver):
        raise BackendError("backend tensorrt needs an NVIDIA GPU: the driver finds none")
    if not kernels.cuda_device_count():  # the noise and the errors run beside the engine
        raise BackendError(
            "backend tensorrt needs fastdc's CUDA kernels, and they find no device: this build has none, or the "
            "driver is older than its CUDA"
        )


def _libcuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _device_count(driver: Any) -> int:
    count = ctypes.c_int(0)
    return 0 if driver.cuDeviceGetCount(ctypes.byref(count)) else count.value


def gpu(index: int = 0) -> Gpu:
    """A GPU as its driver describes it.

    Raises:
        BackendError: There is none of that number, or the driver fails.
    """
    check_driver()
    driver = _libcuda()
    count = _device_count(driver)
    if not 0 <= index < count:
        raise BackendError(f"device 'cuda:{index}' was asked for, but there are {count} CUDA devices")
    device, major, minor, version = (ctypes.c_int(0) for _ in range(4))
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", version.value // 1000)


def use_device(index: int) -> None:
    """Makes a GPU the calling thread's own, as TensorRT wants it; a thread starts with none.

    Raises:
        BackendError: The driver fails.
    """
    _call(_libcuda(), "cuCtxSetCurrent", ctypes.c_void_p(_primary_context(index)))


@cache
def _primary_context(index: int) -> int:
    """The context of a GPU that all of CUDA's runtime shares; held until the process ends."""
    check_driver()
    driver = _libcuda()
    device, context = ctypes.c_int(0), ctypes.c_void_p(None)
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return int(context.value or 0)


def _call(driver: Any, name: str, *arguments: Any) -> None:
    status = int(getattr(driver, name)(*arguments))
    if status:
        raise BackendError(f"the CUDA driver fails on {name}: {status}")


def make_logger(module: Any) -> Any:
    """A logger that keeps what is said and prints nothing.

    ``mark()`` is a place in it, ``since(mark)`` what came after, and ``error(mark, otherwise)`` the errors of that in
    one line, or else something else.
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
            line = f"{severity.name}: {' '.join(msg.split())[:500]}"
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
            return "; ".join(dict.fromkeys(lines))[:500] or otherwise

    return Logger()
