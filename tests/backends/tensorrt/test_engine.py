"""Loaded engines: their inputs and outputs are checked, and none is loaded without a GPU."""

import re
from typing import Any

import pytest

from fastdc import BackendError
from fastdc.backends.tensorrt import driver
from fastdc.backends.tensorrt.build import EngineOptions, build_engine
from fastdc.backends.tensorrt.engine import check_tensors, load_engine
from fastdc.backends.tensorrt.module import import_tensorrt
from fastdc.bundle import find_model
from fastdc.diffusion import kernels

MLP = find_model("digits-mlp") / "denoiser.onnx"
SMALL = EngineOptions(batches=(4, 16), latency=(1, 2, 4))


def test_a_plan_with_other_tensors_is_refused() -> None:
    class Engine:
        num_io_tensors = 2

        def __init__(self, kind: str) -> None:
            self.kind = kind

        def get_tensor_name(self, index: int) -> str:
            return ("sample", "output")[index]

        def get_tensor_dtype(self, name: str) -> Any:
            return type("DataType", (), {"name": self.kind})

        def get_tensor_mode(self, name: str) -> Any:
            return type("Mode", (), {"name": "OUTPUT" if name == "output" else "INPUT"})

    with pytest.raises(BackendError, match=r"the engine must map .*'timestep': 'FLOAT'.* to output, it has .*HALF"):
        check_tensors(Engine("HALF"), "float16", ())


def test_a_real_plan_is_not_loaded_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX builds plans on this machine and has no GPU to run them on."""
    pytest.importorskip("tensorrt_rtx")
    if kernels.cuda_device_count():
        pytest.skip("there is a GPU")
    trt = import_tensorrt("tensorrt_rtx")
    plan = build_engine(trt, MLP, 11, SMALL).plan
    with pytest.raises(BackendError, match="backend tensorrt needs an NVIDIA GPU"):
        load_engine(trt, plan)
    monkeypatch.setattr(driver, "check_driver", lambda: None)
    with pytest.raises(BackendError, match=r"TensorRT-RTX .* does not load the plan: .*cudaError") as caught:
        load_engine(trt, plan)
    assert "\n" not in str(caught.value)
    assert not re.search("no reason", str(caught.value))
