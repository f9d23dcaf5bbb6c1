"""TensorRT as a module: what is refused before anything of it is made, the versions, the log, and libcuda's answers."""

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fastdc.backends.tensorrt import module
from fastdc.backends.tensorrt.module import FLAVOURS, Gpu, check_driver, gpu, open_tensorrt, use_device, use_module
from fastdc.diffusion import kernels
from fastdc.support.exceptions import BackendError, InputError, MissingDependencyError


class Severity(int):
    """Stands for ILogger.Severity, whose lower values are worse."""

    @property
    def name(self) -> str:
        return ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")[self]


class FakeLogger:
    Severity = SimpleNamespace(ERROR=Severity(1), INFO=Severity(3))


def fake(version: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(__version__=version, ILogger=FakeLogger, OnnxParser=object, **more)


class Driver:
    """libcuda of a machine with GPUs, or of one that fails."""

    def __init__(self, *, status: int = 0, devices: int = 1, broken: str = "") -> None:
        self.status, self.devices, self.broken = status, devices, broken
        self.retained: list[int] = []
        self.current: list[int] = []

    def cuInit(self, flags: int) -> int:  # noqa: N802 (the driver's own names)
        assert flags == 0
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = 40 + index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        assert size == 256
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 999 if self.broken == "cuDeviceGetAttribute" else int(device.value < 40)

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13020
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        self.retained.append(device.value)
        context._obj.value = 0x1000 + device.value
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        self.current.append(context.value)
        return 201 if self.broken == "cuCtxSetCurrent" else 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which driver the machine has, or an exception for none, and how many devices our kernels find."""

    def use(driver: Any, devices: int = 1) -> None:
        def load() -> Any:
            if isinstance(driver, Exception):
                raise driver
            return driver

        monkeypatch.setattr(module, "_libcuda", load)
        monkeypatch.setattr(kernels, "cuda_device_count", lambda: devices)

    return use


def test_a_machine_without_a_gpu_is_refused_in_one_line(machine: Any) -> None:
    cases = (
        (OSError("libcuda.so.1"), 1, r"no driver is installed \(libcuda.so.1\)"),
        (Driver(status=100), 1, r"its driver does not start \(cuInit: 100\)"),
        (Driver(devices=0), 1, "the driver finds none"),
        (Driver(), 0, "fastdc's CUDA kernels, and they find no device"),
    )
    for driver, devices, message in cases:
        machine(driver, devices)
        with pytest.raises(BackendError, match=f"^backend tensorrt needs .*{message}") as caught:
            check_driver()
        assert "\n" not in str(caught.value)
    machine(Driver())
    check_driver()


def test_the_driver_is_asked_before_the_module_is_imported(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime object without a driver ends the process, so nothing of TensorRT may exist by then."""
    machine(OSError("no driver"))
    monkeypatch.setattr(module, "installed", lambda name: name in FLAVOURS)
    monkeypatch.setattr(module, "_opened", lambda flavour: pytest.fail("imported"))
    for flavour, need in (("auto", True), ("tensorrt", True), ("tensorrt", False), ("tensorrt_rtx", True)):
        with pytest.raises(BackendError, match="no driver is installed"):
            open_tensorrt(flavour, need_gpu=need)


def test_what_is_not_installed_is_named_with_its_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda name: False)
    for flavour, name in (("auto", "tensorrt"), ("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt_rtx")):
        with pytest.raises(MissingDependencyError, match=rf"^{name} is needed .*pip install 'fastdc\[tensorrt\]'"):
            open_tensorrt(flavour)
    with pytest.raises(InputError, match="flavour must be auto or one of tensorrt, tensorrt_rtx, got 'trt'"):
        open_tensorrt("trt")


def test_a_module_that_cannot_be_loaded_says_why(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(Driver())
    monkeypatch.setattr(module, "installed", lambda name: True)

    def load(name: str) -> Any:
        raise ImportError(f"libnvinfer.so.11:\ncannot open shared object file for {name}")

    monkeypatch.setattr("importlib.import_module", load)
    module._opened.cache_clear()
    with pytest.raises(
        BackendError, match=r"^tensorrt is installed and cannot be loaded: libnvinfer.so.11: cannot open"
    ):
        open_tensorrt("tensorrt")


@pytest.mark.parametrize(
    ("flavour", "good", "bad"),
    [
        ("tensorrt", ("10.16.1.11", "11.4.0.106"), ("8.6.1", "9.3.0", "12.0.0.1", "?")),
        ("tensorrt_rtx", ("1.7.1.116",), ("2.0.0.1", "0.9", "11.4.0.106")),
    ],
)
def test_versions(flavour: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    for version in good:
        found = use_module(fake(version), flavour)
        assert (found.flavour, found.version) == (flavour, version)
        assert version in found.name
    for version in bad:
        with pytest.raises(BackendError, match=f"^{flavour} .* is needed, found {version.replace('?', '[?]')}$"):
            use_module(fake(version), flavour)
    without_builder = fake(good[0])
    del without_builder.OnnxParser  # the lean runtime's module
    with pytest.raises(BackendError, match="with builder and parser is needed"):
        use_module(without_builder, flavour)


def test_the_logger_keeps_what_is_said_since_a_mark() -> None:
    logger = use_module(fake("11.4.0.106"), "tensorrt").logger
    logger.log(Severity(1), "before")
    mark = logger.mark()
    assert logger.error(mark) == "no reason given"
    logger.log(Severity(2), "a\n  warning")
    logger.log(Severity(4), "chatter")
    for _ in range(2):
        logger.log(Severity(0), "it\nfailed")
    logger.log(Severity(1), "again")
    assert logger.since(mark) == (
        "WARNING: a warning",
        "INTERNAL_ERROR: it failed",
        "INTERNAL_ERROR: it failed",
        "ERROR: again",
    )
    assert logger.error(mark) == "it failed; again"


def test_a_gpu_is_what_the_driver_says(machine: Any) -> None:
    machine(Driver(devices=2))
    assert gpu(1) == Gpu("GPU 41", "9.0", 13)
    with pytest.raises(BackendError, match="device 'cuda:2' was asked for, but there are 2 CUDA devices"):
        gpu(2)
    machine(Driver(broken="cuDeviceGetAttribute"))
    with pytest.raises(BackendError, match="the CUDA driver fails on cuDeviceGetAttribute: 999"):
        gpu(0)


def test_a_thread_is_given_the_context_that_cudas_runtime_shares(machine: Any) -> None:
    driver = Driver(devices=2)
    machine(driver)
    module._primary_context.cache_clear()
    for index in (1, 1, 0):
        use_device(index)
    assert driver.retained == [41, 40], "once a device"
    assert driver.current == [0x1000 + 41, 0x1000 + 41, 0x1000 + 40]
    machine(Driver(broken="cuCtxSetCurrent"))
    with pytest.raises(BackendError, match="the CUDA driver fails on cuCtxSetCurrent: 201"):
        use_device(1)
    module._primary_context.cache_clear()


def test_the_real_module_opens_without_a_gpu() -> None:
    pytest.importorskip("tensorrt_rtx")
    trt = open_tensorrt("tensorrt_rtx", need_gpu=False)
    assert trt.version == sys.modules["tensorrt_rtx"].__version__
    assert trt is open_tensorrt("tensorrt_rtx", need_gpu=False), "one logger a process: TensorRT keeps the first"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(BackendError, match="no driver is installed"):
            open_tensorrt("tensorrt_rtx")
