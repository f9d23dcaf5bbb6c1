"""Torch: the reference backend, for networks without an export, for autograd, and for CUDA.

A bundle's module is rebuilt from its plain config and ``weights.safetensors`` (``fastdc.bundle.architectures``); any
torch module with forward(sample, timestep, class_labels) can be given instead.

On a CUDA device there are two slots with a stream each, so that the host's work for one step is hidden behind the other
step; tables and results travel through pinned memory; convolutions run in channels_last; and a step, fastdc's kernels
included, is captured by torch's own CUDA graphs (their memory comes from a pool a slot). Memory is asked for on the
stream that writes it, so that what torch's allocator hands out again comes after what was written there before. None of
the CUDA part has run on a device yet: docs/gpu.md has the command that verifies it.

Three things of torch are a process's: the flags of TF32, which are therefore set before every step that is launched;
captures, of which there is one at a time (``base.CAPTURING``); and torch.compile, which neither compiles nor runs
safely beside a compilation in another thread, so that compiled modules are called one at a time.
"""

import inspect
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.cuda_arrays import device_index
from fastdc.backends.protocol import (
    CAPTURING,
    DEFAULT_BATCH,
    AbstractSlot,
    Buffer,
    NetworkOptions,
    device_batch,
    first_cause,
    halves,
    one_line,
)
from fastdc.bundle import WEIGHTS, Bundle
from fastdc.diffusion import kernels
from fastdc.support import BackendError, BundleError, require

if TYPE_CHECKING:
    import torch

CUDA_SLOTS = 2

# Sizes of a step that torch.compile may specialise for: the halves of any batch.
_RECOMPILE_LIMIT = 64

_compiling = threading.Lock()


class _TorchSlot:
    """Torch buffers of a step; see ``base.AbstractSlot``.

    Args:
        call: The module, or what torch.compile made of it.
        batch: Rows.
        image_shape: (c, h, w).
        dtype: Of sample and output.
        device: Where they lie.
        channels_last: Whether the module takes its sample with the channels as the fastest axis.
        alone: Held while the module is called.
    """

    stream = 0

    def __init__(
        self,
        call: Callable[..., "torch.Tensor"],
        batch: int,
        image_shape: tuple[int, int, int],
        *,
        dtype: "torch.dtype",
        device: str,
        channels_last: bool = False,
        alone: AbstractContextManager[Any] | None = None,
    ) -> None:
        import torch

        self._call = call
        self._channels_last = channels_last
        self._alone = alone or nullcontext()
        self.sample: Buffer = torch.zeros((batch, *image_shape), dtype=dtype, device=device)
        self.timestep: Buffer = torch.zeros(batch, device=device)
        self.class_labels: Buffer = torch.zeros(batch, dtype=torch.int64, device=device)
        self.output: Buffer = torch.zeros((batch, *image_shape), dtype=dtype, device=device)
        self.cells: Buffer = torch.zeros((batch, 3), dtype=torch.int32, device=device)
        self.errors: Buffer = torch.zeros(batch, device=device)

    def run(self, count: int) -> None:
        """See ``base.AbstractSlot``."""
        import torch

        with torch.inference_mode():
            sample = self.sample[:count]
            if self._channels_last:
                sample = sample.contiguous(memory_format=torch.channels_last)
            with self._alone:
                result = self._call(sample, self.timestep[:count], self.class_labels[:count])
            if result.shape != sample.shape:
                raise BackendError(f"the module returned shape {tuple(result.shape)}, expected {tuple(sample.shape)}")
            self.output[:count].copy_(result)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """See ``base.AbstractSlot``."""
        import torch

        buffer[: len(array)].copy_(torch.from_numpy(array))

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """See ``base.AbstractSlot``."""
        copy: npt.NDArray[np.float32] = buffer[:count].to("cpu", copy=True).numpy()
        return copy


class _CudaSlot(_TorchSlot):
    """A slot on a device, with a stream of its own and pinned memory beside the table and the errors.

    Args:
        written: Recorded after whatever the network wrote last.
        tf32: Whether products of float32 may round their factors; None: there are none.
        **more: See :class:`_TorchSlot`.
    """

    def __init__(self, *args: Any, written: "torch.cuda.Event", tf32: bool | None, device: str, **more: Any) -> None:
        import torch

        self.queue = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.queue):
            super().__init__(*args, device=device, **more)
        self._tf32 = tf32
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = int(self.queue.cuda_stream)
        self._written = written
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._staged: dict[int, torch.Tensor] = {}
        self._result = torch.zeros(len(self.errors), pin_memory=True)

    def run(self, count: int) -> None:
        """See ``base.AbstractSlot``."""
        import torch

        if self._tf32 is not None:
            _allow_tf32(self._tf32)
        with torch.cuda.stream(self.queue):
            super().run(count)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """See ``base.AbstractSlot``. What is staged here was read by the device when the last step's errors came."""
        import torch

        staged = self._staged.get(buffer.data_ptr())
        if staged is None:
            staged = self._staged[buffer.data_ptr()] = torch.zeros(buffer.shape, dtype=buffer.dtype, pin_memory=True)
        staged.numpy()[: len(array)] = array
        with torch.cuda.stream(self.queue):
            self.queue.wait_event(self._written)
            buffer[: len(array)].copy_(staged[: len(array)], non_blocking=True)

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """See ``base.AbstractSlot``. `buffer` is the slot's errors."""
        import torch

        with torch.cuda.stream(self.queue):
            self._result[:count].copy_(buffer[:count], non_blocking=True)
            self._done.record(self.queue)
        self._done.synchronize()  # without the GIL
        copy: npt.NDArray[np.float32] = self._result[:count].numpy().copy()
        return copy


