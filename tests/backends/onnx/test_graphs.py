"""Graphs that a bundle may not hold: garbage, other inputs and outputs, a fixed batch, data outside the file.

ONNX Runtime loads them here, so a refusal by either side counts. Each refusal is one line that names the file.
"""

from pathlib import Path
from typing import Any

import pytest

import fastdc
from fastdc import BackendError
from fastdc.backends import NetworkOptions, open_network
from fastdc.bundle.shipped import find_model
from helpers.denoiser_graphs import graph, onnx_package
from helpers.worlds import fails_with, gaussian, tiny_bundle, unit_images


def opened(tmp_path: Path, content: bytes) -> Any:
    pytest.importorskip("onnxruntime")
    return open_network(tiny_bundle(tmp_path / "b", content), "onnx", NetworkOptions(threads=1))


def test_a_right_graph_is_opened_and_run(tmp_path: Path) -> None:
    content = graph()
    clf = fastdc.load(tiny_bundle(tmp_path / "b", content), backend="onnx")
    assert clf.classify(unit_images(2, (1, 2, 3))).errors.shape == (2, 2)


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a graph", b"\xff" * 1000])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    fails_with(lambda: opened(tmp_path, content), "denoiser.onnx", "cannot be loaded")


def test_truncated_graphs_are_refused(tmp_path: Path) -> None:
    fails_with(
        lambda: opened(tmp_path, fastdc.load_bundle(find_model("digits-mlp")).read("denoiser.onnx")[:-5000]),
        "denoiser.onnx",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"sample": ("FLOAT", ["batch", 1, 3, 2])},
        {"sample": ("FLOAT", ["batch", 6])},
        {"sample": ("DOUBLE", ["batch", 1, 2, 3]), "output": ("DOUBLE", ["batch", 1, 2, 3])},
        {"sample": ("FLOAT", ["batch", 1, "h", "w"])},
        {"sample": ("FLOAT", [4, 1, 2, 3])},
        {"timestep": ("FLOAT", [])},
        {"timestep": ("FLOAT", [1])},
        {"timestep": ("INT64", ["batch"])},
        {"class_labels": ("INT32", ["batch"])},
        {"class_labels": ("INT64", ["batch", 1])},
        {"class_labels": ("INT64", [7])},
        {"output": ("FLOAT", [4, 1, 2, 3])},
        {"inputs": {"sample": ("FLOAT", ["batch", 1, 2, 3]), "timestep": ("FLOAT", ["batch"])}},
        {
            "inputs": {
                "x": ("FLOAT", ["batch", 1, 2, 3]),
                "timestep": ("FLOAT", ["b"]),
                "class_labels": ("INT64", ["b"]),
            }
        },
        {"outputs": {"sample_out": ("FLOAT", ["batch", 1, 2, 3])}},
        {"outputs": {"output": ("FLOAT", ["batch", 1, 2, 3]), "more": ("FLOAT", ["batch", 1, 2, 3])}},
    ],
)
def test_other_inputs_and_outputs_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    fails_with(lambda: opened(tmp_path, graph(**changes)), "denoiser.onnx")


def test_a_network_that_fails_in_a_step_is_one_line(tmp_path: Path) -> None:
    """A model of two classes with an embedding for one fails only when class 1 is evaluated."""
    onnx = onnx_package()
    table = onnx.helper.make_tensor("table", onnx.TensorProto.FLOAT, [1, 1, 2, 3], [0.0] * 6)
    nodes = [
        onnx.helper.make_node("Constant", [], ["table"], value=table),
        onnx.helper.make_node("Gather", ["table", "class_labels"], ["mean"], axis=0),
        onnx.helper.make_node("Add", ["sample", "mean"], ["output"]),
    ]
    clf = fastdc.load(tiny_bundle(tmp_path / "b", graph(nodes=nodes)), backend="onnx", threads=2)
    fails_with(lambda: clf.classify(unit_images(2, (1, 2, 3))), "ONNX Runtime failed", kind=BackendError)


# --- external data ---------------------------------------------------------------------------------------------------


def field(number: int, payload: bytes, padding: int = 0) -> bytes:
    """A length-delimited protobuf field; `padding` lengthens the varint of its length in a way that readers accept."""
    assert len(payload) < 128
    length = bytes([len(payload) | 0x80, *[0x80] * (padding - 1), 0]) if padding else bytes([len(payload)])
    return bytes([number << 3 | 2]) + length + payload


@pytest.mark.parametrize("padding", [0, 1, 4, 9])
@pytest.mark.parametrize("value_first", [False, True])
def test_data_outside_the_file_is_refused_in_any_encoding(tmp_path: Path, padding: int, value_first: bool) -> None:
    key, value = field(1, b"location", padding), field(2, b"/etc/passwd")
    tensor = field(13, value + key if value_first else key + value) + b"\x70\x01"
    refused = "shortest form" if padding else "outside the file"
    fails_with(lambda: opened(tmp_path, field(7, field(5, tensor))), "denoiser.onnx", refused)


def test_a_graph_with_external_data_is_refused(tmp_path: Path) -> None:
    onnx = onnx_package()
    for name, location in (("absolute", "/etc/passwd"), ("relative", "weights.bin"), ("up", "../../etc/passwd")):
        model = onnx.load_from_string(gaussian()._graph())
        (means,) = (tensor for tensor in model.graph.initializer if tensor.name == "means")
        onnx.external_data_helper.set_external_data(means, location=location, offset=0, length=len(means.raw_data))
        means.ClearField("raw_data")
        content = model.SerializeToString()
        fails_with(lambda n=name, c=content: opened(tmp_path / n, c), "denoiser.onnx", "outside the file")  # type: ignore[misc]
