"""A double of libcuda, NVIDIA's driver, on a machine with GPUs or on one where it fails."""

from typing import Any


class Driver:
    """The part of libcuda that fastdc uses.

    Args:
        status: Result of cuInit.
        devices: Number of GPUs.
        broken: Name of a call that fails.

    Attributes:
        retained: Devices whose primary context was retained.
        current: Contexts that were made current.
    """

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
