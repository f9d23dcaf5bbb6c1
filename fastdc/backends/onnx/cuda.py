"""ONNX Runtime on a CUDA device: its CUDA or TensorRT execution provider on fastdc's own buffers and streams.

Inputs and output are bound where they lie, so a step copies only the cell table and the errors, and runs are told not
to wait for the device. Each slot has its own session and therefore its own copy of the weights: a session runs
everything on the one stream that it was given, a session without a stream must be waited for before and after every
run, and sessions share initialisers on the CPU provider only.

Steps are launched directly, not captured. ONNX Runtime's own CUDA graphs belong to the thread that captured them.
They are captured in CUDA's global mode, which fails if another thread of the process waits or allocates meanwhile.
Their replays have read host memory that a step of another size had overwritten (ONNX Runtime pull request 32121). With
the TensorRT provider, every size replays the graph of the first size. A run cannot be captured from outside either: it
returns host memory in a callback on its stream. The backends torch and tensorrt capture their steps.

ONNX Runtime lists providers even if they cannot run, and then falls back to the CPU with a warning. Here the session is
made without a fallback, and the provider that it uses is checked. The user's ``NetworkOptions.provider_options``
override the options set here. None of this has run on a device yet; docs/gpu.md has the command that verifies it. The
tests run these sessions on the CPU provider with everything else unchanged.
"""

import contextlib
import importlib.util
import io
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.backends.condition_tables import condition_tables
from fastdc.backends.cuda_arrays import DeviceArrays, device_index
from fastdc.backends.cuda_network import DeviceBuffers, DeviceNetwork
from fastdc.backends.onnx.graphs import (
    OUTPUT,
    check_graph,
    denoiser_values,
    graph_source,
    new_session,
    run_session,
    sample_precision,
    stop,
)
from fastdc.backends.options import NetworkOptions
from fastdc.backends.protocol import AbstractSlot, Buffer
from fastdc.backends.step_sizes import DEVICE_SLOTS, ELEMENT_BYTES, device_batch, halves
from fastdc.bundle import DENOISER, Bundle
from fastdc.support import BackendError, Float32, InputError, checks, install_hint, one_line, require

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""ONNX Runtime's names of the providers."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the inputs, by name."""

# ONNX's numbers of the element types. NumPy has no bfloat16, so its types cannot be used.
_ELEMENTS = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}

# The library that marks one of pip's folders, by the argument of preload_dlls that loads it.
_LIBRARIES = {"cuda": "cublasLt", "cudnn": "cudnn"}

# Options that turn on ONNX Runtime's own CUDA graphs.
_GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")


class OnnxCudaSlot(DeviceBuffers):
    """Device buffers of a step and a session on the same stream; implements ``AbstractSlot``.

    Args:
        session: Session of the denoiser.
        ort: The module onnxruntime.
        tables: Condition tables on the device.
        **more: As in ``DeviceBuffers``.
    """

    def __init__(self, session: Any, ort: Any, tables: dict[str, Buffer], **more: Any) -> None:
        super().__init__(**more)
        self._session = session
        self._tables = tables
        self._bindings: dict[int, Any] = {}
        self._options = ort.RunOptions()
        self._options.log_severity_level = 4
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, count: int) -> None:
        """Enqueues the evaluation of the first `count` rows on the slot's stream."""
        bound = self._bindings.get(count)
        if bound is None:
            bound = self._bindings[count] = self._bind(count)
        try:
            run_session(lambda options: self._session.run_with_iobinding(bound, options), self._options)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendError(f"ONNX Runtime failed on the network: {one_line(error)}") from None

    def stop(self) -> None:
        """Ends the step that runs now early, and refuses all later ones."""
        stop(self._options)

    def _bind(self, count: int) -> Any:
        binding = self._session.io_binding()
        inputs = {"sample": self.sample, "timestep": self.timestep, "class_labels": self.class_labels}
        arrays = {name: buffer[:count] for name, buffer in inputs.items()} | self._tables
        for name, array in arrays.items():
            binding.bind_input(name, *_location(array))
        binding.bind_output(OUTPUT, *_location(self.output[:count]))
        return binding


