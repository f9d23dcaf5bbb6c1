"""TensorRT takes the graphs of every family in every precision: parsed and built by tensorrt_rtx, without a GPU."""

from pathlib import Path

import numpy as np
import pytest

from fastdc.support.exceptions import BackendError, InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("tensorrt_rtx")

import onnx
import tensorrt_rtx as trt  # type: ignore[import-untyped]

from fastdc.export.int8_graph import calibration_feeds, quantize_graph
from fastdc.export.scored import scored_graph
from fastdc.export.storage import external
from fastdc.export.tensorrt_check import build_check
from helpers.tiny_graphs import FAMILIES, denoiser, graph

NAMES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}


@pytest.mark.parametrize("precision", NAMES)
def test_the_types_of_an_engine_are_the_graphs(precision: str) -> None:
    report = build_check(graph("mlp", precision=precision), trt)
    assert report.inputs == {"sample": NAMES[precision], "timestep": "FLOAT", "class_labels": "INT64"}
    assert report.outputs == {"output": NAMES[precision]}
    assert report.plan_bytes > 10_000
    assert report.layers > 10


def test_errors_int8_and_weights_outside_build_too(tmp_path: Path) -> None:
    assert build_check(scored_graph(graph("mlp"), loss="huber"), trt).outputs == {"errors": "FLOAT"}
    one = denoiser("mlp")
    images = np.random.default_rng(0).standard_normal((4, *one.shape), np.float32)
    feeds = calibration_feeds(images, [(1.0, 0.5, 100.0)], one.conditions)
    assert build_check(quantize_graph(graph("mlp").SerializeToString(), feeds), trt).plan_bytes > 10_000
    model = external(graph("mlp"), tmp_path / "denoiser.data")
    (tmp_path / "denoiser.onnx").write_bytes(model.SerializeToString())
    assert build_check(tmp_path / "denoiser.onnx", trt).plan_bytes > 10_000


def test_what_cannot_be_parsed_is_told_with_its_node() -> None:
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


CASES = [(family, precision) for family in FAMILIES for precision in NAMES if family != "mlp"]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "precision"), CASES)
def test_every_family_builds(family: str, precision: str) -> None:
    one = denoiser(family)
    report = build_check(graph(family, precision=precision), trt, leading={"conditions": (2, 3, 5)})
    assert report.outputs == {"output": NAMES[precision]}
    assert len(report.inputs) == 3 + len(one.tables)
