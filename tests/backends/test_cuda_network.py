"""Networks and slots on device arrays, on a double of cuda-core."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastdc import DiffusionClassifier
from fastdc.backends import AbstractSlot, halves
from fastdc.backends.cuda_network import DeviceBuffers, DeviceNetwork
from helpers.cuda_doubles import Core, HostedArrays
from helpers.worlds import SHAPE, classifier, denoiser, gaussian, unit_images

WORLD = gaussian(3)


def test_a_slots_work_comes_after_the_networks_writes() -> None:
    core = Core()
    network = DeviceNetwork(HostedArrays(core))
    slot = DeviceBuffers(HostedArrays(core), network.home, 2, SHAPE, "float32")
    images = network.place(np.zeros((2, *SHAPE), np.float32))
    network.write(images[1:], np.ones((1, *SHAPE), np.float32))
    slot.write(slot.cells, np.ones((2, 3), np.int32))
    np.testing.assert_array_equal(slot.read(images, 2)[:, 0, 0, 0], [0, 1])


class HostedSlot(DeviceBuffers):
    """Runs the Gaussian denoiser on device buffers in the CPU's memory."""

    def run(self, count: int) -> None:
        sample, timestep, labels, output = (
            buffer.numpy[:count] for buffer in (self.sample, self.timestep, self.class_labels, self.output)
        )
        output[:] = denoiser(WORLD)(sample, timestep, labels)


class HostedNetwork(DeviceNetwork):
    backend, precision = "hosted", "float32"

    def __init__(self, batch: int, **options: Any) -> None:
        core = Core(lazy=False)
        super().__init__(HostedArrays(core), **options)
        self.batch = batch
        self.sizes: tuple[int, ...] | None = halves(batch)
        self.slots: tuple[AbstractSlot, ...] = tuple(
            HostedSlot(HostedArrays(core), self.home, batch, SHAPE, "float32") for _ in range(2)
        )
        self.captures = 0

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        self.captures += super().capture(slot, launch) is not None
        return launch  # the double's own capture does not include the kernels


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("method", ["dc", "denoised", "apndc-x"])
def test_a_network_on_device_arrays_gives_the_numbers_of_the_cpu(method: str, graphs: bool) -> None:
    images = unit_images(5)
    options: dict[str, Any] = {"draws": 6}
    if method != "dc":
        options = {"draws": 4, "method": method, "sigma": 0.1, "levels": (0.3, 2.0), "denoiser": "mean"}
    network = HostedNetwork(8, graphs=graphs)
    clf = DiffusionClassifier(WORLD.model, network)
    want = classifier(WORLD).errors(images, **options).errors
    for _ in range(2):
        np.testing.assert_array_equal(clf.errors(images, **options).errors, want)
    assert clf.network.device == "cuda:0"
    assert bool(network.captures) == graphs


def test_other_slots_are_not_captured() -> None:
    network = HostedNetwork(2)
    other: Any = object()
    assert DeviceNetwork.capture(network, other, lambda: None) is None
