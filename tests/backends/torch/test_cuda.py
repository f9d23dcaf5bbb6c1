"""The torch backend on a CUDA device, as far as a double of torch.cuda goes.

The tests show the order of the calls and the numbers, not that a GPU follows them.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastdc import BackendError, DiffusionClassifier
from fastdc.backends import NetworkOptions, TorchNetwork
from fastdc.backends.capturing import CAPTURING
from helpers.worlds import SHAPE, fails_with, gaussian, unit_images

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.backends.torch import network as backend
from helpers.torch_cuda_double import Convolution, Cuda, cuda, on_cuda

__all__ = ["cuda"]

WORLD = gaussian(3)


def test_two_slots_with_streams_of_their_own(cuda: Cuda) -> None:
    network = TorchNetwork(Convolution(), SHAPE, NetworkOptions(batch=8))
    assert len({network.stream, *(slot.stream for slot in network.slots)}) == 3
    assert network.sizes == (1, 2, 4, 8)


def test_memory_is_asked_for_on_the_stream_that_writes_it(cuda: Cuda) -> None:
    """Otherwise torch may hand out memory whose earlier contents are still being written."""
    network = on_cuda(Convolution(), batch=8)
    queues = [slot.queue.cuda_stream for slot in network.slots]  # type: ignore[attr-defined]
    zeroed = [stream for name, stream in cuda.calls if name == "zeros"]
    assert zeroed == [queues[0]] * 6 + [queues[1]] * 6
    before = next(i for i, call in enumerate(cuda.calls) if call[0] == "zeros")
    assert ("synchronize", cuda.default.cuda_stream) in cuda.calls[:before], "the weights were cast on another stream"
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
    """The flag is global to the process: another network may have set it in the meantime."""
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
    assert seen[-1], "half precision leaves the flag alone"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiled_modules_are_called_one_at_a_time(device: str, request: pytest.FixtureRequest) -> None:
    """torch.compile patches the process while it compiles: a module that runs in another thread would be traced."""
    if device == "cuda":
        request.getfixturevalue("cuda")
    inside: list[bool] = []

    class Looks(torch.nn.Module):
        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            inside.append(backend.COMPILING.locked())
            return sample

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module, **more: module)
        for compiled in (True, False):
            TorchNetwork(Looks(), SHAPE, NetworkOptions(batch=2, compile=compiled)).slots[0].run(2)
    assert inside == [True, False]


def test_the_default_step_depends_on_the_networks_cost(cuda: Cuda) -> None:
    assert TorchNetwork(Convolution(), SHAPE).batch == 512
    assert TorchNetwork(Convolution(), SHAPE, flops=1e12).batch == 16


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_steps_without_graphs_give_the_numbers_of_the_cpu(cuda: Cuda, precision: str) -> None:
    images = unit_images(5)
    module = Convolution()
    network = on_cuda(module, batch=8, graphs=False, precision=precision)
    got = DiffusionClassifier(WORLD.model, network).errors(images, draws=5).errors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "choose_device", lambda wanted: "cpu")
        plain = TorchNetwork(Convolution(), SHAPE, NetworkOptions(batch=8, precision=precision))
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
        network = TorchNetwork(Plain(weights), (5, 4, 4), NetworkOptions(batch=2))
        network.slots[0].run(2)
        assert seen.pop() == want
        assert network.slots[0].output.is_contiguous()


def test_the_order_of_a_captured_step(cuda: Cuda) -> None:
    """Table after the images' copies, one replay, errors through pinned memory, and no other synchronisation."""
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
    assert len(launched) == 2, "once more on this thread, because a capture cannot make its handles"
    assert launched[-1] == queue
    del cuda.calls[:]
    slot.write(slot.cells, cells)
    replay()
    np.testing.assert_array_equal(slot.read(slot.errors, 3), np.full(3, 2.5, np.float32))
    assert cuda.calls == [("wait", queue, home), ("replay", queue), ("record", queue), ("synchronize", queue)]


def test_a_failed_capture_names_its_cause(cuda: Cuda) -> None:
    network = on_cuda(Convolution(), batch=8)

    def launch() -> None:
        if CAPTURING.locked():
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def refuse() -> None:
        if CAPTURING.locked():
            raise BackendError("the kernels refuse")

    slot = network.slots[0]
    fails_with(lambda: network.capture(slot, launch), "graphs=False", "not permitted", kind=BackendError)
    assert cuda.current is None, "the slot's stream is no longer current"
    fails_with(lambda: network.capture(slot, refuse), "the kernels refuse", kind=BackendError)
    without = on_cuda(Convolution(), batch=8, graphs=False)
    assert without.capture(without.slots[0], launch) is None
