"""ONNX Runtime on a CUDA device: its CUDA or TensorRT execution provider on buffers and streams of our own.

Inputs and output are bound where they lie, so nothing is copied for a step but the cell table and the errors. A
provider works on one stream, so each slot has a session of its own on its own stream, and the weights are on the device
once a slot. Runs are told not to wait for the device.

ONNX Runtime captures its own CUDA graphs, one for each number of rows (``gpu_graph_id``): the network of a step is a
replay, and fastdc's two kernels are launched around it. Capturing the step as a whole is left to backends that leave it
to their caller.

Providers are listed also where they cannot run, and ONNX Runtime then falls back to the CPU with a warning: here the
session is made without a fallback, and the provider it has is looked at. Options of the provider that a user gives
(``NetworkOptions.provider_options``) go over those that are set here. Not run on a device yet: docs/gpu.md has the
command; tests run these sessions on the CPU provider with everything else as it is.
"""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.base import AbstractSlot, Buffer, NetworkOptions, halves, one_line
from fastdc.backends.cuda_arrays import DeviceArrays, DeviceBuffers, DeviceNetwork, device_index
from fastdc.backends.graphs import Value, check_graph, graph_source, tables_of
from fastdc.bundle import Bundle
from fastdc.exceptions import BackendError, InputError
from fastdc.extras import require
from fastdc.manifest import DENOISER

OUTPUT = "output"
CUDA_SLOTS = 2
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}

# ONNX's numbers of the element types that NumPy has and has not, and ONNX Runtime's names of them.
_ELEMENTS = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}
_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}

# Floating-point operations of the largest step, and rows: a few tens of milliseconds on a large GPU.
_STEP_FLOPS = 2e13
_LARGEST = 512


class OnnxCudaSlot(DeviceBuffers):
    """Device buffers of a step and a session on the same stream; see ``base.AbstractSlot``.

    Args:
        session: Of the denoiser.
        ort: onnxruntime.
        tables: Condition tables on the device.
        graphs: The numbers of rows for which ONNX Runtime captures a graph; none: it does not.
        **more: See ``DeviceBuffers``.
    """

    def __init__(
        self, session: Any, ort: Any, tables: dict[str, Buffer], *, graphs: tuple[int, ...], **more: Any
    ) -> None:
        super().__init__(**more)
        self._session = session
        self._ort = ort
        self._tables = tables
        self._graphs = graphs
        self._bindings: dict[int, tuple[Any, Any]] = {}

    def run(self, count: int) -> None:
        """See ``base.AbstractSlot``."""
        bound = self._bindings.get(count)
        if bound is None:
            bound = self._bindings[count] = (self._bind(count), self._options(count))
        try:
            self._session.run_with_iobinding(*bound)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendError(f"ONNX Runtime failed on the network: {one_line(error)}") from None

    def _bind(self, count: int) -> Any:
        binding = self._session.io_binding()
        inputs = {"sample": self.sample, "timestep": self.timestep, "class_labels": self.class_labels}
        arrays = {name: buffer[:count] for name, buffer in inputs.items()} | self._tables
        for name, array in arrays.items():
            binding.bind_input(name, *_place(array))
        binding.bind_output(OUTPUT, *_place(self.output[:count]))
        return binding

    def _options(self, count: int) -> Any:
        options = self._ort.RunOptions()
        options.log_severity_level = 4
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        graph = self._graphs.index(count) + 1 if count in self._graphs else -1
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


