"""Memory of a process: what it takes of the machine's and, on a GPU, of the device's.

The peak of resident memory comes from /proc. ``getrusage`` has one too, but a new process inherits its parent's there.
On a device, the libraries keep what they once took, so that what is taken at the end is the peak. Nothing of the
device's part has run on a GPU.
"""

import ctypes
import re
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_peak(status: Path = _STATUS) -> int | None:
    """The most resident memory that this process has had, in bytes; None where the system does not tell."""
    return _field("VmHWM", status)


def resident(status: Path = _STATUS) -> int | None:
    """The resident memory of this process, in bytes; None where the system does not tell."""
    return _field("VmRSS", status)


def _field(name: str, status: Path) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+([0-9]+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return 1024 * int(found[1]) if found else None


def device_memory_taken(device: str) -> int | None:
    """Memory of a CUDA device that is taken now, by whichever process, in bytes; None without a driver that tells."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, context = ctypes.c_int(0), ctypes.c_void_p(None)
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    number = int(device.partition(":")[2] or 0)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(handle), number)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle)
        or driver.cuCtxSetCurrent(context)
        or driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    )
    return None if failed else total.value - free.value