class OnnxCudaNetwork(DeviceNetwork):
    """A bundle's network in ONNX Runtime on a CUDA device; implements ``AbstractNetwork``.

    Args:
        bundle: The bundle.
        options: device, precision (must be the graph's), batch (default: as many cells as the device's memory and the
            network's cost allow), tf32, and provider_options.
        ort: The module onnxruntime, or a double of it.
        make_arrays: Makes the arrays and the stream of the network and of each slot; default: on the device asked for.

    Attributes:
        provider: ONNX Runtime's name of the provider.
        provider_options: Options that the provider was given, one mapping per slot.

    Raises:
        InputError: The provider is unknown, or the options turn on its CUDA graphs.
        MissingDependencyError: onnxruntime or cuda-core is not installed.
        BackendError: The device, provider or precision is not available.
        BundleError: The graph is corrupt, or its inputs and outputs are not those of a bundle.
    """

    backend = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        options: NetworkOptions,
        *,
        ort: Any = None,
        make_arrays: Callable[[], DeviceArrays] | None = None,
    ) -> None:
        given = dict(options.provider_options)
        kind = given.pop("provider", "cuda")
        checks.one_of("provider", kind, PROVIDERS)
        if graphs := [name for name in _GRAPHS if given.get(name, "0").lower() not in ("0", "false")]:
            raise InputError(f"steps in ONNX Runtime are not captured: expected no provider option {graphs[0]}")
        self.provider = PROVIDERS[kind]
        self.precision = _precision(bundle, options)
        if kind == "tensorrt" and self.precision == "float32" and not options.tf32:
            _warn_of_tf32()
        if make_arrays is None:
            index = device_index(options.device)
            make_arrays = lambda: DeviceArrays(index)  # noqa: E731
        ort = ort or require("onnxruntime", extra="cuda")
        _preload(ort)
        super().__init__(make_arrays(), graphs=False)
        self.batch = options.batch or self._default_batch(bundle)
        self.sizes: tuple[int, ...] | None = halves(self.batch)
        tables = condition_tables(bundle)
        placed = {name: self.place(np.ascontiguousarray(table)) for name, table in tables.items()}
        self.provider_options: list[dict[str, str]] = []
        slots: list[OnnxCudaSlot] = []
        for _ in range(DEVICE_SLOTS):
            arrays = make_arrays()
            cuda = _cuda_options(arrays, options)
            made = (cuda if kind == "cuda" else _tensorrt_options(arrays, *self._shapes(bundle, tables))) | given
            self.provider_options.append(made)
            session = open_session(ort, bundle, self.provider, made, beside=cuda)
            inputs, output = denoiser_values(bundle, tables)
            check_graph(bundle, DENOISER, session, inputs, [output])
            slot = OnnxCudaSlot(
                session,
                ort,
                placed,
                arrays=arrays,
                home=self.home,
                batch=self.batch,
                sample_shape=bundle.model.sample_shape,
                dtype=self.precision,
            )
            slots.append(slot)
        self.slots: tuple[AbstractSlot, ...] = tuple(slots)
        self._made = slots

    def stop(self) -> None:
        """Ends the steps that run now, each after the operator that it is at, and refuses all later ones."""
        for slot in self._made:
            slot.stop()

    def _shapes(self, bundle: Bundle, tables: Mapping[str, Float32]) -> tuple[Shapes, Shapes]:
        """The smallest and the largest shapes of the inputs."""
        fixed = {name: table.shape for name, table in tables.items()}
        shapes = [
            {"sample": (rows, *bundle.model.sample_shape), "timestep": (rows,), "class_labels": (rows,), **fixed}
            for rows in (1, self.batch)
        ]
        return shapes[0], shapes[1]

    def _default_batch(self, bundle: Bundle) -> int:
        sample_bytes = math.prod(bundle.model.sample_shape) * ELEMENT_BYTES[self.precision]
        return device_batch(bundle.flops, sample_bytes=sample_bytes, memory=self.home.memory)


