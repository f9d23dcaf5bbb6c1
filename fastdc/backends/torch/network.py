"""A torch module as the network.

A bundle's module is rebuilt from its plain configuration and ``weights.safetensors`` (``fastdc.bundle.build_network``).
Any torch module with forward(sample, timestep, class_labels) can be given instead.

On a CUDA device two slots with a stream each hide the host's work for one step behind the other step, convolutions run
in channels_last, and a step, including fastdc's kernels, is captured by torch's own CUDA graphs (one memory pool per
slot). None of the CUDA part has run on a device yet; docs/gpu.md has the command that verifies it.

Three things in torch are global to the process. The TF32 flags are therefore set before every step is launched.
Captures are made one at a time (``capturing.CAPTURING``). torch.compile neither compiles nor runs safely while another
thread compiles, so compiled modules are called one at a time (:data:`COMPILING`).
"""

import functools
import inspect
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.capturing import CAPTURING, first_cause
from fastdc.backends.cuda_arrays import device_index
from fastdc.backends.options import NetworkOptions
from fastdc.backends.protocol import AbstractSlot, Buffer
from fastdc.backends.reopening import Reopened
from fastdc.backends.step_sizes import DEFAULT_BATCH, DEVICE_SLOTS, device_batch, halves
from fastdc.backends.torch.slots import CudaSlot, TorchSlot
from fastdc.bundle import WEIGHTS, Bundle
from fastdc.diffusion import kernels
from fastdc.support import BackendError, BundleError, Float32, fork_safe_lock, one_line, require

if TYPE_CHECKING:
    import torch

COMPILING = fork_safe_lock()
"""Lock to hold while a compiled module is called."""

# Number of step sizes that torch.compile may specialise for: enough for the halves of any batch.
_RECOMPILE_LIMIT = 64