class OnnxCudaNetwork(DeviceNetwork):
    """A bundle's network in ONNX Runtime on a CUDA device; see ``base.AbstractNetwork``.

    Args:
        bundle: The bundle.
        options: device, precision (must be the graph's), batch (default 512, or as many evaluations as 20 TFLOP pay
            for), graphs, tf32, provider_options.
        ort: onnxruntime, or a stand-in.
        make_arrays: Makes arrays and stream of the network and of each slot; default: on the device asked for.

    Attributes:
        provider: ONNX Runtime's name of the provider.
        provider_options: What it was given for each slot.

    Raises:
        InputError: An unknown provider.
        MissingDependencyError: onnxruntime or cuda-core is not installed.
        BackendError: There is no such device, provider or precision.
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
        if kind not in PROVIDERS:
            raise InputError(f"provider must be one of {', '.join(PROVIDERS)}, got {kind!r:.80}")
        self.provider = PROVIDERS[kind]
        self.precision = _precision(bundle, options)
        if make_arrays is None:
            index = device_index(options.device)
            make_arrays = lambda: DeviceArrays(index)  # noqa: E731
        ort = ort or require("onnxruntime", extra="cuda")
        super().__init__(make_arrays(), graphs=options.graphs)
        self.batch = options.batch or _default_batch(bundle)
        self.sizes: tuple[int, ...] | None = halves(self.batch)
        tables = tables_of(bundle)
        placed = {name: self.place(np.ascontiguousarray(table)) for name, table in tables.items()}
        self.provider_options: list[dict[str, str]] = []
        slots: list[AbstractSlot] = []
        for _ in range(CUDA_SLOTS):
            arrays = make_arrays()
            made = _set_options(kind, arrays, options, self._shapes(bundle, tables)) | given
            self.provider_options.append(made)
            session = open_session(ort, bundle, self.provider, made)
            _check(bundle, session, self.precision, tables)
            slot = OnnxCudaSlot(
                session,
                ort,
                placed,
                graphs=self.sizes if options.graphs else (),
                arrays=arrays,
                home=self.home,
                batch=self.batch,
                sample_shape=bundle.model.sample_shape,
                dtype=self.precision,
            )
            slots.append(slot)
        self.slots: tuple[AbstractSlot, ...] = tuple(slots)

    def _shapes(
        self, bundle: Bundle, tables: dict[str, npt.NDArray[np.float32]]
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """The least and the largest shapes of the inputs."""
        fixed = {name: table.shape for name, table in tables.items()}
        shapes = [
            {"sample": (rows, *bundle.model.sample_shape), "timestep": (rows,), "class_labels": (rows,), **fixed}
            for rows in (1, self.batch)
        ]
        return shapes[0], shapes[1]

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """See ``base.AbstractNetwork``: none, ONNX Runtime captures its own."""
        return None


def open_session(ort: Any, bundle: Bundle, provider: str, options: dict[str, str]) -> Any:
    """A session of a bundle's denoiser on a provider and no other device.

    Args:
        ort: onnxruntime.
        bundle: The bundle.
        provider: ONNX Runtime's name of it.
        options: The provider's.

    Raises:
        BackendError: The provider is not there, or does not take the graph or the options.
        BundleError: The graph is corrupt.
    """
    graph = graph_source(bundle, DENOISER)
    missing = f"ONNX Runtime {ort.__version__} has no {provider}"
    if provider not in ort.get_available_providers():
        raise BackendError(f"{missing}: install onnxruntime-gpu in place of onnxruntime (pip install 'fastdc[cuda]')")
    if hasattr(ort, "preload_dlls"):  # CUDA's libraries where pip put them
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # errors come back as exceptions
    providers: list[Any] = [(provider, options)]
    if provider == PROVIDERS["tensorrt"]:  # what TensorRT does not take
        providers.append((PROVIDERS["cuda"], {key: options[key] for key in ("device_id", "user_compute_stream")}))
    try:
        session = ort.InferenceSession(graph, settings, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"{provider} does not run {bundle.path / DENOISER}: {one_line(error)}") from None
    if session.get_providers()[0] != provider:
        raise BackendError(f"{missing} that runs here: its CUDA libraries or the driver are missing or too old")
    session.disable_fallback()
    return session


def _set_options(
    kind: str,
    arrays: DeviceArrays,
    options: NetworkOptions,
    shapes: tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]],
) -> dict[str, str]:
    """The options of a provider that a slot needs."""
    made = {"device_id": str(arrays.index), "user_compute_stream": str(arrays.stream)}
    graphs = str(int(options.graphs))
    if kind == "cuda":
        return {**made, "enable_cuda_graph": graphs, "use_tf32": str(int(options.tf32))}
    least, largest = (
        ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in given.items()) for given in shapes
    )
    return {
        **made,
        "trt_cuda_graph_enable": graphs,
        "trt_profile_min_shapes": least,
        "trt_profile_opt_shapes": largest,
        "trt_profile_max_shapes": largest,
    }


def _place(array: Any) -> tuple[str, int, int, list[int], int]:
    """Where an array lies, as I/O binding asks for it."""
    return "cuda", array.device, _ELEMENTS[array.dtype], list(array.shape), array.pointer


def _check(bundle: Bundle, session: Any, precision: str, tables: dict[str, npt.NDArray[np.float32]]) -> None:
    kind, sample = _NAMES[precision], (None, *bundle.model.sample_shape)
    inputs: list[Value] = [
        ("sample", kind, sample),
        ("timestep", "float", (None,)),
        ("class_labels", "int64", (None,)),
        *((name, "float", (None, *table.shape[1:])) for name, table in tables.items()),
    ]
    check_graph(bundle, DENOISER, session, inputs, [(OUTPUT, kind, sample)])


def _precision(bundle: Bundle, options: NetworkOptions) -> str:
    """Element type of sample and output: the graph's."""
    graph = str(bundle.manifest.get("precision", "float32"))
    kind = "float32" if graph == "int8" else graph
    if options.precision not in ("auto", kind):
        raise BackendError(
            f"backend onnx runs this bundle in {kind}, got precision {options.precision!r}: export the model in it"
        )
    return kind


def _default_batch(bundle: Bundle) -> int:
    flops = (bundle.manifest.get("cost") or {}).get("flops")
    if not isinstance(flops, (int, float)) or not flops > 0:
        return _LARGEST
    affordable = int(math.log2(max(1.0, _STEP_FLOPS / flops)))
    return min(_LARGEST, 1 << affordable)
