"""The torch backend's steps: compiled, in fixed sizes, and the CUDA part as far as a machine without a device goes.

Without a device, torch's streams, events and graphs are replaced by doubles that record who enqueued what, and the
buffers lie on the CPU: what is shown is the order of the calls and the numbers, not that a GPU obeys them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import fastdc
from fastdc import BackendError, DiffusionClassifier, InputError
from fastdc.backends import NetworkOptions
from fastdc.backends.protocol import CAPTURING, device_batch
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from helpers.paths import SHIPPED
from helpers.worlds import SHAPE, fails_with, gaussian, unit_images

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.backends import torch as backend
from helpers.torch_worlds import GaussianDenoiser

WORLD = gaussian(3)


class Convolution(torch.nn.Module):
    """The Gaussian denoiser behind a 1x1 convolution that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = GaussianDenoiser(WORLD)
        self.same = torch.nn.Conv2d(1, 1, 1, bias=False)
        self.same.weight.data.fill_(1)

    def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
        return self.denoiser(self.same(sample), timestep, class_labels)


# --- torch.compile ---------------------------------------------------------------------------------------------------


def test_compiled_for_each_size_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the graph as captured and no code generated for it, which takes long and is torch's own business."""
    compiled: list[int] = []
    compile_ = torch.compile

    def count(graph: Any, inputs: Any) -> Any:
        compiled.append(int(next(len(value) for value in inputs if value.dtype == torch.int64)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", _with_signature(compile_, lambda *a, **o: compile_(*a, backend=count, **o)))
    images = unit_images(3)
    network = backend.TorchNetwork(Convolution(), SHAPE, NetworkOptions(batch=4, compile=True, device="cpu"))
    assert network.sizes == (1, 2, 4)
    clf = DiffusionClassifier(WORLD.model, network)
    got = [clf.errors(images[:n], draws=n).errors for n in (3, 1, 3)]  # 27 cells and 3
    assert sorted(compiled) == [4]
    network.slots[0].run(2)
    network.slots[0].run(2)
    assert sorted(compiled) == [2, 4]
    plain = DiffusionClassifier(WORLD.model, backend.TorchNetwork(Convolution(), SHAPE)).errors(images, draws=3).errors
    np.testing.assert_array_equal(got[0], got[-1])
    np.testing.assert_allclose(got[0], plain, rtol=1e-6)


def _with_signature(like: Any, function: Callable[..., Any]) -> Any:
    import functools

    return functools.wraps(like)(function)


@pytest.mark.slow
def test_compiled_code_gives_the_numbers_of_the_module() -> None:
    images = digits_test().images[:4]
    compiled = fastdc.load("digits-mlp", backend="torch", batch=16)
    path = SHIPPED / "digits-mlp"
    options = NetworkOptions(batch=16, compile=True, device="cpu")
    compiled = DiffusionClassifier(compiled.model, backend.TorchNetwork.from_bundle(fastdc.load_bundle(path), options))
    plain = fastdc.load("digits-mlp", backend="torch", batch=16)
    one, other = (clf.classify(images, draws=2, rule="full") for clf in (compiled, plain))
    np.testing.assert_allclose(one.errors, other.errors, rtol=1e-4)
    np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("name", ["compile", "graphs", "tf32"])
def test_flags_must_be_flags(name: str) -> None:
    fails_with(lambda: NetworkOptions(**{name: 1}), name, "True or False", kind=InputError)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, {1: "a"}])
def test_provider_options_are_strings(value: Any) -> None:
    fails_with(lambda: NetworkOptions(provider_options=value), "provider_options", kind=InputError)


# --- CUDA, on doubles ------------------------------------------------------------------------------------------------


class Pretended(str):
    """A CUDA device whose memory is the CPU's."""

    __slots__ = ()

    def startswith(self, *args: Any) -> bool:
        return args == ("cuda",)


