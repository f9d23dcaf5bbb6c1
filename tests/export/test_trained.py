"""From a run to a bundle: the ONNX network equals torch, the bytes repeat, and no local path is in them."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import fastdc
from fastdc.bundle import load_bundle
from fastdc.calibration import fit_temperature, with_doubt
from fastdc.cli.main import cli
from fastdc.data import load_labelled
from fastdc.support import BackendError, BundleError, InputError
from helpers.paths import ROOT, SHIPPED

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
import torch

from fastdc.bundle import build_network
from fastdc.export import export_onnx, export_run, tolerance, verify_onnx
from fastdc.export.trained import training_command
from fastdc.train import RunFolder, TrainConfig, check_unseen, content_digest, run_source, train


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with training and validation images, a trained run, and its bundle."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    stripes = np.zeros((2, 4, 4))
    stripes[0, ::2] = stripes[1, :, ::2] = 200.0
    for name, count in (("train", 64), ("val", 20)):
        labels = np.arange(count) % 2
        images = (stripes[labels] + rng.uniform(0, 50, (count, 4, 4))).astype(np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=labels, class_names=["rows", "columns"])
    train(
        TrainConfig(
            data=str(folder / "train.npz"),
            out=str(folder / "run"),
            model="mlp",
            width=16,
            steps=200,
            batch=32,
            lr=1e-2,
            threads=1,
            val="0",
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the exporter's chatter must not reach the user
        export_run(folder / "run", folder / "stripes", draws=4)
    return folder


def test_the_bundle_describes_the_run(workplace: Path) -> None:
    bundle = load_bundle(workplace / "stripes")
    bundle.verify()
    assert bundle.image_shape == (1, 4, 4)
    assert bundle.class_names == ("rows", "columns")
    assert bundle.model.null_class == 2
    assert bundle.model.defaults.draws == 4
    assert bundle.model.defaults.levels == (0.2, 2.0)
    info = RunFolder(workplace / "run").info()
    provenance = bundle.manifest["provenance"]
    assert provenance["data"] == "train.npz"
    assert provenance["data_sha256"] == info.data_digest
    assert provenance["steps"] == 200
    assert provenance["onnx_max_difference"] < 1e-4
    assert bundle.manifest["parameterization"]["sigma_data"] == info.sigma_data
    assert bundle.manifest["training"]["class_counts"] == [32, 32]
    assert bundle.seen.trained_on(load_labelled(workplace / "train.npz").images) == (64, 64)
    assert bundle.seen.trained_on(load_labelled(workplace / "val.npz").images) == (0, 20)


def test_onnx_equals_torch_rebuilt_from_the_bundle_at_several_batches(workplace: Path) -> None:
    from safetensors.torch import load

    bundle = load_bundle(workplace / "stripes")
    network = build_network(bundle.manifest["network"]["kind"], bundle.manifest["network"]["config"]).eval()
    network.load_state_dict(load(bundle.read("weights.safetensors")))
    session = onnxruntime.InferenceSession(bundle.read("denoiser.onnx"), providers=["CPUExecutionProvider"])
    inputs = {item.name: (item.type, item.shape) for item in session.get_inputs()}
    assert inputs == {
        "sample": ("tensor(float)", ["batch", 1, 4, 4]),
        "timestep": ("tensor(float)", ["batch"]),
        "class_labels": ("tensor(int64)", ["batch"]),
    }
    rng = np.random.default_rng(1)
    for batch in (1, 2, 3, 64, 65, 200):
        feed = {
            "sample": rng.standard_normal((batch, 1, 4, 4)).astype(np.float32),
            "timestep": rng.uniform(-600, 440, batch).astype(np.float32),
            "class_labels": rng.integers(0, 3, batch),
        }
        (got,) = session.run(["output"], feed)
        with torch.no_grad():
            want = network(*(torch.from_numpy(array) for array in feed.values())).numpy()
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance(network) * max(1.0, np.abs(want).max())


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(workplace / "run", tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "elsewhere", name="stripes", draws=4)
    for file in ("denoiser.onnx", "weights.safetensors", "fastdc.json"):
        assert (tmp_path / "elsewhere" / file).read_bytes() == (workplace / "stripes" / file).read_bytes()


def local_traces(folder: Path) -> list[str]:
    """Every part of a bundle that looks like a path, or like a stack trace."""
    forms = [rb"/[a-z0-9_.-]+/[a-z0-9_./-]*", rb"\.py\b", rb"site-packages", rb"File \"", rb"stack_trace"]
    found = []
    for file in folder.iterdir():
        content = file.read_bytes()
        if file.suffix == ".onnx":  # weights hold every byte sequence: search what is not weights
            model = onnx.load_from_string(content)
            for tensor in model.graph.initializer:
                tensor.ClearField("raw_data")
            content = model.SerializeToString()
        elif file.suffix == ".data":  # weights
            continue
        elif file.suffix == ".json":  # fingerprints of images are base64, which may look like a path
            manifest = json.loads(content)
            (manifest.get("training") or {}).pop("seen", None)
            content = json.dumps(manifest).encode()
        elif file.suffix == ".safetensors":
            content = content[: 8 + int.from_bytes(content[:8], "little")]
        found += [f"{file.name}: {hit!r}" for form in forms for hit in re.findall(form, content)]
    return found


@pytest.mark.parametrize("name", ["stripes", "digits", "digits-mlp", "mnist"])
def test_no_local_path_is_in_a_bundle(workplace: Path, name: str) -> None:
    assert local_traces(workplace / name if name == "stripes" else SHIPPED / name) == []


def test_verification_catches_a_network_that_differs(workplace: Path) -> None:
    bundle = load_bundle(workplace / "stripes")
    model = bundle.read("denoiser.onnx")
    network = build_network(bundle.manifest["network"]["kind"], bundle.manifest["network"]["config"]).eval()
    with torch.no_grad():
        network.linear_out.bias.add_(1.0)  # type: ignore[operator, union-attr]
    with pytest.raises(BackendError, match=r"differs from torch by .* at batch 1, allowed"):
        verify_onnx(model, network, (1, 4, 4), 3, timestep_scale=100.0)
    with pytest.raises(BackendError, match="ONNX Runtime cannot run the exported network"):
        verify_onnx(model[:1000], network, (1, 4, 4), 3, timestep_scale=100.0)


def test_calibration_fits_a_temperature_and_refuses_the_training_images(workplace: Path, tmp_path: Path) -> None:
    held = load_labelled(workplace / "val.npz")
    bundle = export_run(workplace / "run", tmp_path / "calibrated", calibrate=held, draws=4)
    assert 1e-4 < bundle.model.defaults.temperature < 1.0
    assert bundle.manifest["provenance"]["calibration"].startswith("20 images, 4 draws")
    with pytest.raises(InputError, match="these are the training images"):
        export_run(workplace / "run", tmp_path / "no", calibrate=workplace / "train.npz")
    with pytest.raises(InputError, match="has a class '0' that the model does not have"):
        export_run(workplace / "run", tmp_path / "no", calibrate=SHIPPED / "digits-test.npz")
    assert not (tmp_path / "no").exists()


def test_training_images_are_refused_in_any_order_and_number(workplace: Path, tmp_path: Path) -> None:
    whole, val = load_labelled(workplace / "train.npz"), load_labelled(workplace / "val.npz")
    order = np.random.default_rng(0).permutation(64)
    mixed = dataclasses.replace(val, images=np.concatenate([whole.images[order[:3]], val.images[:17]]))
    for images, share in ((whole.take(order), "64 of the 64"), (whole.take(order[:20]), "20 of"), (mixed, "3 of")):
        with pytest.raises(InputError, match=f"images that the model was trained on .{share}"):
            export_run(workplace / "run", tmp_path / "no", calibrate=images)
        with pytest.raises(InputError, match=f"mixed holds images that stripes was trained on .{share}"):
            check_unseen("mixed", images.images, None, load_bundle(workplace / "stripes"))
    once = dataclasses.replace(val, images=np.concatenate([whole.images[:1], val.images[1:]]))  # as may well happen
    check_unseen("once", once.images, None, load_bundle(workplace / "stripes"))


@pytest.mark.parametrize(
    ("options", "said", "count"),
    [
        ({"choose": False}, "30 of the 60 images have chosen a checkpoint or a plan of this model and do not", 30),
        ({"levels": (0.2, 2.0)}, "30 of the 60 images have chosen a checkpoint or a plan of this model and do not", 30),
        ({"choose": True}, "of the 30 images that nothing was chosen on", 30),
        ({"choose": False, "checkpoint": "last"}, "", 60),
    ],
)
def test_images_that_chose_the_checkpoint_do_not_calibrate(
    chosen: Path, tmp_path: Path, options: dict[str, Any], said: str, count: int
) -> None:
    heard: list[str] = []
    bundle = export_run(chosen, tmp_path / "b", calibrate=chosen / "val.npz", notify=heard.append, **options)
    assert bundle.model.calibration is not None
    assert bundle.model.calibration.images == count
    assert any(said in line for line in heard)
    assert bundle.seen.chose(load_labelled(chosen / "val.npz").images).sum() == 60 - count
    with pytest.raises(InputError, match="needs at least 99 validation images"):
        export_run(chosen, tmp_path / "no", calibrate=chosen / "val.npz", delta=0.01, choose=False)


def test_images_that_have_all_chosen_are_refused_before_the_work(chosen: Path, tmp_path: Path) -> None:
    val = load_labelled(chosen / "val.npz")
    half = val.take(RunFolder(chosen).info().seen.chose(val.images).nonzero()[0])
    heard: list[str] = []
    with pytest.raises(InputError, match="calibrate: all 30 images have chosen a checkpoint or a plan of this model"):
        export_run(chosen, tmp_path / "no", calibrate=half, notify=heard.append)
    with pytest.raises(InputError, match=r"got 30: .*: 30 of 60 have chosen a checkpoint"):
        export_run(chosen, tmp_path / "no", calibrate=val, delta=0.02, choose=False)
    assert not heard


def test_a_run_that_does_not_know_what_chose_its_checkpoint_says_so(chosen: Path, tmp_path: Path) -> None:
    shutil.copytree(chosen, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["seen"]  # as earlier versions wrote it
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    heard: list[str] = []
    val = tmp_path / "run/val.npz"
    export_run(tmp_path / "run", tmp_path / "b", calibrate=val, notify=heard.append, choose=False)
    assert any("does not know which images chose its best checkpoint" in line for line in heard)


@pytest.fixture(scope="module")
def chosen(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 60 validation images, half of which chose its checkpoint."""
    folder = tmp_path_factory.mktemp("chosen")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (120, 4, 4), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(120) % 2)
    recipe: dict[str, Any] = {"model": "mlp", "width": 8, "batch": 16, "threads": 1, "steps": 4}
    train(TrainConfig(data=str(folder / "data.npz"), out=str(folder / "run"), val="0.5", **recipe), progress=False)
    return folder / "run"


