"""bfloat16 graphs in float32: the same values, no bfloat16 left, and the outputs of ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest

from fastdc import BundleError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnx

from fastdc.backends.onnx.widen import widen, widened_session
from fastdc.export.storage import external
from helpers.tiny_graphs import denoiser, graph


def test_widening_keeps_the_values_and_leaves_no_bfloat16() -> None:
    model = graph("mlp", precision="bfloat16")
    wide = widen(model)
    assert not any(one.data_type == onnx.TensorProto.BFLOAT16 for one in wide.graph.initializer)
    for before, after in zip(model.graph.initializer, wide.graph.initializer, strict=True):
        values = onnx.numpy_helper.to_array(before)
        assert np.array_equal(values.astype(np.float64), onnx.numpy_helper.to_array(after).astype(np.float64))
    onnx.checker.check_model(wide, full_check=True)


@pytest.mark.parametrize("outside", [False, True])
def test_a_session_computes_what_float32_computes_on_rounded_weights(outside: bool, tmp_path: Path) -> None:
    model = graph("mlp", precision="bfloat16")
    if outside:
        model = external(model, tmp_path / "denoiser.data")
    (tmp_path / "denoiser.onnx").write_bytes(model.SerializeToString())
    bundle = _Bundle(tmp_path, ("denoiser.onnx", *(["denoiser.data"] if outside else [])))
    feeds = denoiser("mlp").feeds(4)
    got = widened_session(bundle, "denoiser.onnx").run(None, feeds)[0]  # type: ignore[arg-type]
    want = onnx.reference.ReferenceEvaluator(widen(graph("mlp", precision="bfloat16"))).run(None, feeds)[0]
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


class _Bundle:
    """The part of a bundle that a session needs."""

    def __init__(self, path: Path, files: tuple[str, ...]) -> None:
        self.path, self.files = path, files
        self.manifest = {"files": {name: {"bytes": (path / name).stat().st_size} for name in files}}

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "denoiser.onnx").write_bytes(b"junk")
    with pytest.raises(BundleError, match=r"denoiser\.onnx cannot be loaded: "):
        widened_session(_Bundle(tmp_path, ("denoiser.onnx",)), "denoiser.onnx")  # type: ignore[arg-type]
