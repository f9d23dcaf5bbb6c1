"""Device arrays: on a stand-in for cuda-core whose streams are as late as they may be; and cuda-core's own names.

What a device alone can show is in tests/test_cuda_steps.py.
"""

import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastdc import BackendError, DiffusionClassifier, InputError
from fastdc.backends import cuda_arrays
from fastdc.backends.cuda_arrays import DeviceArray, DeviceArrays, DeviceBuffers, DeviceNetwork, device_index
from fastdc.backends.protocol import CAPTURING, AbstractSlot, halves
from fastdc.diffusion import kernels
from helpers.cuda_doubles import Builder, Core, HostedArrays
from helpers.worlds import SHAPE, classifier, denoiser, fails_with, gaussian, unit_images

ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = ["float32", "float16", ml_dtypes.bfloat16, "int32", "int64"]
WORLD = gaussian(3)


@pytest.fixture
def arrays() -> HostedArrays:
    return HostedArrays(Core())


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (3, 2, 4), (2, 0)])
def test_what_is_placed_is_read_back(arrays: HostedArrays, shape: tuple[int, ...], dtype: Any) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    made = arrays.place(values)
    assert made.pointer % 256 == 0
    assert (made.shape, made.dtype, made.nbytes, len(made)) == (shape, values.dtype.name, values.nbytes, shape[0])
    for count in range(shape[0] + 1):
        got = arrays.read(made, count)
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values[:count])


def test_values_may_change_once_they_are_written(arrays: HostedArrays) -> None:
    """More writes in a row than there are staging areas, and nothing copied before it must be."""
    made = [arrays.empty((4,), "int32") for _ in range(11)]
    values = np.zeros(4, np.int32)
    for i, array in enumerate(made):
        values[:] = i
        arrays.write(array, values)
    values[:] = -1
    assert [arrays.read(array, 4).tolist() for array in made] == [[i] * 4 for i in range(11)]


def test_large_arrays_go_in_pieces(monkeypatch: pytest.MonkeyPatch, arrays: HostedArrays) -> None:
    monkeypatch.setattr(cuda_arrays, "_STAGE_BYTES", 64)
    values = np.arange(1000, dtype=np.int64).reshape(50, 20)
    made = arrays.place(values)
    np.testing.assert_array_equal(arrays.read(made, 50), values)
    np.testing.assert_array_equal(arrays.read(made, 7), values[:7])


def test_nothing_is_allocated_after_the_first_time(arrays: HostedArrays) -> None:
    made = arrays.place(np.zeros((8, 3), np.int32))
    for _ in range(5):
        arrays.write(made, np.ones((8, 3), np.int32))
        arrays.read(made, 8)
    del arrays._core.calls[:]
    for _ in range(5):
        arrays.write(made, np.ones((6, 3), np.int32))
        arrays.read(made, 6)
    assert set(arrays._core.calls) == {"copy", "event.sync", "stream.sync"}
    assert arrays._core.calls.count("stream.sync") == 5


def test_values_that_are_not_contiguous(arrays: HostedArrays) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    made = arrays.empty((6, 4), "float32")
    arrays.write(made, values.T)
    np.testing.assert_array_equal(arrays.read(made, 6), values.T)
    arrays.write(made[2:], values[:, ::2].T)
    np.testing.assert_array_equal(arrays.read(made, 5)[2:], values[:, ::2].T)


def test_parts_are_the_same_memory(arrays: HostedArrays) -> None:
    made = arrays.place(np.arange(24, dtype=np.float32).reshape(4, 2, 3))
    assert arrays.read(made[1:3], 2).tolist() == [[[6, 7, 8], [9, 10, 11]], [[12, 13, 14], [15, 16, 17]]]
    assert arrays.read(made[-1], 2).tolist() == [[18, 19, 20], [21, 22, 23]]
    assert arrays.read(made[2][1], 1).tolist() == [15]
    assert made[5:].shape == (0, 2, 3)
    assert made[:9].shape == (4, 2, 3)
    with pytest.raises(IndexError):
        made[4]
    fails_with(lambda: made[::2], "step 2", kind=InputError)


@pytest.mark.parametrize(
    "values",
    [np.zeros((5, 3), np.int32), np.zeros((4, 2), np.int32), np.zeros((4, 3), np.int64), np.zeros(4, np.int32)],
)
def test_what_does_not_fit_is_refused(arrays: HostedArrays, values: Any) -> None:
    made = arrays.empty((4, 3), "int32")
    fails_with(lambda: arrays.write(made, values), "int32 (4, 3)", str(values.shape), kind=InputError)


def test_types_that_are_none(arrays: HostedArrays) -> None:
    fails_with(lambda: arrays.empty((4,), "float64"), "float64", kind=InputError)
    fails_with(lambda: arrays.empty((4,), np.uint8), "uint8", kind=InputError)