def test_the_set_before_the_split_is_refused_as_well(workplace: Path, tmp_path: Path) -> None:
    """Most of its images are training images: the most natural mistake after ``--val 0.1``."""
    data, out = str(workplace / "train.npz"), str(tmp_path / "run")
    train(TrainConfig(data=data, out=out, model="mlp", width=8, steps=2, val="0.2"), progress=False)
    with pytest.raises(InputError, match=r"most of these are, take the run's val\.npz"):
        export_run(tmp_path / "run", tmp_path / "no", calibrate=workplace / "train.npz")
    bundle = export_run(tmp_path / "run", tmp_path / "yes", calibrate=tmp_path / "run" / "val.npz", draws=2)
    whole = load_labelled(workplace / "train.npz")
    digest = content_digest(whole.images, whole.labels, whole.class_names)
    assert bundle.manifest["provenance"]["source_sha256"] == digest != bundle.manifest["provenance"]["data_sha256"]


def test_the_best_checkpoint_is_exported_and_classifies_as_it_was_measured(workplace: Path, tmp_path: Path) -> None:
    """The accuracy in the log is that of the bundle, in ONNX Runtime, on the images that choose."""
    recipe: dict[str, Any] = {"model": "mlp", "width": 8, "batch": 16, "threads": 1, "lr": 1e-2}
    run, data = tmp_path / "run", str(workplace / "train.npz")
    summary = train(TrainConfig(data=data, out=str(run), steps=60, checkpoint_every=20, val="0.3", **recipe))
    assert summary.best is not None
    shutil.copy(run / "best.safetensors", tmp_path)
    # Whichever checkpoint was the best, here it is step 20, whose weights differ from the last ones.
    train(TrainConfig(data=data, out=str(tmp_path / "short"), steps=20, val="0.3", **recipe))
    shutil.copy(tmp_path / "short" / "best.safetensors", run)
    said: list[str] = []
    best = export_run(run, tmp_path / "best", notify=said.append)
    last = export_run(run, tmp_path / "last", checkpoint="last")
    assert best.manifest["provenance"]["steps"] == 20
    assert last.manifest["provenance"]["steps"] == 60
    assert best.read("weights.safetensors") != last.read("weights.safetensors")
    assert said[0].startswith("weights of the best checkpoint: step 20: val accuracy")
    assert best.manifest["provenance"]["checkpoint"] in said[0]
    shutil.copy(tmp_path / "best.safetensors", run)
    again = export_run(run, tmp_path / "again")
    val = load_labelled(run / "val.npz").part(slice(0, None, 2))
    assert fastdc.load(again).score(val.images, val.labels, rule="paired") == summary.best.val_accuracy
    with pytest.raises(InputError, match="checkpoint must be one of best, last, got 'first'"):
        export_run(run, tmp_path / "no", checkpoint="first")
    with pytest.raises(InputError, match="no best checkpoint: no validation images were given"):
        export_run(workplace / "run", tmp_path / "no", checkpoint="best")