class TorchNetwork:
    """A torch module as the network; see ``base.AbstractNetwork``.

    Args:
        module: forward(sample (b, c, h, w), timestep float32 (b,), class_labels int64 (b,)) -> (b, c, h, w). Moved to
            the device and precision, and put into evaluation mode.
        image_shape: (channels, height, width).
        options: device, precision (default float32), batch (default 128, on a CUDA device ``base.device_batch``),
            threads (sets torch's global thread count), compile, graphs, tf32 (on a CUDA device a float32 network sets
            torch's global flags of it, whenever it is launched).
        flops: Floating-point operations of an evaluation, where they are known.

    Attributes:
        module: The module as it runs, for what needs more than F, such as gradients.

    Raises:
        BackendError: CUDA was asked for and is not available.
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
        self.device = _choose_device(options.device)
        self.precision = "float32" if options.precision == "auto" else options.precision
        self.kept: dict[str, Any] = {}
        self.stream = 0
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
        more: dict[str, Any] = {"dtype": dtype, "device": self.device, "alone": _compiling if options.compile else None}
        if cuda:
            more |= self._prepare_cuda(options)
        call = _compiled(self.module) if options.compile else self.module
        kind = _CudaSlot if cuda else _TorchSlot
        self.slots: tuple[AbstractSlot, ...] = tuple(
            kind(call, self.batch, image_shape, **more) for _ in range(CUDA_SLOTS if cuda else 1)
        )

    def _prepare_cuda(self, options: NetworkOptions) -> dict[str, Any]:
        """Streams and layout on a device; what its slots need to know."""
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
        """The network of a bundle that ships its weights.

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
        """See ``base.AbstractNetwork``."""
        import torch

        with torch.cuda.stream(self._home) if self.stream else nullcontext():
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """See ``base.AbstractNetwork``."""
        import torch

        host = torch.from_numpy(np.ascontiguousarray(array))
        if not self.stream:
            buffer[: len(array)].copy_(host)
            return
        with torch.cuda.stream(self._home):
            # Pinned memory comes from torch's cache and returns to it once the copy has run.
            buffer[: len(array)].copy_(host.pin_memory(), non_blocking=True)
            self._written.record(self._home)

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """See ``base.AbstractNetwork``; waits for the device."""
        import torch

        with torch.cuda.stream(self._home) if self.stream else nullcontext():
            copy: npt.NDArray[np.float32] = buffer[:count].to("cpu", copy=True).numpy()
        return copy

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """See ``base.AbstractNetwork``.

        Raises:
            BackendError: The module does what a graph cannot hold, such as reading a value back.
        """
        import torch

        if not isinstance(slot, _CudaSlot) or not self._graphs:
            return None
        # The handles of cuBLAS and cuDNN and their plans are a thread's own and made when it first needs them, which no
        # capture allows: this thread need not be the one that ran the step before.
        launch()
        graph, queue = torch.cuda.CUDAGraph(), slot.queue
        try:
            # thread_local: the other slot's thread goes on launching and waiting meanwhile.
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


def _allow_tf32(allowed: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def _device_batch(device: str, flops: float | None, sample_bytes: int) -> int:
    import torch

    memory = torch.cuda.get_device_properties(device).total_memory
    return device_batch(flops, sample_bytes=sample_bytes, slots=CUDA_SLOTS, memory=memory)


def _compiled(module: "torch.nn.Module") -> Callable[..., "torch.Tensor"]:
    """The module compiled for each size by itself, as soon as it is called with it."""
    import torch

    more: dict[str, Any] = {}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        more = {"dynamic": False, "recompile_limit": _RECOMPILE_LIMIT}  # else after 8 sizes it would stop compiling
    compiled: Callable[..., torch.Tensor] = torch.compile(module, **more)
    return compiled


def _choose_device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() and kernels.cuda_device_count() else "cpu"
    if wanted == "cpu":
        return wanted
    if not torch.cuda.is_available():
        raise BackendError(f"device {wanted!r} was asked for, but torch {torch.__version__} finds no CUDA device")
    return f"cuda:{device_index(wanted)}"  # fastdc's kernels need it as well
