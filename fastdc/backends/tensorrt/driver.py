"""NVIDIA's driver, called through libcuda: whether there is a GPU, its properties, and its context.

``tensorrt`` needs a driver for everything, and a runtime object made without one ends the process. The driver is
therefore asked first, without TensorRT.

On a GPU none of this has run: :func:`gpu`, :func:`use_device` and everything after a driver was found.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastdc.diffusion import kernels
from fastdc.support import BackendError

# cuda.h: CUdevice_attribute
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """Properties of a GPU that a plan depends on.

    Attributes:
        name: Name that the driver gives.
        sm: Compute capability, such as "9.0".
        driver: Major version of CUDA that the driver supports.
    """

    name: str
    sm: str
    driver: int


@cache
def libcuda() -> Any:
    """The driver's library.

    Raises:
        OSError: No driver is installed.
    """
    return ctypes.CDLL("libcuda.so.1")


def check_driver() -> None:
    """Refuses a machine without a usable GPU.

    Raises:
        BackendError: There is no driver, it does not start, it finds no device, or fastdc's kernels find none.
    """
    try:
        driver = libcuda()
    except OSError:
        raise BackendError("backend tensorrt needs an NVIDIA GPU: no driver is installed (libcuda.so.1)") from None
    status = int(driver.cuInit(0))
    if status:
        raise BackendError(f"backend tensorrt needs an NVIDIA GPU: its driver does not start (cuInit: {status})")
    if not _device_count(driver):
        raise BackendError("backend tensorrt needs an NVIDIA GPU: the driver finds none")
    if not kernels.cuda_device_count():  # the noise and the errors are computed beside the engine
        raise BackendError(
            "backend tensorrt needs fastdc's CUDA kernels, and they find no device: this build has none, or the "
            "driver is older than its CUDA"
        )


def gpu(index: int = 0) -> Gpu:
    """Properties of a GPU, from the driver.

    Args:
        index: Number of the GPU.

    Raises:
        BackendError: The GPU does not exist, or the driver fails.
    """
    check_driver()
    driver = libcuda()
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
    """Makes a GPU current in the calling thread, as TensorRT requires; a new thread has no current GPU.

    Args:
        index: Number of the GPU.

    Raises:
        BackendError: The driver fails.
    """
    driver = libcuda()
    _call(driver, "cuCtxSetCurrent", ctypes.c_void_p(_primary_context(driver, index)))


@cache
def _primary_context(driver: Any, index: int) -> int:
    """The context of a GPU that the whole CUDA runtime shares; held until the process ends."""
    check_driver()
    device, context = ctypes.c_int(0), ctypes.c_void_p(None)
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return int(context.value or 0)


def _device_count(driver: Any) -> int:
    count = ctypes.c_int(0)
    return 0 if driver.cuDeviceGetCount(ctypes.byref(count)) else count.value


def _call(driver: Any, name: str, *arguments: Any) -> None:
    status = int(getattr(driver, name)(*arguments))
    if status:
        raise BackendError(f"the CUDA driver fails on {name}: {status}")