def test_the_temperature_stays_sensible_when_every_calibration_image_is_right() -> None:
    """Without doubt the fit runs to its lower bound; with it, confidence at the typical margin is about 1 - 1/n."""
    rng = np.random.default_rng(0)
    margin = rng.uniform(0.5, 1.5, 200)
    labels = rng.integers(0, 2, 200)
    errors = np.zeros((200, 2))
    errors[np.arange(200), 1 - labels] = margin
    assert fit_temperature(errors, labels) < 0.01
    temperature = fit_temperature(*with_doubt(errors, labels, 1))
    confidence = 1 / (1 + np.exp(-np.median(margin) / temperature))
    assert 1 / 2000 < 1 - confidence < 1 / 50


def test_a_taken_or_unfit_place_is_refused_at_once(workplace: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="exists"):
        export_run(workplace / "run", workplace / "stripes")
    with pytest.raises(BundleError, match="is not a bundle"):
        export_run(workplace / "run", workplace, overwrite=True)
    for options in ({"first": (99.0,)}, {"levels": (0.2, 99.0)}):  # the schedule ends at 80
        with pytest.raises(InputError, match=r"must lie in the schedule's 0\.002 to 80, got"):
            export_run(workplace / "run", tmp_path / "out", **options)
    with pytest.raises(InputError, match="holds no training run"):
        export_run(workplace, tmp_path / "out")
    shutil.copytree(workplace / "run", tmp_path / "empty")
    (tmp_path / "empty" / "checkpoint.safetensors").unlink()
    with pytest.raises(InputError, match="no checkpoint yet"):
        export_run(tmp_path / "empty", tmp_path / "out")


