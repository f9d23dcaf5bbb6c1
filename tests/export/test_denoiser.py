"""The files of a denoiser: one set of weights for all graphs, every precision, errors as a graph, refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

import onnx
import onnxruntime
import torch

from fastdc.backends import NetworkOptions, OnnxNetwork
from fastdc.bundle import DATA, DENOISER, REST, SCORED, Bundle, Model
from fastdc.diffusion import DiscreteSchedule
from fastdc.export import compare_errors, denoiser, export_source
from fastdc.export.denoiser import checked_batches, conditions, timesteps
from fastdc.export.scored import COLUMNS
from fastdc.loading import load
from fastdc.sources import Source
from fastdc.support import BackendError, InputError
from fastdc.testing import reference
from helpers.exported import exported, random_images, small_source


def _external(graph: bytes) -> dict[str, tuple[str, ...]]:
    """(file, offset, length) of each weight that lies outside."""
    found: dict[str, tuple[str, ...]] = {}
    for tensor in onnx.load_from_string(graph).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            found[tensor.name] = (entry["location"], entry["offset"], entry["length"])
    return found


def test_parts_and_whole_share_one_file_of_weights(shared: Path) -> None:
    made, bundle = exported("module", shared)
    data = bundle.read(DATA)
    places = [_external(bundle.read(name)) for name in bundle.files if name.endswith(".onnx")]
    assert len(places) > 1
    weights = {name: value.numpy().tobytes() for name, value in made.denoiser.state_dict().items()}
    used = 0
    for place in places:
        for name, (location, offset, length) in place.items():
            assert location == DATA
            content = data[int(offset) : int(offset) + int(length)]
            assert len(content) == int(length)
            if name in weights:
                assert content == weights[name]
                used += 1
    assert used > len([value for value in weights.values() if len(value) >= 1024])  # several graphs use one weight
    assert len(data) < 1.2 * sum(map(len, weights.values()))


@pytest.mark.parametrize("split", [True, False])
def test_large_weights_lie_outside_the_graph_with_parts_and_without(
    split: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoiser, "LARGE", 2000)
    made = small_source()
    bundle = export_source(made, tmp_path / "b", split=split)
    assert DATA in bundle.files
    assert (REST in bundle.files) is split
    assert _external(bundle.read(DENOISER))
    assert compare_errors(made, bundle).relative < 1e-4
    assert OnnxNetwork(bundle).split is split


def test_without_a_split_it_is_one_file(tmp_path: Path) -> None:
    made = small_source()
    bundle = export_source(made, tmp_path / "b", split=False, scored=True)
    assert set(bundle.files) == {DENOISER, SCORED}
    assert _external(bundle.read(DENOISER)) == {}
    assert "cell_flops" not in bundle.manifest["cost"]
    assert "parts_max_difference" not in bundle.manifest["provenance"]
    assert compare_errors(made, bundle).relative < 1e-4
    _check_scored(made, bundle)


def _check_scored(made: Source, bundle: Bundle) -> None:
    """The graph of errors, run as another runtime would run it, gives the errors of the table."""
    table = load(bundle, backend="onnx", device="cpu").errors(images := random_images(made, 2), draws=3, seed=5)
    model = bundle.model
    levels = model.schedule
    session = onnxruntime.InferenceSession(str(bundle.path / SCORED), providers=["CPUExecutionProvider"])
    x = (2 * images - 1).astype(np.float32)
    for (i, k, draw), error in np.ndenumerate(table.errors):
        sigma, data = table.sigma[draw], 0.5
        both = sigma**2 + data**2
        # EDM: u = c_in (x + sigma e), D - x = c_skip (x + sigma e) + c_out F - x.
        column = {
            "gx": both**-0.5,
            "ge": sigma * both**-0.5,
            "a": sigma * data * both**-0.5,
            "b": data**2 / both - 1,
            "c": sigma * data**2 / both,
            "d": 0.0,
            "weight": both / (sigma * data) ** 2,
        }
        noise = reference.normal(5, int(table.streams[i]), draw, x[i].size).reshape(x[i].shape)
        (found,) = session.run(
            ["errors"],
            {
                "x0": x[i : i + 1],
                "noise": noise[None].astype(np.float32),
                "coefficients": np.array([[column[name] for name in COLUMNS]], np.float32),
                "timestep": np.array([np.log(sigma) * levels.to_dict()["timestep_scale"]], np.float32),
                "class_labels": np.array([k]),
            },
        )
        assert found[0] == pytest.approx(error, rel=1e-4)


def test_errors_as_a_graph_share_the_weights_of_the_parts(tmp_path: Path) -> None:
    made = small_source()
    bundle = export_source(made, tmp_path / "b", scored=True)
    assert {DATA, REST, SCORED} <= set(bundle.files)
    assert {location for location, _, _ in _external(bundle.read(SCORED)).values()} == {DATA}
    _check_scored(made, bundle)


def test_float16_runs_on_the_cpu_near_float32(tmp_path: Path) -> None:
    made = small_source()
    bundle = export_source(made, tmp_path / "b", precision="float16", scored=True)
    assert bundle.manifest["precision"] == "float16"
    network = OnnxNetwork(bundle)
    assert (network.precision, network.split) == ("float16", True)
    found = compare_errors(made, bundle)
    assert 1e-6 < found.relative < 2e-2  # 2^-11 = 5e-4 a layer, and not nothing
    assert found.differing == 0
    whole, parts = (OnnxNetwork(bundle, NetworkOptions(batch=16), split=split).slots[0] for split in (False, True))
    for slot in (whole, parts):
        rng = np.random.default_rng(0)
        slot.sample[:] = rng.standard_normal(slot.sample.shape)
        slot.timestep[:] = rng.uniform(-1, 1, len(slot.timestep))
        slot.class_labels[:] = np.arange(len(slot.class_labels)) % 4
        slot.cells[:, 0] = np.arange(len(slot.cells))
        slot.run(16)
    np.testing.assert_allclose(parts.output, whole.output, atol=5e-3)
    with pytest.raises(BackendError, match="in float16 on the CPU, got precision 'float32'"):
        load(bundle, backend="onnx", device="cpu", precision="float32")


def test_bfloat16_is_written_and_refused_by_the_cpu_in_one_line(tmp_path: Path) -> None:
    bundle = export_source(small_source(), tmp_path / "b", precision="bfloat16")
    assert bundle.manifest["precision"] == "bfloat16"
    graph = onnx.load_from_string(bundle.read(DENOISER)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    assert (types["sample"], types["output"], types["timestep"]) == (narrow, narrow, wide)
    with pytest.raises(BackendError, match="no bfloat16 on the CPU: export the model in float32 or float16") as caught:
        load(bundle, backend="onnx", device="cpu")
    assert "\n" not in str(caught.value)


class _Data(torch.nn.Module):
    """Decides in Python by a value: torch cannot export it."""

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        return sample if float(timestep.sum()) > 0 else 2 * sample


def test_a_module_that_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    made = replace(small_source(), denoiser=_Data())
    with pytest.raises(BackendError, match="torch cannot export the network") as caught:
        export_source(made, tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class _Shrinks(torch.nn.Module):
    """Returns another shape than the sample's."""

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        return sample[:, :1] + timestep[:, None, None, None] * class_labels[:, None, None, None]


def test_a_denoiser_of_another_shape_is_refused(tmp_path: Path) -> None:
    message = r"must return the shape of its sample, \(2, 6, 6\), got \(1, 6, 6\)"
    with pytest.raises(InputError, match=message) as caught:
        export_source(replace(small_source(), denoiser=_Shrinks()), tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_too_costly_is_compared_at_small_batches() -> None:
    """The four cases of a comparison take at most 2e13 operations; batches of 1 and 3 are always compared."""
    most = int(2e13 / (4 * 65))
    assert checked_batches(most) == (1, 3, 65)
    assert checked_batches(most + 1) == (1, 3)
    assert checked_batches(10**18) == (1, 3)


def test_conditions_count_the_null_class_and_timesteps_span_the_schedule() -> None:
    made = small_source()
    assert conditions(made) == 4
    assert conditions(replace(made, model=replace(made.model, null_class=None))) == 3
    low, high = timesteps(made)
    assert low == pytest.approx(0.25 * np.log(0.02))
    assert high == pytest.approx(0.25 * np.log(20.0))
    model: Model = replace(made.model, schedule=DiscreteSchedule(num_train_timesteps=10))
    assert timesteps(replace(made, model=model)) == (0.0, 9.0)
