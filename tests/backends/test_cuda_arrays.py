"""Device arrays on a double of cuda-core, whose streams are as late as they may be, and the names of cuda-core itself.

Claims that only a device can show are tested in tests/engine/test_cuda_steps.py.
"""

import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastdc import BackendError, InputError
from fastdc.backends.capturing import CAPTURING
from fastdc.backends.cuda_arrays import DeviceArray, DeviceArrays, device_index
from fastdc.diffusion import kernels
from fastdc.support import install_hint
from helpers.cuda_doubles import Builder, Core, HostedArrays
from helpers.worlds import fails_with

ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = ["float32", "float16", ml_dtypes.bfloat16, "int32", "int64"]


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
    assert (made.shape, made.dtype, len(made)) == (shape, values.dtype.name, shape[0])
    for count in range(shape[0] + 1):
        got = arrays.read(made, count)
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values[:count])


def test_values_may_change_once_they_are_written(arrays: HostedArrays) -> None:
    """With more writes in a row than there are staging areas, and copies made as late as possible."""
    made = [arrays.empty((4,), "int32") for _ in range(11)]
    values = np.zeros(4, np.int32)
    for i, array in enumerate(made):
        values[:] = i
        arrays.write(array, values)
    values[:] = -1
    assert [arrays.read(array, 4).tolist() for array in made] == [[i] * 4 for i in range(11)]


def test_large_arrays_go_in_pieces(arrays: HostedArrays) -> None:
    """A staging area has 16 MiB."""
    values = np.arange(2_200_000, dtype=np.int64).reshape(-1, 20)
    made = arrays.place(values)
    np.testing.assert_array_equal(arrays.read(made, len(values)), values)
    np.testing.assert_array_equal(arrays.read(made, 7), values[:7])
    assert arrays.core.calls.count("copy") == 2 + 2 + 1


def test_nothing_is_allocated_after_the_first_time(arrays: HostedArrays) -> None:
    made = arrays.place(np.zeros((8, 3), np.int32))
    for _ in range(5):
        arrays.write(made, np.ones((8, 3), np.int32))
        arrays.read(made, 8)
    del arrays.core.calls[:]
    for _ in range(5):
        arrays.write(made, np.ones((6, 3), np.int32))
        arrays.read(made, 6)
    assert set(arrays.core.calls) == {"copy", "event.sync", "stream.sync"}
    assert arrays.core.calls.count("stream.sync") == 5


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
def test_values_that_do_not_fit_are_refused(arrays: HostedArrays, values: Any) -> None:
    made = arrays.empty((4, 3), "int32")
    fails_with(lambda: arrays.write(made, values), "int32 (4, 3)", str(values.shape), kind=InputError)


def test_unknown_types_are_refused(arrays: HostedArrays) -> None:
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
    """A slot reads the network's writes although nobody waited for the network's stream."""
    core = Core()
    home, slot = HostedArrays(core), HostedArrays(core)
    assert home.stream != slot.stream
    array = home.place(np.zeros(3, np.float32))
    slot.after(home)  # nothing is marked yet
    home.write(array, np.ones(3, np.float32))
    np.testing.assert_array_equal(slot.read(array, 3), [0, 0, 0])
    home.mark()
    syncs = core.calls.count("stream.sync")
    slot.after(home)
    assert core.calls.count("stream.sync") == syncs
    np.testing.assert_array_equal(slot.read(array, 3), [1, 1, 1])


def test_every_call_sets_the_current_device_of_its_thread(arrays: HostedArrays) -> None:
    made = arrays.place(np.arange(3, dtype=np.float32))
    other = HostedArrays(arrays.core)
    replay = arrays.capture(lambda: None)
    calls: dict[str, Callable[[], Any]] = {
        "read": lambda: arrays.read(made, 3),
        "write": lambda: arrays.write(made, np.ones(3, np.float32)),
        "empty": lambda: arrays.empty((2,), "float32"),
        "synchronize": arrays.synchronize,
        "mark": arrays.mark,
        "after": lambda: other.after(arrays),
        "capture": lambda: arrays.capture(lambda: None),
        "replay": replay,
    }
    done = []

    def work(name: str) -> None:
        calls[name]()
        done.append(name)

    for name in calls:
        thread = threading.Thread(target=work, args=(name,))
        thread.start()
        thread.join()
    assert done == list(calls)


