"""A bundle in int8: it runs, and it states how often it agrees with float32, as a comparison finds."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

import onnx

from fastdc.bundle import DENOISER
from fastdc.export import compare_errors, denoiser, export_source
from fastdc.loading import load
from fastdc.support import InputError
from helpers.exported import exported, labelled, small_source


def test_int8_agrees_as_often_as_it_states(tmp_path: Path, shared: Path) -> None:
    source, plain = exported("module", shared)
    images = labelled(source, 70)
    bundle = export_source(source, tmp_path / "int8", precision="int8", images=images, calibrate=False)
    assert bundle.manifest["precision"] == "int8"
    assert (bundle.model.calibration, bundle.model.defaults.temperature) == (None, 1.0)
    assert set(bundle.files) == {DENOISER}  # parts would have the other precision
    graph = onnx.load_from_string(bundle.read(DENOISER)).graph
    assert {node.op_type for node in graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    found = bundle.manifest["provenance"]
    assert found["int8_images"] == "64"
    labels = [
        load(one, backend="onnx", device="cpu").classify(images.images[:64], rule="full").labels
        for one in (bundle, plain)
    ]
    assert found["int8_agreement"] == pytest.approx(np.mean(labels[0] == labels[1]))
    assert found["int8_accuracy"] == pytest.approx(np.mean(labels[0] == images.labels[:64]))
    assert found["float32_accuracy"] == pytest.approx(np.mean(labels[1] == images.labels[:64]))
    assert found["int8_agreement"] > 0.7
    compared = compare_errors(source, bundle, images.images[:4])
    assert 1e-5 < compared.relative < 0.3


def test_int8_is_calibrated_with_the_int8_network(tmp_path: Path) -> None:
    source = small_source()
    images = labelled(source, 30)
    bundle = export_source(source, tmp_path / "int8", precision="int8", images=images)
    assert bundle.model.calibration is not None
    assert bundle.model.calibration.images == 30
    assert bundle.manifest["provenance"]["int8_images"] == "30"


def test_weights_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small_source()
    monkeypatch.setattr(denoiser, "LARGE", 2000)
    with pytest.raises(InputError, match=r"int8 needs a denoiser of less than 1\.5 GiB"):
        export_source(source, tmp_path / "int8", precision="int8", images=labelled(source))
    assert list(tmp_path.iterdir()) == []
