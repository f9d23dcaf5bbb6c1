"""Torch: the reference backend, for networks without an export, for autograd, and for CUDA.

A bundle's module is rebuilt from its plain config and ``weights.safetensors`` (``fastdc.networks``); any torch module
with forward(sample, timestep, class_labels) can be given instead.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.base import DEFAULT_BATCH, AbstractSlot, Buffer, NetworkOptions, one_line
from fastdc.bundle import Bundle
from fastdc.exceptions import BackendError, BundleError
from fastdc.extras import require
from fastdc.manifest import WEIGHTS

if TYPE_CHECKING:
    import torch


class _TorchSlot:
    """Torch buffers of a step, on the module's device; see ``base.AbstractSlot``."""

    def __init__(self, module: "torch.nn.Module", batch: int, image_shape: tuple[int, int, int], dtype: Any) -> None:
        import torch

        device = _device_of(module)
        self._module = module
        self.sample: Buffer = torch.zeros((batch, *image_shape), dtype=dtype, device=device)
        self.timestep: Buffer = torch.zeros(batch, device=device)
        self.class_labels: Buffer = torch.zeros(batch, dtype=torch.int64, device=device)
        self.output: Buffer = torch.zeros((batch, *image_shape), dtype=dtype, device=device)
        self.cells: Buffer = torch.zeros((batch, 3), dtype=torch.int32, device=device)
        self.errors: Buffer = torch.zeros(batch, device=device)

    def run(self, count: int) -> None:
        import torch

        with torch.inference_mode():
            result = self._module(self.sample[:count], self.timestep[:count], self.class_labels[:count])
            if result.shape != self.sample[:count].shape:
                raise BackendError(
                    f"the module returned shape {tuple(result.shape)}, expected {tuple(self.sample[:count].shape)}"
                )
            self.output[:count].copy_(result)


class TorchNetwork:
    """A torch module as the network; see ``base.AbstractNetwork``.

    Args:
        module: forward(sample (b, c, h, w), timestep float32 (b,), class_labels int64 (b,)) -> (b, c, h, w). Moved to
            the device and precision, and put into evaluation mode.
        image_shape: (channels, height, width).
        options: device, precision (default float32), batch, threads (sets torch's global thread count).

    Attributes:
        module: The module as it runs, for what needs more than F, such as gradients.

    Raises:
        BackendError: CUDA was asked for and is not available.
    """

    backend = "torch"

    def __init__(
        self, module: "torch.nn.Module", image_shape: tuple[int, int, int], options: NetworkOptions | None = None
    ) -> None:
        torch = require("torch")
        options = options or NetworkOptions()
        self.device = _choose_device(options.device)
        self.precision = "float32" if options.precision == "auto" else options.precision
        self.batch = options.batch or DEFAULT_BATCH
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        dtype = getattr(torch, self.precision)
        self.module = module.to(device=self.device, dtype=dtype).eval()
        self.slots: tuple[AbstractSlot, ...] = (_TorchSlot(self.module, self.batch, image_shape, dtype),)
        self.stream = 0
        if self.device.startswith("cuda"):
            self.stream = int(torch.cuda.current_stream(self.device).cuda_stream)

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

        from fastdc.networks import build_network

        module = build_network(str(entry.get("kind")), entry.get("config") or {})
        content = bundle.read(WEIGHTS)
        try:
            module.load_state_dict(safetensors.torch.load(content))
        except Exception as error:  # safetensors and torch raise bare exceptions
            raise BundleError(f"{bundle.path / WEIGHTS} does not fit the network: {one_line(error)}") from None
        return cls(module, bundle.model.sample_shape, options)

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """See ``base.AbstractNetwork``."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """See ``base.AbstractNetwork``."""
        import torch

        buffer[: len(array)].copy_(torch.from_numpy(array))

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """See ``base.AbstractNetwork``; waits for the device."""
        copy: npt.NDArray[np.float32] = buffer[:count].to("cpu", copy=True).numpy()
        return copy


def _device_of(module: "torch.nn.Module") -> "torch.device":
    import torch

    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _choose_device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return wanted
    if not torch.cuda.is_available():
        raise BackendError(f"device {wanted!r} was asked for, but torch {torch.__version__} finds no CUDA device")
    index = int(wanted.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise BackendError(f"device {wanted!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return f"cuda:{index}"
