"""Exports as a whole: options reach the manifest, unusable options are refused before the work, bytes repeat."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

import torch

import fastdc.export.bundle as module
from fastdc.bundle import MANIFEST, Defaults, load_bundle
from fastdc.export import export_source
from fastdc.loading import load
from fastdc.support import BackendError, BundleError, FastdcError, InputError
from helpers.exported import exported, labelled, small_source
from helpers.worlds import assert_one_line


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, shared: Path) -> None:
    _, bundle = exported("module", shared)
    again = export_source(small_source(), tmp_path / "again")
    assert again.files == bundle.files
    for name in (*bundle.files, MANIFEST):
        assert (again.path / name).read_bytes() == (bundle.path / name).read_bytes(), name


def test_the_module_itself_is_left_as_it_was(tmp_path: Path) -> None:
    source = small_source()
    before = {name: value.clone() for name, value in source.denoiser.state_dict().items()}
    export_source(source, tmp_path / "b", precision="float16", split=False)
    after = source.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert not source.denoiser.training


def test_options_reach_the_manifest(tmp_path: Path) -> None:
    lines: list[str] = []
    bundle = export_source(
        small_source(),
        tmp_path / "b",
        name="mine",
        description="what it is",
        draws=7,
        levels=(0.2, 2.0),
        weighting="uniform",
        loss="l1",
        first=(0.5, 1.0),
        split=False,
        opset=18,
        notify=lines.append,
    )
    assert (bundle.name, bundle.manifest["description"]) == ("mine", "what it is")
    assert bundle.model.defaults == Defaults(7, (0.2, 2.0), "uniform", "l1", 1.0, (0.5, 1.0))
    assert lines[0] == "exporting the denoiser"
    import onnx

    graph = onnx.load_from_string(bundle.read("denoiser.onnx"))
    assert {entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")} == {18}


def test_a_model_s_own_defaults_are_kept(tmp_path: Path) -> None:
    own = Defaults(draws=9, levels=(0.3, 1.0), weighting="vlb", loss="huber", temperature=0.25, first=(0.7,))
    bundle = export_source(small_source(defaults=own), tmp_path / "b", split=False)
    assert bundle.model.defaults == own
    assert bundle.name == "by hand"
    assert re.fullmatch(r"module of 0\.00\d+ M parameters, 6x6 images in 3 classes", bundle.manifest["description"])


def test_an_existing_place(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = exported("module", shared)
    shutil.copytree(first.path, tmp_path / "b")
    second = export_source(small_source(seed=1), tmp_path / "b", split=False, overwrite=True)
    assert second.model.identity != first.model.identity
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(module, "denoiser_files", never)
    with pytest.raises(BundleError, match=r"exists: choose another path, or replace it with overwrite \(--overwrite\)"):
        export_source(small_source(), tmp_path / "b")
    with pytest.raises(BundleError, match="not a bundle: choose another path"):
        export_source(small_source(), tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "keep me"
    assert load_bundle(tmp_path / "b").model.identity == second.model.identity


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="drwas"):
        export_source(small_source(), tmp_path / "b", drwas=5)  # type: ignore[call-arg]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "precision": ({"precision": "float64"}, "precision must be one of float32, float16, bfloat16, int8, got 'float64'"),
    "int8 without images": ({"precision": "int8"}, "int8 needs images"),
    "opset below": ({"opset": 11}, "opset must be from 18 to"),
    "opset above": ({"opset": 99}, "opset must be from 18 to"),
    "bfloat16 opset": ({"precision": "bfloat16", "opset": 20}, "opset must be from 22 to 23 in bfloat16, got 20"),
    "delta without images": ({"delta": 0.01}, "give the images to calibrate on"),
    "no draws": ({"draws": 0}, "defaults.draws must be a whole number from 1"),
    "levels": ({"levels": (2.0, 1.0)}, "defaults.levels must satisfy 0 < low < high"),
    "levels outside": ({"levels": (1e4, 1e5)}, "levels"),
    "weighting": ({"weighting": "heavy"}, "defaults.weighting must be one of "),
    "loss": ({"loss": "l3"}, "defaults.loss must be one of l2, l1, huber, got 'l3'"),
    "first": ({"first": (-1.0,)}, "defaults.first must be a list of positive numbers"),
    "first outside": ({"first": (1e6,)}, "first"),
    "name": ({"name": "a\nb"}, "name must be text without control characters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused_before_the_work(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(module, "denoiser_files", never)
    options, message = REFUSED[case]
    with pytest.raises(FastdcError) as caught:
        export_source(small_source(), tmp_path / "b", **options)
    assert_one_line(caught.value, message)
    assert list(tmp_path.iterdir()) == []


def test_images_that_do_not_fit_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(module, "denoiser_files", never)
    source = small_source()
    images = labelled(source)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": labelled(small_source(side=8))}, r"images must have shape \(2, 6, 6\), got \(2, 8, 8\)"),
        (
            {"images": replace(images, class_names=("u", "v", "w"))},
            "the images: has a class .u. that the model does not have",
        ),
        ({"images": images, "delta": 0.001}, "images"),
        ({"images": images, "precision": "bfloat16"}, "a bundle in bfloat16 does not run on the CPU"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            export_source(source, tmp_path / "b", **options)
        assert_one_line(caught.value)
    with pytest.raises(AssertionError, match="work began"):  # a data set may order the classes in its own way
        export_source(source, tmp_path / "b", images=replace(images, class_names=images.class_names[::-1]))
    assert list(tmp_path.iterdir()) == []


def test_a_race_and_a_temperature_are_in_the_bundle(tmp_path: Path, shared: Path) -> None:
    source, plain = exported("module", shared)
    images = labelled(source, 30)
    steps: list[Any] = []
    bundle = export_source(source, tmp_path / "b", images=images, delta=0.04, split=False, progress=steps.append)
    assert bundle.model.calibration is not None
    assert (bundle.model.calibration.delta, bundle.model.calibration.images) == (0.04, 30)
    assert steps
    assert bundle.model.defaults.temperature != 1.0
    assert plain.model.calibration is None
    assert plain.model.defaults.temperature == 1.0
    errors = [load(one, backend="onnx", device="cpu").errors(images.images[:3]).errors for one in (bundle, plain)]
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-5)  # the whole network and its parts


class _Differs(torch.nn.Module):
    """Right while torch exports it, and wrong when the graph is compared with it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(sample, timestep, class_labels)
        return out if torch.compiler.is_exporting() else 1.01 * out


