"""TensorRT takes the graphs of every family in every precision: parsed and built by tensorrt_rtx, without a GPU."""

from pathlib import Path

import numpy as np
import pytest

from fastdc.backends import PRECISIONS
from fastdc.support import BackendError, InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("tensorrt_rtx")

import onnx
import tensorrt_rtx as trt  # type: ignore[import-untyped]

from fastdc.export import build_check, calibration_feeds, quantize_graph
from fastdc.export.scored import scored_graph
from fastdc.export.storage import external
from helpers import exported
from helpers.tiny_graphs import denoiser, graph

NAMES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_types_of_an_engine_are_the_graphs(precision: str) -> None:
    report = build_check(graph("mlp", precision=precision), trt)
    assert report.inputs == {"sample": NAMES[precision], "timestep": "FLOAT", "class_labels": "INT64"}
    assert report.outputs == {"output": NAMES[precision]}
    assert report.plan_bytes > 10_000
    assert report.layers > 10


def test_errors_int8_and_weights_outside_build_too(tmp_path: Path) -> None:
    assert build_check(scored_graph(graph("mlp")), trt).outputs == {"errors": "FLOAT"}
    one = denoiser("mlp")
    images = np.random.default_rng(0).standard_normal((4, *one.shape), np.float32)
    feeds = calibration_feeds(images, [(1.0, 0.5, 100.0)], one.conditions)
    assert build_check(quantize_graph(graph("mlp").SerializeToString(), feeds), trt).plan_bytes > 10_000
    model = external(graph("mlp"), tmp_path / "denoiser.data")
    (tmp_path / "denoiser.onnx").write_bytes(model.SerializeToString())
    assert build_check(tmp_path / "denoiser.onnx", trt).plan_bytes > 10_000


def test_an_error_names_the_node_that_cannot_be_parsed() -> None:
    model = graph("mlp")
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    gemm.op_type, gemm.domain = "Frobnicate", "nowhere"
    del gemm.attribute[:]
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    with pytest.raises(BackendError, match=rf"cannot parse the graph: {gemm.name} \(Frobnicate\)") as caught:
        build_check(model, trt)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="batch must be three sizes in increasing order from 1"):
        build_check(graph("mlp"), trt, batch=(2, 1, 4))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", exported.PUBLISHED)
def test_every_family_builds(family: str, precision: str, shared: Path) -> None:
    one = exported.denoiser_of(family, shared)
    model = exported.graph_of(family, shared, precision=precision)
    report = build_check(model, trt, leading={"conditions": (2, 3, 5)})
    assert report.outputs == {"output": NAMES[precision]}
    assert len(report.inputs) == 3 + len(one.tables)
