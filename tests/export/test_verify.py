"""The comparison of graphs with torch: it finds what differs, and its tolerance is what rounding explains."""

import numpy as np
import pytest

from fastdc.backends import PRECISIONS
from fastdc.support import BackendError, InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import torch
from torch import nn

from fastdc.export.verify import denoiser_feeds, tolerance, verify_graph
from helpers.tiny_graphs import denoiser, graph

MLP = denoiser("mlp")
FEEDS = denoiser_feeds(MLP.shape, MLP.conditions, (0.0, 999.0))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_that_is_off_is_found(precision: str) -> None:
    model = graph("mlp", precision=precision)
    found = verify_graph(model, MLP.module, FEEDS, precision=precision)
    assert 0 < found.relative <= found.allowed
    assert found.widened == (precision == "bfloat16")
    bias = next(one for one in model.graph.initializer if one.name.endswith("linear_out.bias"))
    values = onnx.numpy_helper.to_array(bias)
    bias.CopyFrom(onnx.numpy_helper.from_array((values + values.dtype.type(5)).astype(values.dtype), bias.name))
    with pytest.raises(BackendError, match=r"differs from torch by .* at batch 1, allowed"):
        verify_graph(model, MLP.module, FEEDS, precision=precision)


def test_a_baked_batch_is_found() -> None:
    class One(nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
            return sample + 1

    shape = onnx.helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Reshape", ["sample", "shape"], ["flat"]),  # as the exporter writes at a batch of one
        onnx.helper.make_node("Add", ["flat", "one"], ["output"]),
    ]
    inputs = [
        shape("sample", float32, ["batch", 1, 2, 2]),
        shape("timestep", float32, ["batch"]),
        shape("class_labels", onnx.TensorProto.INT64, ["batch"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array([1, 1, 2, 2]), "shape"),
        onnx.numpy_helper.from_array(np.array(1.0, np.float32), "one"),
    ]
    output = [shape("output", float32, ["batch", 1, 2, 2])]
    baked = onnx.helper.make_graph(nodes, "baked", inputs, output, constants)
    model = onnx.helper.make_model(baked, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    feeds = denoiser_feeds((1, 2, 2), 3, (0.0, 1.0))
    assert verify_graph(model, One(), feeds, batches=(1,)).difference == 0
    with pytest.raises(BackendError, match="ONNX Runtime cannot run the exported network"):
        verify_graph(model, One(), feeds)


def test_the_inputs_reach_every_condition_and_both_ends_of_the_levels() -> None:
    tables = {"text": np.ones((7, 2), np.float32)}
    feeds = list(denoiser_feeds((1, 2, 2), 7, (-5.0, 9.0), tables=tables)(65, np.random.default_rng(0)))
    assert set(np.concatenate([feed["class_labels"] for feed in feeds])) == set(range(7))
    times = np.concatenate([feed["timestep"] for feed in feeds])
    assert (times.min(), times.max()) == (-5.0, 9.0)
    assert any(not feed["sample"].any() for feed in feeds)
    assert all(feed["text"] is tables["text"] for feed in feeds)


def test_the_tolerance_covers_rounding_and_not_a_hundred_times_more() -> None:
    """A chain of square layers, in float32 and rounded to half precision, against float64."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((64, 64)) / 8 for _ in range(6)]
    chain = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in weights))
    assert tolerance(chain) == pytest.approx(8 * 2**-24 * 6 * 8)
    assert tolerance(chain, precision="float16") == pytest.approx(8 * 2**-11 * 6**0.5)
    assert tolerance(chain, precision="bfloat16") == pytest.approx(8 * 2**-8 * 6**0.5)
    x = rng.standard_normal((64, 100))
    want, single, half = x, x.astype(np.float32), x.astype(np.float16)
    for weight in weights:
        want, single = weight @ want, weight.astype(np.float32) @ single
        half = (weight.astype(np.float16).astype(float) @ half.astype(float)).astype(np.float16)
    scale = np.abs(want).max()
    assert tolerance(chain) / 100 < np.abs(single - want).max() / scale < tolerance(chain)
    allowed = tolerance(chain, precision="float16")
    assert allowed / 100 < np.abs(half - want).max() / scale < allowed


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision must be one of float32, float16, bfloat16, got 'int8'"):
        verify_graph(graph("mlp"), MLP.module, FEEDS, precision="int8")