def test_a_graph_that_differs_from_torch_is_not_written(tmp_path: Path) -> None:
    source = replace(small_source(), denoiser=_Differs(small_source().denoiser))
    with pytest.raises(BackendError, match="the exported network differs from torch by") as caught:
        export_source(source, tmp_path / "b")
    assert_one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


class _Halved(torch.nn.Module):
    """An encoder of images: means over squares of 2 x 2."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 2)


def test_a_user_s_own_encoder(tmp_path: Path) -> None:
    """A denoiser on latents that are means of squares: errors are those of the small images."""
    small = small_source(side=3)
    model = replace(small.model, image_shape=(2, 6, 6), latent_shape=(2, 3, 3))
    bundle = export_source(replace(small, model=model, encoder=_Halved()), tmp_path / "b", split=False)
    assert bundle.manifest["provenance"]["encoder_max_difference"] < 1e-6
    little = np.random.default_rng(0).random((2, 2, 3, 3), dtype=np.float32)
    large = little.repeat(2, axis=2).repeat(2, axis=3)
    plain = export_source(small, tmp_path / "plain", split=False)
    got, want = (
        load(one, backend="onnx", device="cpu").errors(images, streams=[1, 2]).errors
        for one, images in ((bundle, large), (plain, little))
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_tables_whose_null_row_is_not_the_last_are_refused(tmp_path: Path) -> None:
    source = small_source()
    bad = replace(source, model=replace(source.model, null_class=1), tables={"t": np.zeros((4, 2), np.float32)})
    with pytest.raises(InputError, match="the row of the null class after those of all conditions"):
        export_source(bad, tmp_path / "b")
