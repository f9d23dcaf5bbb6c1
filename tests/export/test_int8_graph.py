"""int8 graphs: near the float ones, symmetric, their ends in float, calibrated where a classifier draws."""

from pathlib import Path

import numpy as np
import pytest

from fastdc.support import BackendError, InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnx
import onnxruntime

from fastdc.export import calibration_feeds, quantize_graph
from fastdc.export.int8_graph import product_ends
from helpers import exported
from helpers.tiny_graphs import Denoiser, denoiser, graph

LEVELS = [(0.9, 0.1, 20.0), (0.7, 0.7, 300.0), (0.1, 1.0, 900.0)]


def test_the_int8_mlp_is_near_the_float_one() -> None:
    check_near(denoiser("mlp"), graph("mlp").SerializeToString())


@pytest.mark.slow
def test_an_int8_unet_is_near_the_float_one(shared: Path) -> None:
    check_near(exported.denoiser_of("unet2d", shared), exported.graph_of("unet2d", shared).SerializeToString())


def check_near(one: Denoiser, model: bytes) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (16, *one.shape)).astype(np.float32)
    feeds = list(calibration_feeds(images, LEVELS, one.conditions))
    quantised = quantize_graph(model, feeds)
    assert quantised == quantize_graph(model, feeds)
    sessions = [onnxruntime.InferenceSession(x, providers=["CPUExecutionProvider"]) for x in (model, quantised)]
    other = next(calibration_feeds(images[::-1], LEVELS[1:], one.conditions))
    want, got = (session.run(None, other)[0] for session in sessions)
    relative = np.sqrt(((got - want) ** 2).mean() / (want**2).mean())
    assert 1e-4 < relative < 0.1  # 127 steps a layer: some tenths of a percent each
    made = onnx.load_from_string(quantised)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    pairs = [node for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    assert not any(constants[node.input[2]].any() for node in pairs if len(node.input) == 3)  # zero points
    weights = [constants[node.input[0]] for node in pairs if node.input[0] in constants]
    assert all(weight.dtype == np.int8 for weight in weights)
    assert sum(weight.nbytes for weight in weights) > 1000
    scales = [constants[node.input[1]] for node in pairs if node.input[0] in constants]
    assert all(scale.size in weight.shape for scale, weight in zip(scales, weights, strict=True))  # one per channel
    assert quantize_graph(model, feeds[:1]) != quantised  # every input counts, and one is enough


def test_the_ends_touch_the_image() -> None:
    model = graph("mlp")
    nodes = {node.name: node for node in model.graph.node}
    used = {name for end in product_ends(model) for name in nodes[end].input}
    assert {name.rpartition(".")[0] for name in used if name.endswith(".bias")} == {"linear_in", "linear_out"}


def test_calibration_sees_every_image_level_and_condition() -> None:
    images = np.random.default_rng(0).standard_normal((18, 1, 2, 2), np.float32)
    tables = {"text": np.zeros((4, 3), np.float32)}
    feeds = list(calibration_feeds(images, LEVELS, 4, tables=tables))
    assert len(feeds) == 9
    assert [len(feed["sample"]) for feed in feeds] == [8, 8, 2] * 3
    assert all(feed["text"] is tables["text"] for feed in feeds)
    assert {float(feed["timestep"][0]) for feed in feeds} == {20.0, 300.0, 900.0}
    assert set(np.concatenate([feed["class_labels"] for feed in feeds])) == {0, 1, 2, 3}
    clean = np.concatenate([feed["sample"] for feed in calibration_feeds(images, [(2.0, 0.0, 1.0)], 4)])
    assert np.array_equal(clean, 2 * images)


def test_graphs_that_cannot_be_quantised_are_refused() -> None:
    model = graph("mlp").SerializeToString()
    with pytest.raises(InputError, match="at least one input"):
        quantize_graph(model, [])
    with pytest.raises(BackendError, match="ONNX Runtime cannot quantise the graph"):
        quantize_graph(model, [{"sample": np.zeros((1, 1, 8, 8), np.float32)}])
