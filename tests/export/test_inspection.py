"""Types, shapes and validity of graphs are found without their weights."""

from pathlib import Path

import pytest

from fastdc.support import BackendError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from fastdc.export.inspection import check_graph, skeleton, value_types
from fastdc.export.storage import external
from helpers.tiny_graphs import graph


def test_checks_need_no_weights_and_still_find_what_is_wrong(tmp_path: Path) -> None:
    model = external(graph("mlp"), tmp_path / "denoiser.data")
    check_graph(model)  # the file is not in the working folder of the process
    assert skeleton(model).ByteSize() < 60_000 < (tmp_path / "denoiser.data").stat().st_size
    next(node for node in model.graph.node if node.op_type == "Gemm").input[1] = "timestep"
    with pytest.raises(BackendError, match="not valid ONNX"):
        check_graph(model)


def test_types_are_known_beyond_a_group_normalisation() -> None:
    model = graph("attending")
    types = value_types(model)
    made = {name for node in model.graph.node for name in node.output if name}
    assert any(node.op_type == "GroupNormalization" for node in model.graph.node)
    assert made <= set(types)
    assert all(types[name].type.tensor_type.elem_type for name in made)
