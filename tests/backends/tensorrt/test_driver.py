"""The driver: machines that are refused, and a GPU's properties and context as libcuda reports them."""

from collections.abc import Callable
from typing import Any

import pytest

from fastdc import BackendError
from fastdc.backends.tensorrt import driver
from fastdc.backends.tensorrt.driver import Gpu, check_driver, gpu, use_device
from fastdc.diffusion import kernels
from helpers.libcuda_double import Driver

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets the machine's driver (an exception for none) and the number of devices that fastdc's kernels find."""

    def use(found: Any, devices: int = 1) -> None:
        def load() -> Any:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(driver, "libcuda", load)
        monkeypatch.setattr(kernels, "cuda_device_count", lambda: devices)

    return use


def test_a_machine_without_a_gpu_is_refused_in_one_line(machine: Machine) -> None:
    cases = (
        (OSError("libcuda.so.1"), 1, r"no driver is installed \(libcuda.so.1\)"),
        (Driver(status=100), 1, r"its driver does not start \(cuInit: 100\)"),
        (Driver(devices=0), 1, "the driver finds none"),
        (Driver(), 0, "fastdc's CUDA kernels, and they find no device"),
    )
    for found, devices, message in cases:
        machine(found, devices)
        with pytest.raises(BackendError, match=f"^backend tensorrt needs .*{message}") as caught:
            check_driver()
        assert "\n" not in str(caught.value)
    machine(Driver())
    check_driver()


def test_a_gpu_is_what_the_driver_says(machine: Machine) -> None:
    machine(Driver(devices=2))
    assert gpu(1) == Gpu("GPU 41", "9.0", 13)
    for missing in (2, -1):
        with pytest.raises(BackendError, match=f"device 'cuda:{missing}' was asked for, but there are 2 CUDA devices"):
            gpu(missing)
    machine(Driver(status=100))
    for call in (gpu, use_device):
        with pytest.raises(BackendError, match="its driver does not start"):
            call(0)
    machine(Driver(broken="cuDeviceGetAttribute"))
    with pytest.raises(BackendError, match="the CUDA driver fails on cuDeviceGetAttribute: 999"):
        gpu(0)


def test_a_thread_is_given_the_context_that_cudas_runtime_shares(machine: Machine) -> None:
    found = Driver(devices=2)
    machine(found)
    for index in (1, 1, 0):
        use_device(index)
    assert found.retained == [41, 40], "once per device"
    assert found.current == [0x1000 + 41, 0x1000 + 41, 0x1000 + 40]
    machine(Driver(broken="cuCtxSetCurrent"))
    with pytest.raises(BackendError, match="the CUDA driver fails on cuCtxSetCurrent: 201"):
        use_device(1)