class Cuda:
    """What the backend uses of torch.cuda; `calls` has every call with the stream that was current."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.current: Any = None
        self.capturing: list[Callable[[], None]] | None = None
        self.streams = 0
        self.graphs: list[Any] = []
        cuda = self

        class Stream:
            def __init__(self, device: str) -> None:
                cuda.streams += 1
                self.cuda_stream = 1000 + cuda.streams

            def synchronize(self) -> None:
                cuda.calls.append(("synchronize", self.cuda_stream))

            def wait_event(self, event: Any) -> None:
                cuda.calls.append(("wait", self.cuda_stream, event.recorded))

        class Event:
            recorded: int | None = None

            def record(self, stream: Any) -> None:
                self.recorded = stream.cuda_stream
                cuda.calls.append(("record", self.recorded))

            def synchronize(self) -> None:
                cuda.calls.append(("synchronize", self.recorded))

        class Graph:
            work: Callable[[], None]

            def replay(self) -> None:
                cuda.calls.append(("replay", cuda.current.cuda_stream))
                self.work()

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, Graph
        self.default = Stream("cuda")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        assert CAPTURING.locked()
        self.calls.append(("capture", stream.cuda_stream, pool))
        self.graphs.append(graph)
        self.stream(stream).__enter__()  # and as torch's own, it does not leave the stream where capturing has failed
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        self.current = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("Stream", "Event", "CUDAGraph", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        pools = iter(range(100))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current or self.default)
        properties = SimpleNamespace(total_memory=1 << 37)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        zeros = torch.zeros

        def unpinned(*args: Any, pin_memory: bool = False, **more: Any) -> Any:
            if not pin_memory and self.current:
                self.calls.append(("zeros", self.current.cuda_stream))
            return zeros(*args, **more)

        monkeypatch.setattr(torch, "zeros", unpinned)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
        monkeypatch.setattr(backend, "_choose_device", lambda wanted: Pretended("cpu"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    made = Cuda()
    made.install(monkeypatch)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield made
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on_cuda(module: Any, **options: Any) -> backend.TorchNetwork:
    network = backend.TorchNetwork(module, SHAPE, NetworkOptions(**options))
    for slot in network.slots:
        slot.stream = 0  # the kernels run on the CPU
    return network


def test_two_slots_with_streams_of_their_own(cuda: Cuda) -> None:
    network = backend.TorchNetwork(Convolution(), SHAPE, NetworkOptions(batch=8))
    assert len({network.stream, *(slot.stream for slot in network.slots)}) == 3
    assert network.sizes == (1, 2, 4, 8)


def test_memory_is_asked_for_on_the_stream_that_writes_it(cuda: Cuda) -> None:
    """Else torch might give it on to somebody who writes it first."""
    network = on_cuda(Convolution(), batch=8)
    queues = [slot.queue.cuda_stream for slot in network.slots]  # type: ignore[attr-defined]
    zeroed = [stream for name, stream in cuda.calls if name == "zeros"]
    assert zeroed == [queues[0]] * 6 + [queues[1]] * 6
    before = next(i for i, call in enumerate(cuda.calls) if call[0] == "zeros")
    assert ("synchronize", cuda.default.cuda_stream) in cuda.calls[:before], "the weights, cast on another stream"
    seen: list[int] = []
    to = torch.Tensor.to

    def recorded(tensor: Any, *args: Any, **more: Any) -> Any:
        seen.append(cuda.current.cuda_stream)
        return to(tensor, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", recorded)
        network.place(np.zeros(3, np.float32))
    assert seen == [network.stream]


def test_each_launch_has_its_networks_tf32(cuda: Cuda) -> None:
    """The flag is the process's: another network may have set it in the meantime."""
    seen: list[bool] = []

    class Looks(torch.nn.Module):
        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return sample

    rounding, exact = (on_cuda(Looks(), batch=2, tf32=tf32) for tf32 in (True, False))
    for network in (rounding, exact, rounding):
        network.slots[0].run(2)
    assert seen == [True, False, True]
    on_cuda(Looks(), batch=2, precision="float16").slots[0].run(2)
    assert seen[-1], "left alone"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiled_modules_are_called_one_at_a_time(device: str, request: pytest.FixtureRequest) -> None:
    """torch.compile compiles by patching the process: another thread that runs a module meanwhile would be traced."""
    if device == "cuda":
        request.getfixturevalue("cuda")
    inside: list[bool] = []

    class Looks(torch.nn.Module):
        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            inside.append(backend._compiling.locked())
            return sample

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module, **more: module)
        for compiled in (True, False):
            backend.TorchNetwork(Looks(), SHAPE, NetworkOptions(batch=2, compile=compiled)).slots[0].run(2)
    assert inside == [True, False]


def test_a_step_is_as_large_as_the_device_likes(cuda: Cuda) -> None:
    assert backend.TorchNetwork(Convolution(), SHAPE).batch == 512
    assert backend.TorchNetwork(Convolution(), SHAPE, flops=1e12).batch == 16


