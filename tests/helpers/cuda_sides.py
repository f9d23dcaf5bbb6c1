"""Backends on a device and, beside each, a double of it on the CPU, for tests that run on both.

A test takes a *side*: a backend on a device, marked `cuda` and skipped without one, or its double. The doubles are
those of the backends' own tests: torch on the CPU, and ONNX Runtime and TensorRT on device arrays in the CPU's memory.
On a double, a test shows only that it is well-formed; only a device can show that its claims hold.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fastdc
from fastdc import BackendError, DiffusionClassifier, MissingDependencyError
from fastdc.backends import AbstractNetwork, NetworkOptions, open_network
from fastdc.bundle.folder import Bundle, load_bundle
from fastdc.bundle.shipped import find_model
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from helpers.cuda_doubles import HostedArrays

BACKENDS = ("torch", "onnx", "onnx-tensorrt", "tensorrt")

IMAGES = digits_test().images[:40]

# Relative tolerance of an error if networks differ in the order of their float32 sums: as bench/gpu/parts.py derives
# it, 1.1e-4 for digits-mlp and 5.7e-4 for digits. The best class of these images leads by at least 9 %.
RTOL = 1e-3

# The same if factors are rounded to TF32's 11 bits in the ten layers of digits-mlp, 16 * 2^-11 * sqrt(10): ONNX
# Runtime's TensorRT provider has no option against TF32. The best class of digits-mlp leads by at least 18 %.
TF32_RTOL = 0.025

# The same in all tests, so that one engine is built for all of them; its halves are steps of six sizes.
BATCH = 24


def _no_device() -> str:
    """Why nothing can run on a device; empty if something can."""
    if not kernels.build_config()["cuda"]:
        return "fastdc was built without CUDA"
    return "" if kernels.cuda_device_count() else "no CUDA device"


NO_DEVICE = _no_device()
ON_DEVICE = (pytest.mark.cuda, pytest.mark.skipif(bool(NO_DEVICE), reason=NO_DEVICE or "there is a device"))
DEVICES = [pytest.param("cuda", marks=ON_DEVICE), "cpu"]


@dataclass(frozen=True)
class Side:
    """A backend, one of :data:`BACKENDS`, on a device or as its double."""

    backend: str
    on_device: bool

    @property
    def rtol(self) -> float:
        """Relative tolerance of an error against the CPU's."""
        return TF32_RTOL if self.backend == "onnx-tensorrt" else RTOL


def sides(*backends: str) -> list[Any]:
    """Parameters of a test: each backend on a device, and its double."""
    return [
        pytest.param(Side(name, on_device), id=f"{name}-{where}", marks=ON_DEVICE if on_device else ())
        for name in backends
        for on_device, where in ((True, "cuda"), (False, "cpu"))
    ]


class StandInArrays(HostedArrays):
    """Device arrays in the CPU's memory, of which a replay launches the captured work again."""

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            launch()

        return replay


Open = Callable[..., DiffusionClassifier]

# Messages about packages that are installed without CUDA, or without libraries of CUDA or TensorRT that they need.
MISSING = "|".join(
    [
        r"^ONNX Runtime \S+ has no ",
        r"ExecutionProvider does not run .*(cannot open shared object|able to be loaded|[Pp]lease install)",
        r"but torch \S+ finds no CUDA device",
    ]
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Opens a model on a side as a user would; a package that is not installed skips the test and is named."""
    standing_in = False

    def open_it(side: Side, model: str = "digits-mlp", *, device: str = "cuda", **options: Any) -> DiffusionClassifier:
        nonlocal standing_in
        engines = tmp_path_factory.getbasetemp() / "engines" if side.on_device else tmp_path
        monkeypatch.setenv("FASTDC_CACHE", str(engines))
        if not side.on_device and not standing_in:
            _stand_in(monkeypatch)
            standing_in = True
        backend, _, provider = side.backend.partition("-")
        if provider:
            options |= {"provider_options": provider_options(provider, engines / "of-the-provider"), "tf32": True}
        try:
            return fastdc.load(model, backend=backend, device=device, **options)
        except MissingDependencyError as error:
            pytest.skip(str(error))
        except BackendError as error:
            if not re.search(MISSING, str(error)):
                raise
            pytest.skip(str(error))

    return open_it


def provider_options(provider: str, folder: Path) -> dict[str, str]:
    """Options of a provider of ONNX Runtime that keeps the engines it builds; otherwise it builds one per slot."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {f"trt_{kind}_cache_enable": "1" for kind in ("engine", "timing")}
    return {"provider": provider, **kept, **{f"trt_{kind}_cache_path": str(folder) for kind in ("engine", "timing")}}


@cache
def on_cpu(model: str = "digits-mlp") -> DiffusionClassifier:
    """A shipped model on the CPU, whose numbers all sides must give."""
    bundle = load_bundle(find_model(model))
    return DiffusionClassifier(bundle.model, open_network(bundle, "auto", NetworkOptions(device="cpu", threads=1)))


def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets fastdc open networks on a device that does not exist."""
    from fastdc.backends.tensorrt import driver
    from fastdc.backends.tensorrt import network as tensorrt
    from fastdc.backends.tensorrt.module import TensorRT, use_module

    @cache
    def double() -> TensorRT:
        from helpers.tensorrt_double import Double

        return use_module(Double("11.4").module, "tensorrt")

    def open_double(bundle: Bundle, backend: str, options: NetworkOptions) -> AbstractNetwork:
        if backend == "torch":
            return open_network(bundle, backend, replace(options, device="cpu"))
        pytest.importorskip("onnxruntime")
        if backend == "tensorrt":
            return open_network(bundle, backend, options)
        from fastdc.backends.onnx.cuda import OnnxCudaNetwork
        from helpers.onnxruntime_double import Ort

        return OnnxCudaNetwork(bundle, options, ort=Ort(), make_arrays=StandInArrays)

    monkeypatch.setattr(tensorrt, "DeviceArrays", lambda index: StandInArrays())
    monkeypatch.setattr(driver, "gpu", lambda index: driver.Gpu("Double 1", "9.0", 13))
    monkeypatch.setattr(driver, "use_device", lambda index: None)
    monkeypatch.setattr(driver, "check_driver", lambda: None)
    monkeypatch.setattr(tensorrt, "open_tensorrt", lambda flavour: double())
    monkeypatch.setattr("fastdc.loading.open_network", open_double)