class TorchNetwork(Reopened):
    """Runs a torch module as the network; implements ``AbstractNetwork``.

    Args:
        module: forward(sample (b, c, h, w), timestep float32 (b,), class_labels int64 (b,)) -> (b, c, h, w). The module
            is moved to the device and precision and put into evaluation mode.
        image_shape: (channels, height, width).
        options: device, precision (default float32), batch (default 128; on a CUDA device, as many cells as its memory
            and the network's cost allow), threads (sets torch's global number of threads), compile, graphs, and tf32 (a
            float32 network on a CUDA device sets torch's global TF32 flags at every launch).
        flops: Floating-point operations of one evaluation, if known.

    Attributes:
        module: The module as it runs, for uses that need more than its output, such as gradients.

    Raises:
        MissingDependencyError: torch is not installed.
        BackendError: The device is a CUDA device that torch or fastdc cannot use.
    """

    backend = "torch"

    def __init__(
        self,
        module: "torch.nn.Module",
        image_shape: tuple[int, int, int],
        options: NetworkOptions | None = None,
        *,
        flops: float | None = None,
    ) -> None:
        torch = require("torch")
        options = options or NetworkOptions()
        self.device = choose_device(options.device)
        self.precision = "float32" if options.precision == "auto" else options.precision
        self.kept: dict[str, Any] = {}
        self.stream = 0
        _work_alone_after_fork()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        dtype = getattr(torch, self.precision)
        cuda = self.device.startswith("cuda")
        self.batch = options.batch or DEFAULT_BATCH
        if cuda and options.batch is None:
            self.batch = _device_batch(self.device, flops, math.prod(image_shape) * dtype.itemsize)
        self.module = module.to(device=self.device, dtype=dtype).eval()
        self.sizes = halves(self.batch) if cuda or options.compile else None
        self._graphs = options.graphs
        more: dict[str, Any] = {"dtype": dtype, "device": self.device, "alone": COMPILING if options.compile else None}
        if cuda:
            more |= self._prepare_cuda(options)
        call = _compiled(self.module) if options.compile else self.module
        kind = CudaSlot if cuda else TorchSlot
        self.slots: tuple[AbstractSlot, ...] = tuple(
            kind(call, self.batch, image_shape, **more) for _ in range(DEVICE_SLOTS if cuda else 1)
        )

    def _prepare_cuda(self, options: NetworkOptions) -> dict[str, Any]:
        """Makes the network's stream, lays out the weights, and returns the options that its slots need."""
        import torch

        tf32 = options.tf32 if self.precision == "float32" else None
        self._home = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._written = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._written.record(self._home)
        self.stream = int(self._home.cuda_stream)
        channels_last = any(parameter.dim() == 4 for parameter in self.module.parameters())
        if channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.cuda.current_stream(self.device).synchronize()  # the weights were cast and laid out on it
        return {"channels_last": channels_last, "written": self._written, "tf32": tf32}

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: NetworkOptions | None = None) -> "TorchNetwork":
        """The network of a bundle that ships its torch weights.

        Args:
            bundle: The bundle.
            options: As in the constructor.

        Raises:
            MissingDependencyError: torch (or diffusers, for a UNet) is not installed.
            BundleError: The bundle has no weights, or they do not fit its network.
        """
        require("torch")
        entry = bundle.manifest.get("network")
        if not isinstance(entry, dict) or WEIGHTS not in bundle.files:
            raise BundleError(f"bundle {bundle.name!r} ships no torch weights: use backend onnx")
        import safetensors.torch

        from fastdc.bundle import build_network

        module = build_network(str(entry.get("kind")), entry.get("config") or {})
        content = bundle.read(WEIGHTS)
        try:
            module.load_state_dict(safetensors.torch.load(content))
        except Exception as error:  # safetensors and torch raise bare exceptions
            raise BundleError(f"{bundle.path / WEIGHTS} does not fit the network: {one_line(error)}") from None
        return cls(module, bundle.model.sample_shape, options, flops=bundle.flops)

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """A copy of the array on the network's device."""
        import torch

        with torch.cuda.stream(self._home) if self.stream else nullcontext():
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Copies a host array into the first rows of a buffer, before all later work of the slots."""
        import torch

        host = torch.from_numpy(np.ascontiguousarray(array))
        if not self.stream:
            buffer[: len(array)].copy_(host)
            return
        with torch.cuda.stream(self._home):
            # Pinned memory comes from torch's cache and goes back to it once the copy has run.
            buffer[: len(array)].copy_(host.pin_memory(), non_blocking=True)
            self._written.record(self._home)

    def read(self, buffer: Buffer, count: int) -> Float32:
        """Waits for the network's stream and returns the first `count` values of a buffer."""
        import torch

        with torch.cuda.stream(self._home) if self.stream else nullcontext():
            copy: Float32 = buffer[:count].to("cpu", copy=True).numpy()
        return copy

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """A function that replays the captured work of `launch`; None if steps are not captured.

        Raises:
            BackendError: The work cannot be captured, for example because the module reads a value back.
        """
        import torch

        if not isinstance(slot, CudaSlot) or not self._graphs:
            return None
        # Each thread makes its own cuBLAS and cuDNN handles and plans on first use, and a capture does not allow that.
        # The step may have run on another thread before, so this thread runs it once.
        launch()
        graph, queue = torch.cuda.CUDAGraph(), slot.queue
        try:
            # thread_local: the thread of the other slot goes on launching and waiting meanwhile.
            with (
                CAPTURING,
                torch.cuda.stream(queue),
                torch.cuda.graph(graph, pool=slot.pool, stream=queue, capture_error_mode="thread_local"),
            ):
                launch()
        except RuntimeError as error:
            cause = first_cause(error)
            if isinstance(cause, BackendError):
                raise cause from None
            raise BackendError(
                f"the module cannot be captured into a CUDA graph, run it with graphs=False: {one_line(cause)}"
            ) from None

        def replay() -> None:
            with torch.cuda.stream(queue):
                graph.replay()

        return replay

    def stop(self) -> None:
        """Nothing: torch cannot be asked to stop."""


def _device_batch(device: str, flops: float | None, sample_bytes: int) -> int:
    import torch

    memory = torch.cuda.get_device_properties(device).total_memory
    return device_batch(flops, sample_bytes=sample_bytes, memory=memory)


def _compiled(module: "torch.nn.Module") -> Callable[..., "torch.Tensor"]:
    """The module, compiled separately for each step size when it is first called with that size."""
    import torch

    more: dict[str, Any] = {}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        more = {"dynamic": False, "recompile_limit": _RECOMPILE_LIMIT}  # the default stops after 8 sizes
    compiled: Callable[..., torch.Tensor] = torch.compile(module, **more)
    return compiled


def choose_device(wanted: str) -> str:
    """The device for the option "auto", "cpu", "cuda" or "cuda:N"; "auto" is the first CUDA device, if usable.

    Raises:
        BackendError: A CUDA device was asked for, and torch or fastdc's kernels cannot use it.
    """
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() and kernels.cuda_device_count() else "cpu"
    if wanted == "cpu":
        return wanted
    if not torch.cuda.is_available():
        raise BackendError(f"device {wanted!r} was asked for, but torch {torch.__version__} finds no CUDA device")
    return f"cuda:{device_index(wanted)}"  # fastdc's kernels need the device, too


@functools.cache
def _work_alone_after_fork() -> None:
    """Lets torch compute on one thread in forked children: its pools of threads do not survive a fork, and it hangs."""
    torch = require("torch")
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