def test_an_array_speaks_dlpack(arrays: HostedArrays) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    made = arrays.place(values)
    np.testing.assert_array_equal(np.from_dlpack(made), values)
    device = DeviceArray(1 << 40, (2, 3), "bfloat16", 1, None)
    assert device.__dlpack_device__() == (2, 1)
    view = kernels.view(device)
    assert (view.shape, view.dtype, view.is_cuda, view.pointer) == ((2, 3), "bfloat16", True, 1 << 40)
    assert "cuda:1" in repr(device)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_one_stream_after_another() -> None:
    """A slot reads what the network wrote, though nobody waited for the network's stream."""
    core = Core()
    home, slot = HostedArrays(core), HostedArrays(core)
    assert home.stream != slot.stream
    array = home.place(np.zeros(3, np.float32))
    slot.after(home)  # nothing was marked
    home.write(array, np.ones(3, np.float32))
    np.testing.assert_array_equal(slot.read(array, 3), [0, 0, 0])
    home.mark()
    syncs = core.calls.count("stream.sync")
    slot.after(home)
    assert core.calls.count("stream.sync") == syncs
    np.testing.assert_array_equal(slot.read(array, 3), [1, 1, 1])


def test_a_slots_work_comes_after_the_networks_writes() -> None:
    core = Core()
    network = DeviceNetwork(HostedArrays(core))
    slot = DeviceBuffers(HostedArrays(core), network.home, 2, SHAPE, "float32")
    images = network.place(np.zeros((2, *SHAPE), np.float32))
    network.write(images[1:], np.ones((1, *SHAPE), np.float32))
    slot.write(slot.cells, np.ones((2, 3), np.int32))
    np.testing.assert_array_equal(slot.read(images, 2)[:, 0, 0, 0], [0, 1])


def test_every_thread_has_a_current_device(arrays: HostedArrays) -> None:
    made = arrays.place(np.arange(3, dtype=np.float32))
    replay = arrays.capture(lambda: arrays.write(made, np.ones(3, np.float32)))
    got: list[Any] = []

    other = HostedArrays(arrays._core)
    arrays.mark()

    def work() -> None:
        other.after(arrays)
        got.append(arrays.read(made, 3))
        replay()
        got.append(arrays.read(made, 3))
        got.append(arrays.read(arrays.empty((2,), "float32"), 2))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(got[0], [0, 1, 2])
    np.testing.assert_array_equal(got[1], [1, 1, 1])
    assert len(got) == 3


def test_a_captured_copy_is_made_at_every_replay(arrays: HostedArrays) -> None:
    source, target = arrays.place(np.zeros(4, np.float32)), arrays.place(np.zeros(4, np.float32))
    core: Any = arrays._core

    def launch() -> None:
        core.Buffer.from_handle(target.pointer, 16).copy_from(
            core.Buffer.from_handle(source.pointer, 16), stream=arrays._stream
        )

    del core.calls[:]
    replay = arrays.capture(launch)
    assert core.calls == ["begin thread_local", "copy", "end", "upload", "close"]
    np.testing.assert_array_equal(arrays.read(target, 4), np.zeros(4))
    for value in (3, 5):
        arrays.write(source, np.full(4, value, np.float32))
        replay()
        np.testing.assert_array_equal(arrays.read(target, 4), np.full(4, value))


def test_a_capture_that_fails_leaves_the_stream_usable(arrays: HostedArrays) -> None:
    def launch() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    fails_with(lambda: arrays.capture(launch), "graphs=False", "not permitted", kind=BackendError)
    assert arrays._core.calls[-2:] == ["end", "close"]

    def refuse() -> None:
        raise BackendError("the network refuses")

    fails_with(lambda: arrays.capture(refuse), "the network refuses", kind=BackendError)
    np.testing.assert_array_equal(arrays.read(arrays.place(np.ones(2, np.float32)), 2), [1, 1])


