"""A double of ONNX Runtime with GPU providers, which runs sessions on the CPU provider."""

from typing import Any

import pytest

onnxruntime: Any = pytest.importorskip("onnxruntime")

AVAILABLE = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class Binding:
    """An I/O binding that takes CUDA addresses as addresses in the CPU's memory."""

    def __init__(self, binding: Any, bound: dict[str, Any]) -> None:
        self.binding = binding
        self.bound = bound

    def bind_input(self, name: str, device: str, index: int, element: int, shape: list[int], pointer: int) -> None:
        assert device == "cuda"
        self.bound[name] = (index, element, tuple(shape), pointer)
        self.binding.bind_input(name, "cpu", 0, element, shape, pointer)

    def bind_output(self, name: str, device: str, index: int, element: int, shape: list[int], pointer: int) -> None:
        assert device == "cuda"
        self.bound[name] = (index, element, tuple(shape), pointer)
        self.binding.bind_output(name, "cpu", 0, element, shape, pointer)


class Session:
    """A session that records its bindings and runs."""

    def __init__(self, ort: "Ort", graph: Any, options: Any, providers: list[Any]) -> None:
        self.ort = ort
        self.providers = providers
        self.real = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.bindings: list[dict[str, Any]] = []
        self.runs: list[str] = []
        self.fallback = True
        ort.sessions.append(self)

    def get_providers(self) -> list[str]:
        if self.ort.loads:
            return [provider for provider, _ in self.providers]
        return ["CPUExecutionProvider"]

    def disable_fallback(self) -> None:
        self.fallback = False

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def io_binding(self) -> Binding:
        self.bindings.append({})
        return Binding(self.real.io_binding(), self.bindings[-1])

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        self.runs.append(options.get_run_config_entry("disable_synchronize_execution_providers"))
        if self.ort.fails:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2\nout of memory")
        self.real.run_with_iobinding(binding.binding)


class Ort:
    """The part of the module onnxruntime, in a build with CUDA, that fastdc uses.

    Attributes:
        sessions: The sessions made so far.
        available: Providers that the build has.
        loads: Whether the providers can run; otherwise a session falls back to the CPU, as in ONNX Runtime.
        fails: Whether every run fails.
        preloaded: Arguments of the calls of preload_dlls.
        refuses: The provider's error when a session is made; "" for none.
    """

    __version__ = "1.31.1"
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = onnxruntime.RunOptions
    OrtValue = onnxruntime.OrtValue

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.available = AVAILABLE
        self.loads = True
        self.fails = False
        self.preloaded: list[dict[str, Any]] = []
        self.refuses = ""

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self, **given: Any) -> None:
        self.preloaded.append(given)
        print("Failed to load libcudnn.so.9")

    def InferenceSession(  # noqa: N802
        self, graph: Any, options: Any, *, providers: list[Any], enable_fallback: int = 1
    ) -> Session:
        if self.refuses and not enable_fallback:
            raise RuntimeError(self.refuses)
        self.loads = self.loads and not self.refuses
        return Session(self, graph, options, providers)
