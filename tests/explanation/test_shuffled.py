"""Networks with shuffled weights: the same numbers in another order, and nothing known any more."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc.bundle import write_bundle
from fastdc.data import digits_test
from fastdc.explanation import shuffled_bundle, shuffled_module
from fastdc.support import BundleError, InputError
from fastdc.testing import GaussianWorld


def test_a_bundle_keeps_its_numbers_and_loses_what_it_knows(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = shuffled_bundle("digits-mlp", tmp_path / "shuffled", seed=3)
    before, after = (
        {
            one.name: onnx.numpy_helper.to_array(one)
            for one in onnx.load_model_from_string(bundle.read("denoiser.onnx")).graph.initializer
        }
        for bundle in (fastdc.load_bundle(fastdc.bundle.find_model("digits-mlp")), made)
    )
    assert before.keys() == after.keys()
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert sum(before[name].size for name in moved) > 0.98 * sum(one.size for one in before.values())
    for name in before:
        assert np.array_equal(np.sort(before[name].ravel()), np.sort(after[name].ravel()))
    test = digits_test().part(slice(60))
    right = (fastdc.load(made.path, threads=1).classify(test.images, rule="full", draws=4).labels == test.labels).mean()
    assert right < 0.4
    assert made.model.calibration is None
    again = shuffled_bundle(made, tmp_path / "again", seed=3)
    assert again.read("denoiser.onnx") != made.read("denoiser.onnx")
    with pytest.raises(BundleError, match="exists"):
        shuffled_bundle("digits-mlp", tmp_path / "again")


def test_weights_in_a_file_of_their_own_are_shuffled_too_and_the_graph_runs(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = shuffled_bundle("mnist", tmp_path / "shuffled")
    result = fastdc.load(made.path, threads=1).classify(np.zeros((1, 1, 28, 28), np.uint8), draws=1, rule="full")
    assert result.labels.shape == (1,)


def test_weights_of_8_bits_are_shuffled_and_the_decoder_stays(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    bundle = fastdc.load_bundle(fastdc.bundle.find_model("shapes"))
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    values = np.arange(-40, 40, dtype=np.int8).reshape(8, 10)
    tensors = [numpy_helper.from_array(values, "w"), numpy_helper.from_array(np.float32(0.1), "scale")]
    node = helper.make_node("DequantizeLinear", ["w", "scale"], ["out"])
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [8, 10])
    graph = helper.make_model(helper.make_graph([node], "int8", [], [out], tensors))
    kept: dict[str, Any] = {
        name: bundle.read(name) for name in ("encoder.onnx", "conditions.safetensors") if name in bundle.files
    }
    files = {"denoiser.onnx": graph.SerializeToString(), "decoder.onnx": b"decoder", **kept}
    left_out = ("files", "format", "version", "network", "cost", "calibration")
    manifest: dict[str, Any] = {key: value for key, value in bundle.manifest.items() if key not in left_out}
    manifest["network"] = None
    made = shuffled_bundle(write_bundle(tmp_path / "int8", manifest, files), tmp_path / "shuffled")
    (found,) = (
        numpy_helper.to_array(one)
        for one in onnx.load_model_from_string(made.read("denoiser.onnx")).graph.initializer
        if one.name == "w"
    )
    assert found.dtype == np.int8
    assert not np.array_equal(found, values)
    assert np.array_equal(np.sort(found.ravel()), np.sort(values.ravel()))
    assert made.read("decoder.onnx") == b"decoder"


def test_a_network_without_weights_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    world = GaussianWorld(means=np.zeros((2, 1, 1, 2))).write(tmp_path / "world")
    with pytest.raises(BundleError, match="has a network without weights"):
        shuffled_bundle(world, tmp_path / "shuffled")


def test_layers_of_a_module_are_shuffled_from_the_output() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(9, 8), torch.nn.ReLU(), torch.nn.Linear(8, 7), torch.nn.Linear(7, 6))
    for layers in (None, 1, 2, 3):
        made = shuffled_module(module, layers=layers, seed=1)
        kept = 0 if layers is None else 3 - layers
        linears = [[one for one in net.children() if isinstance(one, torch.nn.Linear)] for net in (module, made)]
        for number, (old, new) in enumerate(zip(*linears, strict=True)):
            before, after = (one.weight.detach().numpy().ravel() for one in (old, new))
            assert np.array_equal(before, after) == (number < kept)
            assert np.array_equal(np.sort(before), np.sort(after))
    with pytest.raises(InputError, match="layers must be a whole number from 1 to 3, got 4"):
        shuffled_module(module, layers=4)
    with pytest.raises(InputError, match="module must have weights"):
        shuffled_module(torch.nn.ReLU())