def test_the_rule_of_steps_on_a_device() -> None:
    def batch(flops: float | None, *, side: int = 32, channels: int = 3, gigabytes: float = 140) -> int:
        memory = int(gigabytes * 1e9)
        return device_batch(flops, sample_bytes=4 * channels * side * side, slots=2, memory=memory)

    assert [batch(flops) for flops in (1e6, 1e11, 1.1e11, 6.8e11, 1e14)] == [512, 128, 128, 16, 1]
    assert batch(None) == 128  # as of 0.12 TFLOP
    assert batch(None, side=8, channels=1) == 512
    assert batch(None, side=64, channels=4) == 16
    assert [batch(1e9, gigabytes=size) for size in (140, 24, 8, 0.1)] == [512, 64, 32, 1]


def test_a_device_that_fastdc_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has one and fastdc's kernels were built without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "cuda_device_count", lambda: 0)
    monkeypatch.setattr(kernels, "build_config", lambda: {"cuda": False})
    network = GaussianDenoiser(WORLD)
    options = NetworkOptions(device="cuda")
    fails_with(lambda: backend.TorchNetwork(network, SHAPE, options), "docs/building.md", kind=BackendError)
    assert backend.TorchNetwork(network, SHAPE).device == "cpu"


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_steps_without_graphs_give_the_numbers_of_the_cpu(cuda: Cuda, precision: str) -> None:
    images = unit_images(5)
    module = Convolution()
    network = on_cuda(module, batch=8, graphs=False, precision=precision)
    got = DiffusionClassifier(WORLD.model, network).errors(images, draws=5).errors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_choose_device", lambda wanted: "cpu")
        plain = backend.TorchNetwork(Convolution(), SHAPE, NetworkOptions(batch=8, precision=precision))
        want = DiffusionClassifier(WORLD.model, plain).errors(images, draws=5).errors
    np.testing.assert_array_equal(got, want)
    assert not [call for call in cuda.calls if call[0] in ("capture", "replay")]
    assert module.same.weight.is_contiguous(memory_format=torch.channels_last)


def test_channels_are_last_where_there_are_convolutions(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Plain(torch.nn.Module):
        def __init__(self, weights: Any) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(weights)

        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            seen.append(sample.stride())
            return sample

    for weights, want in ((torch.ones(3, 3), (80, 16, 4, 1)), (torch.ones(2, 2, 1, 1), (80, 1, 20, 5))):
        network = backend.TorchNetwork(Plain(weights), (5, 4, 4), NetworkOptions(batch=2))
        network.slots[0].run(2)
        assert seen.pop() == want
        assert network.slots[0].output.is_contiguous()


def test_the_order_of_a_captured_step(cuda: Cuda) -> None:
    """Table after the images' copies, one launch, errors through pinned memory, and no other synchronisation."""
    network = on_cuda(Convolution(), batch=8)
    home, queue = network.stream, network.slots[0].queue.cuda_stream  # type: ignore[attr-defined]
    slot = network.slots[0]
    cells = np.zeros((8, 3), np.int32)
    launched: list[int] = []

    def launch() -> None:
        launched.append(cuda.current.cuda_stream if cuda.current else 0)

    network.write(network.place(np.zeros(3, np.float32)), np.ones(2, np.float32))
    replay = network.capture(slot, launch)
    assert replay is not None
    cuda.graphs[-1].work = lambda: slot.errors.fill_(2.5)
    assert len(launched) == 2, "once more on this thread, whose handles a capture could not make"
    assert launched[-1] == queue
    del cuda.calls[:]
    slot.write(slot.cells, cells)
    replay()
    np.testing.assert_array_equal(slot.read(slot.errors, 3), np.full(3, 2.5, np.float32))
    assert cuda.calls == [("wait", queue, home), ("replay", queue), ("record", queue), ("synchronize", queue)]


def test_what_cannot_be_captured_says_so(cuda: Cuda) -> None:
    network = on_cuda(Convolution(), batch=8)

    def launch() -> None:
        if CAPTURING.locked():
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def refuse() -> None:
        if CAPTURING.locked():
            raise BackendError("the kernels refuse")

    slot = network.slots[0]
    fails_with(lambda: network.capture(slot, launch), "graphs=False", "not permitted", kind=BackendError)
    assert cuda.current is None, "the slot's stream is current no more"
    fails_with(lambda: network.capture(slot, refuse), "the kernels refuse", kind=BackendError)
    without = on_cuda(Convolution(), batch=8, graphs=False)
    assert without.capture(without.slots[0], launch) is None
