"""ONNX Runtime on a CUDA device: its CUDA or TensorRT execution provider on buffers and streams of our own.

Inputs and output are bound where they lie, so nothing is copied for a step but the cell table and the errors, and runs
are told not to wait for the device. The weights are on the device once a slot: a session that is given a stream runs
everything on it, one that is given none has to be waited for at both ends of every run, and sessions share initialisers
on the CPU provider alone.

Steps are launched as they are, not captured. ONNX Runtime's own CUDA graphs belong to the thread that captured them; a
capture is of CUDA's global mode and fails where another thread of the process waits or allocates meanwhile; replays
have read host memory that a step of another size had overwritten (its pull request 32121); and the TensorRT provider
replays the first size that it captured for all sizes. Nor can a run be captured from outside: it gives host memory back
in a callback on its stream. The backends torch and tensorrt have captured steps.

Providers are listed also where they cannot run, and ONNX Runtime then falls back to the CPU with a warning: here the
session is made without a fallback, and the provider it has is looked at. Options of the provider that a user gives
(``NetworkOptions.provider_options``) go over those that are set here. Not run on a device yet: docs/gpu.md has the
command; tests run these sessions on the CPU provider with everything else as it is.
"""

import contextlib
import importlib.util
import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.cuda_arrays import DeviceArrays, DeviceBuffers, DeviceNetwork, device_index
from fastdc.backends.onnx.graphs import Value, check_graph, graph_source, tables_of
from fastdc.backends.protocol import ELEMENT_BYTES, AbstractSlot, Buffer, NetworkOptions, device_batch, halves, one_line
from fastdc.bundle import DENOISER, Bundle
from fastdc.support import BackendError, InputError, require

OUTPUT = "output"
CUDA_SLOTS = 2
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}

# ONNX's numbers of the element types that NumPy has and has not, and ONNX Runtime's names of them.
_ELEMENTS = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}
_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}

# A library by which a folder of pip's is known, by the argument of preload_dlls that asks for it.
_LIBRARIES = {"cuda": "cublasLt", "cudnn": "cudnn"}

# What turns on ONNX Runtime's own CUDA graphs.
_GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")


class OnnxCudaSlot(DeviceBuffers):
    """Device buffers of a step and a session on the same stream; see ``base.AbstractSlot``.

    Args:
        session: Of the denoiser.
        ort: onnxruntime.
        tables: Condition tables on the device.
        **more: See ``DeviceBuffers``.
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
        """See ``base.AbstractSlot``."""
        bound = self._bindings.get(count)
        if bound is None:
            bound = self._bindings[count] = self._bind(count)
        try:
            self._session.run_with_iobinding(bound, self._options)
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


class OnnxCudaNetwork(DeviceNetwork):
    """A bundle's network in ONNX Runtime on a CUDA device; see ``base.AbstractNetwork``.

    Args:
        bundle: The bundle.
        options: device, precision (must be the graph's), batch (default ``base.device_batch``), tf32,
            provider_options.
        ort: onnxruntime, or a stand-in.
        make_arrays: Makes arrays and stream of the network and of each slot; default: on the device asked for.

    Attributes:
        provider: ONNX Runtime's name of the provider.
        provider_options: What it was given for each slot.

    Raises:
        InputError: An unknown provider, or options that turn on its CUDA graphs.
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
        tables = tables_of(bundle)
        placed = {name: self.place(np.ascontiguousarray(table)) for name, table in tables.items()}
        self.provider_options: list[dict[str, str]] = []
        slots: list[AbstractSlot] = []
        for _ in range(CUDA_SLOTS):
            arrays = make_arrays()
            cuda = _cuda_options(arrays, options)
            made = (cuda if kind == "cuda" else _tensorrt_options(arrays, *self._shapes(bundle, tables))) | given
            self.provider_options.append(made)
            session = open_session(ort, bundle, self.provider, made, beside=cuda)
            _check(bundle, session, self.precision, tables)
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

    def _default_batch(self, bundle: Bundle) -> int:
        sample_bytes = math.prod(bundle.model.sample_shape) * ELEMENT_BYTES[self.precision]
        return device_batch(bundle.flops, sample_bytes=sample_bytes, slots=CUDA_SLOTS, memory=self.home.memory)


def open_session(ort: Any, bundle: Bundle, provider: str, options: dict[str, str], *, beside: dict[str, str]) -> Any:
    """A session of a bundle's denoiser on a provider and no other device.

    Args:
        ort: onnxruntime.
        bundle: The bundle.
        provider: ONNX Runtime's name of it.
        options: The provider's.
        beside: Those of the CUDA provider, for what TensorRT's does not take.

    Raises:
        BackendError: The provider is not there, or does not take the graph or the options.
        BundleError: The graph is corrupt.
    """
    graph = graph_source(bundle, DENOISER)
    missing = f"ONNX Runtime {ort.__version__} has no {provider}"
    if provider not in ort.get_available_providers():
        raise BackendError(f"{missing}: install onnxruntime-gpu in place of onnxruntime (pip install 'fastdc[cuda]')")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # errors come back as exceptions
    providers: list[Any] = [(provider, options)]
    if provider == PROVIDERS["tensorrt"]:
        providers.append((PROVIDERS["cuda"], beside))
    try:  # without enable_fallback=0 it would print what is wrong and go on with the CPU
        session = ort.InferenceSession(graph, settings, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"{provider} does not run {bundle.path / DENOISER}: {one_line(error)}") from None
    if session.get_providers()[0] != provider:
        raise BackendError(f"{missing} that runs here: its CUDA libraries or the driver are missing or too old")
    session.disable_fallback()
    return session


def _preload(ort: Any) -> None:
    """Loads CUDA's and cuDNN's libraries from where pip put them, which need not be beside ONNX Runtime."""
    if not hasattr(ort, "preload_dlls"):
        return
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None else [Path(root) for root in spec.submodule_search_locations or ()]
    own = Path(getattr(ort, "__file__", None) or ".").resolve().parent.parent
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        for folder in sorted(folder for root in roots if root.resolve().parent != own for folder in root.glob("*/lib")):
            has = {name: any(folder.glob(f"lib{library}.so*")) for name, library in _LIBRARIES.items()}
            if any(has.values()):
                ort.preload_dlls(**has, directory=str(folder))
        ort.preload_dlls()


def _cuda_options(arrays: DeviceArrays, options: NetworkOptions) -> dict[str, str]:
    """The options of the CUDA provider that a slot needs."""
    return {
        "device_id": str(arrays.index),
        "user_compute_stream": str(arrays.stream),
        "use_tf32": str(int(options.tf32)),
        # The default may time algorithms, for every size again: slots that chose differently would round differently.
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _tensorrt_options(
    arrays: DeviceArrays, least: dict[str, tuple[int, ...]], largest: dict[str, tuple[int, ...]]
) -> dict[str, str]:
    """The options of the TensorRT provider that a slot needs: the range of shapes is that of all sizes."""
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
    """The TensorRT provider has no option against TF32, which it uses; only NVIDIA's own switch turns it off."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        what = "the TensorRT provider rounds factors of float32 to TF32 without asking"
        warnings.warn(f"{what}: set NVIDIA_TF32_OVERRIDE=0, or load with tf32=True", RuntimeWarning, stacklevel=4)


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
