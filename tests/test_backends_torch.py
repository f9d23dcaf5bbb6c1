"""The torch backend's steps: compiled, in fixed sizes, and the CUDA part as far as a machine without a device goes.

Without a device, torch's streams, events and graphs are replaced by doubles that record who enqueued what, and the
buffers lie on the CPU: what is shown is the order of the calls and the numbers, not that a GPU obeys them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from worlds import SHAPE, fails_with, gaussian, unit_images

import fastdc
from fastdc import BackendError, DiffusionClassifier, InputError
from fastdc.backends import NetworkOptions
from fastdc.data import digits_test

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from torch_worlds import GaussianDenoiser

from fastdc.backends import torch as backend

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
    path = Path(fastdc.__file__).parent / "models" / "digits-mlp"
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
        self.calls.append(("capture", stream.cuda_stream, pool))
        self.graphs.append(graph)
        with self.stream(stream):
            yield

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("Stream", "Event", "CUDAGraph", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        pools = iter(range(100))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        zeros = torch.zeros

        def unpinned(*args: Any, pin_memory: bool = False, **more: Any) -> Any:
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
    flags = [torch.backends.cudnn.allow_tf32]
    backend.TorchNetwork(Convolution(), SHAPE, NetworkOptions(batch=8, tf32=True))
    flags += [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]
    assert flags == [False, True, True]


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
    assert launched == [queue]
    del cuda.calls[:]
    slot.write(slot.cells, cells)
    replay()
    np.testing.assert_array_equal(slot.read(slot.errors, 3), np.full(3, 2.5, np.float32))
    assert cuda.calls == [("wait", queue, home), ("replay", queue), ("record", queue), ("synchronize", queue)]


def test_what_cannot_be_captured_says_so(cuda: Cuda) -> None:
    network = on_cuda(Convolution(), batch=8)

    def launch() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    fails_with(lambda: network.capture(network.slots[0], launch), "graphs=False", "not permitted", kind=BackendError)
    without = on_cuda(Convolution(), batch=8, graphs=False)
    assert without.capture(without.slots[0], launch) is None