def test_a_captured_copy_is_made_at_every_replay(arrays: HostedArrays) -> None:
    source, target = arrays.place(np.zeros(4, np.float32)), arrays.place(np.zeros(4, np.float32))
    core: Any = arrays.core

    def launch() -> None:
        core.Buffer.from_handle(target.pointer, 16).copy_from(
            core.Buffer.from_handle(source.pointer, 16), stream=arrays.queue
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
    assert arrays.core.calls[-2:] == ["end", "close"]

    def refuse() -> None:
        raise BackendError("the network refuses")

    fails_with(lambda: arrays.capture(refuse), "the network refuses", kind=BackendError)
    np.testing.assert_array_equal(arrays.read(arrays.place(np.ones(2, np.float32)), 2), [1, 1])


def test_the_first_failure_of_a_capture_is_named(arrays: HostedArrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that failed fails again when it is ended, and when its builder is closed."""

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
    """A run may be prepared while another one works: neither may take the other's staging area."""
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
    arrays.core.memory = 100
    fails_with(lambda: arrays.empty((1000,), "float32"), "4000 bytes", "OUT_OF_MEMORY", kind=BackendError)
    arrays.core.memory = 1 << 20
    arrays.core.broken = True
    fails_with(lambda: arrays.read(made, 2), "ILLEGAL_ADDRESS", kind=BackendError)
    fails_with(arrays.synchronize, "ILLEGAL_ADDRESS", kind=BackendError)
    fails_with(replay, "ILLEGAL_ADDRESS", kind=BackendError)


# --- without a device ------------------------------------------------------------------------------------------------

without_device = pytest.mark.skipif(kernels.cuda_device_count() > 0, reason="there is a device")


@without_device
def test_a_missing_driver_is_reported_before_cuda_core_is_used() -> None:
    pytest.importorskip("cuda.core", exc_type=ImportError)
    message = "driver" if kernels.build_config()["cuda"] else "without CUDA"
    fails_with(lambda: DeviceArrays(0), "cuda:0", message, kind=BackendError)


def test_devices_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "build_config", lambda: {"cuda": True})
    monkeypatch.setattr(kernels, "cuda_device_count", lambda: 2)
    assert [device_index(name) for name in ("cuda", "cuda:0", "cuda:1")] == [0, 0, 1]
    fails_with(lambda: device_index("cuda:2"), "cuda:2", "2 CUDA devices", kind=BackendError)
    monkeypatch.setattr(kernels, "cuda_device_count", lambda: 0)
    fails_with(lambda: device_index("cuda"), "driver", kind=BackendError)
    monkeypatch.setattr(kernels, "build_config", lambda: {"cuda": False})
    fails_with(lambda: device_index("cuda"), "docs/building.md", kind=BackendError)


@pytest.mark.parametrize("missing", ["cuda.core", "cuda.bindings", "cuda"])
def test_a_missing_cuda_core_is_named_with_its_extra(missing: str) -> None:
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
    assert install_hint("tensorrt") in run.stdout
    assert run.stdout.count("\n") == 1


def test_every_name_and_argument_used_of_cuda_core_exists() -> None:
    """In the installed package; whether they do what they say, only a device shows."""
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


def test_the_driver_call_for_a_devices_memory_exists() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    assert callable(driver.cuDeviceTotalMem)
    assert int(driver.CUresult.CUDA_SUCCESS) == 0


def test_memory_given_by_address_is_taken_by_cuda_core() -> None:
    core = pytest.importorskip("cuda.core", exc_type=ImportError)
    owner = object()
    buffer = core.Buffer.from_handle(1 << 20, 64, owner=owner)
    assert (int(buffer.handle), buffer.size) == (1 << 20, 64)
    assert buffer.owner is owner