def test_a_run_in_float16_is_half_as_large_and_answers_alike(workplace: Path, tmp_path: Path) -> None:
    half = export_run(workplace / "run", tmp_path / "half", precision="float16")
    full = export_run(workplace / "run", tmp_path / "full")
    assert half.manifest["precision"] == "float16"
    assert "weights.safetensors" not in half.manifest["files"]
    images = load_labelled(workplace / "val.npz").images
    one, other = (fastdc.load(bundle, backend="onnx").errors(images, draws=4) for bundle in (half, full))
    np.testing.assert_allclose(one.errors, other.errors, rtol=0.02, atol=1e-4)
    assert half.model.defaults == full.model.defaults


def test_the_command_says_what_it_made(workplace: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "mine")
    options = ["--levels", "0.1", "3", "--name", "my stripes", "--calibrate", str(workplace / "val.npz")]
    result = CliRunner().invoke(cli, ["export", str(workplace / "run"), out, *options])
    assert result.exit_code == 0, result.output
    assert f"exported {out}: my stripes, 2 classes" in result.stdout
    assert f"next: fastdc classify --model {out}" in result.stdout
    bundle = load_bundle(out)
    assert bundle.model.defaults.levels == (0.1, 3.0)
    assert bundle.manifest["provenance"]["calibration"].startswith("20 images, 16 draws")


