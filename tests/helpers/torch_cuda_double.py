"""A double of torch.cuda: records who enqueued what on which stream, while the buffers lie on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from fastdc.backends import NetworkOptions, TorchNetwork
from fastdc.backends.capturing import CAPTURING
from helpers.worlds import SHAPE, gaussian

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.backends.torch import network as backend
from helpers.torch_worlds import GaussianDenoiser


class Convolution(torch.nn.Module):
    """The Gaussian denoiser behind a 1x1 convolution that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = GaussianDenoiser(gaussian(3))
        self.same = torch.nn.Conv2d(1, 1, 1, bias=False)
        self.same.weight.data.fill_(1)

    def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
        return self.denoiser(self.same(sample), timestep, class_labels)


class Pretended(str):
    """A CUDA device whose memory is the CPU's."""

    __slots__ = ()

    def startswith(self, *args: Any) -> bool:
        return args == ("cuda",)


class Cuda:
    """The part of torch.cuda that the backend uses.

    Attributes:
        calls: Each call with the stream that was current.
        current: The current stream.
        graphs: The CUDA graphs made so far.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.current: Any = None
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
        self.stream(stream).__enter__()  # as torch itself, it does not leave the stream if the capture fails
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
        monkeypatch.setattr(backend, "choose_device", lambda wanted: Pretended("cpu"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    made = Cuda()
    made.install(monkeypatch)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield made
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on_cuda(module: Any, **options: Any) -> TorchNetwork:
    """A network on the double, with kernels on the CPU."""
    network = TorchNetwork(module, SHAPE, NetworkOptions(**options))
    for slot in network.slots:
        slot.stream = 0
    return network