def open_session(ort: Any, bundle: Bundle, provider: str, options: dict[str, str], *, beside: dict[str, str]) -> Any:
    """A session of a bundle's denoiser on one provider, without a fallback to the CPU.

    Args:
        ort: The module onnxruntime.
        bundle: The bundle.
        provider: ONNX Runtime's name of the provider.
        options: Options of the provider.
        beside: Options of the CUDA provider, which runs the nodes that the TensorRT provider does not take.

    Raises:
        BackendError: The provider is not available, or refuses the graph or the options.
        BundleError: The graph is corrupt.
    """
    graph = graph_source(bundle, DENOISER)
    missing = f"ONNX Runtime {ort.__version__} has no {provider}"
    if provider not in ort.get_available_providers():
        raise BackendError(f"{missing}: install onnxruntime-gpu in place of onnxruntime ({install_hint('cuda')})")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    providers: list[Any] = [(provider, options)]
    if provider == PROVIDERS["tensorrt"]:
        providers.append((PROVIDERS["cuda"], beside))
    try:  # without enable_fallback=0, ONNX Runtime prints the error and goes on with the CPU
        session = new_session(ort, graph, settings, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"{provider} does not run {bundle.path / DENOISER}: {one_line(error)}") from None
    if session.get_providers()[0] != provider:
        raise BackendError(f"{missing} that runs here: its CUDA libraries or the driver are missing or too old")
    session.disable_fallback()
    return session


def _preload(ort: Any) -> None:
    """Loads the libraries of CUDA and cuDNN from pip's folders, which need not be beside ONNX Runtime."""
    if not hasattr(ort, "preload_dlls"):
        return
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None else [Path(root) for root in spec.submodule_search_locations or ()]
    own = Path(getattr(ort, "__file__", None) or ".").resolve().parent.parent
    with contextlib.redirect_stdout(io.StringIO()):  # preload_dlls prints which libraries it misses
        for folder in sorted(folder for root in roots if root.resolve().parent != own for folder in root.glob("*/lib")):
            has = {name: any(folder.glob(f"lib{library}.so*")) for name, library in _LIBRARIES.items()}
            if any(has.values()):
                ort.preload_dlls(**has, directory=str(folder))
        ort.preload_dlls()


def _cuda_options(arrays: DeviceArrays, options: NetworkOptions) -> dict[str, str]:
    """Options of the CUDA provider for a slot."""
    return {
        "device_id": str(arrays.index),
        "user_compute_stream": str(arrays.stream),
        "use_tf32": str(int(options.tf32)),
        # The default times algorithms, for each size again. Slots that chose differently would round differently.
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _tensorrt_options(arrays: DeviceArrays, least: Shapes, largest: Shapes) -> dict[str, str]:
    """Options of the TensorRT provider for a slot, with one range of shapes for all sizes."""
    low, high = (
        ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in given.items()) for given in (least, largest)
    )
    return {
        "device_id": str(arrays.index),
        "user_compute_stream": str(arrays.stream),
        "trt_profile_min_shapes": low,
        "trt_profile_opt_shapes": high,
        "trt_profile_max_shapes": high,
    }


def _warn_of_tf32() -> None:
    """Warns that the TensorRT provider uses TF32, which has no option; only NVIDIA's own switch turns it off."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        what = "the TensorRT provider rounds factors of float32 to TF32 without asking"
        warnings.warn(f"{what}: set NVIDIA_TF32_OVERRIDE=0, or load with tf32=True", RuntimeWarning, stacklevel=4)


def _location(array: Any) -> tuple[str, int, int, list[int], int]:
    """Arguments of I/O binding that say where an array lies."""
    return "cuda", array.device, _ELEMENTS[array.dtype], list(array.shape), array.pointer


def _precision(bundle: Bundle, options: NetworkOptions) -> str:
    """Element type of sample and output, which is the graph's."""
    kind = sample_precision(bundle)
    if options.precision not in ("auto", kind):
        raise BackendError(
            f"backend onnx runs this bundle in {kind}, got precision {options.precision!r}: export the model in it"
        )
    return kind