def test_the_recorded_command_repeats_the_recipe_without_paths() -> None:
    config = TrainConfig(data="/a/b/train.npz", out="/c/run", model="mlp", lr=0.01, flip=True, val="/d/val.npz", seed=3)
    line = training_command(config, (1, 8, 8))
    assert line == "fastdc train train.npz --out run --model mlp --lr 0.01 --flip --seed 3 --val val.npz"
    deep = TrainConfig(data="x", out="r", model="mlp", window=(0, 4095), max_pixels=9)
    assert training_command(deep, (1, 8, 8)) == "fastdc train x --out r --model mlp --window 0.0 4095.0"
    none = TrainConfig(data="x", out="r", val=None, steps=7, checkpoint_every=5)  # milestones decide what is exported
    assert training_command(none, (1, 8, 8)) == (
        "fastdc train x --out r --model unet --steps 7 --val 0 --checkpoint-every 5"
    )


@pytest.mark.parametrize("name", ["digits", "digits-mlp"])
def test_the_shipped_bundles_are_whole_and_their_two_networks_agree(name: str) -> None:
    from safetensors.torch import load

    bundle = load_bundle(SHIPPED / name)
    if bundle.manifest["network"]["kind"] == "unet2d":
        pytest.importorskip("diffusers")
    network = build_network(bundle.manifest["network"]["kind"], bundle.manifest["network"]["config"]).eval()
    network.load_state_dict(load(bundle.read("weights.safetensors")))
    difference = verify_onnx(bundle.read("denoiser.onnx"), network, (1, 8, 8), 11, timestep_scale=100.0)
    assert difference < 2e-5


@pytest.mark.slow
def test_a_unet_exports_with_a_dynamic_batch() -> None:
    pytest.importorskip("diffusers")
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "num_class_embeds": 4,
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    }
    network = build_network("unet2d", config).eval()
    model = export_onnx(network, (3, 8, 8), 4)
    assert 0 < verify_onnx(model, network, (3, 8, 8), 4, timestep_scale=100.0) < 1e-4