def test_the_first_failure_of_a_capture_is_named(arrays: HostedArrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that something has broken fails again when it is ended, and when it is given up."""

    def broken(self: Any) -> None:
        raise RuntimeError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    monkeypatch.setattr(Builder, "end_building", broken)
    monkeypatch.setattr(Builder, "close", broken)

    def launch() -> None:
        raise RuntimeError("cudaMalloc is not permitted")

    def refuse() -> None:
        raise BackendError("the network refuses")

    fails_with(lambda: arrays.capture(launch), "graphs=False", "cudaMalloc", kind=BackendError)
    fails_with(lambda: arrays.capture(refuse), "the network refuses", kind=BackendError)
    assert not CAPTURING.locked()


def test_threads_write_and_read_at_once(arrays: HostedArrays) -> None:
    """A run is prepared on a network while another one works: neither may take the other's staging area."""
    made = [arrays.empty((64,), "int32") for _ in range(4)]
    wrong: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for turn in range(200):
            arrays.write(made[number], np.full(64, 1000 * number + turn, np.int32))
            got = arrays.read(made[number], 64)
            if not (got == 1000 * number + turn).all():
                wrong.append((number, turn))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_failures_of_cuda_are_one_line(arrays: HostedArrays) -> None:
    made = arrays.place(np.zeros(2, np.float32))
    replay = arrays.capture(lambda: None)
    arrays._core.memory = 100
    fails_with(lambda: arrays.empty((1000,), "float32"), "4000 bytes", "OUT_OF_MEMORY", kind=BackendError)
    arrays._core.memory = 1 << 20
    arrays._core.broken = True
    fails_with(lambda: arrays.read(made, 2), "ILLEGAL_ADDRESS", kind=BackendError)
    fails_with(arrays.synchronize, "ILLEGAL_ADDRESS", kind=BackendError)
    fails_with(replay, "ILLEGAL_ADDRESS", kind=BackendError)


# --- a network on them -----------------------------------------------------------------------------------------------


class HostedSlot(DeviceBuffers):
    """The Gaussian denoiser on device buffers in the CPU's memory."""

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
        self.captures += super().capture(slot, launch) is not None  # the stand-in does not see the kernels
        return launch


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("method", ["dc", "denoised", "apndc-x"])
def test_a_network_on_device_arrays_gives_the_numbers_of_the_cpu(method: str, graphs: bool) -> None:
    images = unit_images(5)
    options: dict[str, Any] = {"draws": 6}
    if method != "dc":
        options = {"draws": 4, "method": method, "sigma": 0.1, "levels": (0.3, 2.0)}
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


# --- without a device ------------------------------------------------------------------------------------------------

without_device = pytest.mark.skipif(kernels.cuda_device_count() > 0, reason="there is a device")


@without_device
def test_without_a_driver_it_says_so_before_cuda_core_is_asked() -> None:
    pytest.importorskip("cuda.core", exc_type=ImportError)
    message = "driver" if kernels.build_config()["cuda"] else "without CUDA"
    fails_with(lambda: DeviceArrays(0), "cuda:0", message, kind=BackendError)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "build_config", lambda: {"cuda": True})
    monkeypatch.setattr(kernels, "cuda_device_count", lambda: 2)
    assert [device_index(name) for name in ("cuda", "cuda:0", "cuda:1")] == [0, 0, 1]
    fails_with(lambda: device_index("cuda:2"), "cuda:2", "2 CUDA devices", kind=BackendError)
    monkeypatch.setattr(kernels, "cuda_device_count", lambda: 0)
    fails_with(lambda: device_index("cuda"), "driver", kind=BackendError)
    monkeypatch.setattr(kernels, "build_config", lambda: {"cuda": False})
    fails_with(lambda: device_index("cuda"), "docs/building.md", kind=BackendError)


@pytest.mark.parametrize("missing", ["cuda.core", "cuda.bindings", "cuda"])
def test_without_cuda_core_it_says_what_to_install(missing: str) -> None:
    pytest.importorskip("cuda.core", exc_type=ImportError)
    code = """
from fastdc import MissingDependencyError
from fastdc.backends.cuda_arrays import cuda_core
try:
    cuda_core()
except MissingDependencyError as error:
    print(error)
"""
    hiding = "import sys; sys.modules[sys.argv[1]] = None\n"
    run = subprocess.run([sys.executable, "-c", hiding + code, missing], capture_output=True, text=True, check=True)
    assert "pip install 'fastdc[tensorrt]'" in run.stdout
    assert run.stdout.count("\n") == 1


def test_what_is_used_of_cuda_core_is_there() -> None:
    """Names and arguments of the installed package; that they do what they say is for a device."""
    core = pytest.importorskip("cuda.core", exc_type=ImportError)
    used: dict[Any, list[str]] = {
        core.Device.set_current: [],
        core.Device.create_stream: [],
        core.Device.create_event: [],
        core.Device.allocate: ["size", "stream"],
        core.Stream.sync: [],
        core.Stream.record: ["event"],
        core.Stream.wait: ["event_or_stream"],
        core.Stream.create_graph_builder: [],
        core.Event.sync: [],
        core.LegacyPinnedMemoryResource.allocate: ["size"],
        core.Buffer.from_handle: ["ptr", "size", "owner"],
        core.Buffer.copy_from: ["src", "stream"],
        core.graph.GraphBuilder.begin_building: ["mode"],
        core.graph.GraphBuilder.end_building: [],
        core.graph.GraphBuilder.complete: [],
        core.graph.GraphBuilder.close: [],
        core.graph.Graph.upload: ["stream"],
        core.graph.Graph.launch: ["stream"],
    }
    for function, arguments in used.items():
        parameters = inspect.signature(function).parameters
        assert set(arguments) <= set(parameters), function
        required = [p.name for p in parameters.values() if p.default is p.empty and p.name != "self"]
        assert set(required) <= set(arguments), function
    for name in ("handle",):
        assert hasattr(core.Stream, name)
        assert hasattr(core.Buffer, name)


def test_memory_of_a_device_is_asked_for_by_a_name_that_is_there() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    assert callable(driver.cuDeviceTotalMem)
    assert int(driver.CUresult.CUDA_SUCCESS) == 0


def test_memory_given_by_address_is_taken_by_cuda_core() -> None:
    core = pytest.importorskip("cuda.core", exc_type=ImportError)
    owner = object()
    buffer = core.Buffer.from_handle(1 << 20, 64, owner=owner)
    assert (int(buffer.handle), buffer.size) == (1 << 20, 64)
    assert buffer.owner is owner