def test_the_shipped_test_images_are_what_the_script_makes_and_no_training_or_validation_images(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script = ROOT / "models" / "make_digits.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    parts = {name: load_labelled(tmp_path / f"digits-{name}.npz") for name in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [1200, 197, 400]
    shipped = load_labelled(SHIPPED / "digits-test.npz")
    assert np.array_equal(shipped.images, parts["test"].images)
    assert np.array_equal(shipped.labels, parts["test"].labels)
    assert shipped.class_names == tuple("0123456789")
    pixels = [{image.tobytes() for image in part.images} for part in parts.values()]
    assert not (pixels[2] & (pixels[0] | pixels[1]))


def test_a_bundle_reads_images_as_its_training_did(tmp_path: Path) -> None:
    """Also the images that an export calibrates on; without a window they are refused."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    levels = (rng.integers(0, 2000, (40, 1, 4, 4)) + 2000 * labels[:, None, None, None]).astype(np.uint16)
    for name, part in (("train", slice(0, 20)), ("val", slice(20, 40))):
        np.savez(tmp_path / f"{name}.npz", images=levels[part], labels=labels[part])
    small: dict[str, Any] = {"model": "mlp", "width": 8, "steps": 2, "threads": 1, "val": "0"}
    data, val = str(tmp_path / "train.npz"), tmp_path / "val.npz"
    run = train(TrainConfig(data=data, out=str(tmp_path / "run"), window=(0, 3999), **small), progress=False).path
    bundle = export_run(run, tmp_path / "made", calibrate=val, delta=0.05, draws=4, choose=False)
    assert bundle.manifest["image"]["window"] == [0, 3999]
    for model in (bundle.model, run_source(run)[0].model):
        assert model.window == (0, 3999)
    read = load_labelled(val, window=(0, 3999))
    same = export_run(run, tmp_path / "same", calibrate=read, delta=0.05, draws=4, choose=False)
    for field in ("calibration", "defaults", "image"):
        assert bundle.manifest[field] == same.manifest[field]
    clf = fastdc.load(tmp_path / "made", threads=1)
    found = clf.classify(val, draws=4, rule="full")
    np.testing.assert_array_equal(
        found.labels, clf.classify(levels[20:], window=(0, 3999), draws=4, rule="full").labels
    )
    result = CliRunner().invoke(
        cli, ["export", str(run), str(tmp_path / "cli"), "--calibrate", str(val), "--draws", "4"]
    )
    assert result.exit_code == 0, result.output
    assert "note: 20 images read through the model's window 0 to 3999, values " in result.output
    info = CliRunner().invoke(cli, ["info", str(tmp_path / "cli")]).output
    assert re.search(r"^window +0 to 3999 for more than 8 bits$", info, re.MULTILINE)


def test_a_run_that_stretches_gives_a_bundle_that_stretches(tmp_path: Path) -> None:
    """In training, in the calibration of an export, and afterwards; a model fine-tuned from it does so, too."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (rng.integers(0, 100, (40, 6, 12)) + 150 * labels[:, None, None]).astype(np.uint8)
    for name, part in (("train", slice(0, 20)), ("val", slice(20, 40))):
        np.savez(tmp_path / f"{name}.npz", images=images[part], labels=labels[part])
    small: dict[str, Any] = {"width": 8, "steps": 2, "threads": 1, "val": "0"}
    data, val = str(tmp_path / "train.npz"), tmp_path / "val.npz"
    recipe = TrainConfig(data=data, out=str(tmp_path / "run"), model="mlp", size=4, fit="stretch", **small)
    run = train(recipe, progress=False).path
    wanted = load_labelled(data, size=4, fit="stretch")
    assert RunFolder(run).info().data_digest == content_digest(wanted.images, wanted.labels, wanted.class_names)
    bundle = export_run(run, tmp_path / "made", calibrate=val, delta=0.05, draws=4, choose=False)
    assert (bundle.model.fit, bundle.manifest["version"], run_source(run)[0].model.fit) == ("stretch", 3, "stretch")
    assert "--fit stretch" in bundle.manifest["provenance"]["command"]
    read = load_labelled(val, (1, 4, 4), fit="stretch")
    same = export_run(run, tmp_path / "same", calibrate=read, delta=0.05, draws=4, choose=False)
    assert bundle.manifest["calibration"] == same.manifest["calibration"]
    for base in (run, tmp_path / "made"):
        tuned = TrainConfig(
            data=data, out=str(tmp_path / f"from-{base.name}"), base=str(base), steps=1, val="0", threads=1
        )
        assert RunFolder(train(tuned, progress=False).path).info().config.fit == "stretch"
