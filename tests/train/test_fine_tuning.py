"""Runs that begin with a model of another tool, one of fastdc, or an image encoder: the same loop, folder, export."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

import fastdc
from fastdc.bundle import prompts_of
from fastdc.cli.main import cli
from fastdc.export import export_run
from fastdc.sources import Lora, WithTables, open_source
from fastdc.support import BundleError, InputError
from fastdc.testing.edm_files import write_edm
from fastdc.testing.tiny_pipelines import tiny_dit, tiny_sd, tiny_sd3, tiny_sdxl, tiny_unet2d
from fastdc.train import RunFolder, TrainConfig, run_source, train
from fastdc.train.dataset import load_training_data
from fastdc.train.loss import Objective
from fastdc.train.torch_state import torch_state
from fastdc.train.trainee import Trainee
from fastdc.train.validation import Validation

QUICK: dict[str, Any] = {"steps": 6, "batch": 4, "warmup": 2, "threads": 1, "checkpoint_every": 3, "log_every": 1}
NAMES = ("cube", "cone")


def stripes(path: Path, side: int, channels: int = 3, count: int = 40) -> str:
    """Two classes of noisy stripes: rows and columns."""
    rng = np.random.default_rng(0)
    plain = np.zeros((2, channels, side, side))
    plain[0, :, ::2] = plain[1, :, :, ::2] = 180.0
    labels = np.arange(count) % 2
    images = plain[labels] + rng.uniform(0, 60, (count, channels, side, side))
    np.savez(path, images=images.astype(np.uint8), labels=labels, class_names=NAMES)
    return str(path)


def base_of(kind: str, folder: Path) -> dict[str, Any]:
    """A base, and the options that it needs."""
    if kind == "vae":
        return {"vae": str(tiny_dit(folder / "dit")), "size": 16, "model": "mlp", "width": 16}
    makers: dict[str, Any] = {
        "unet": lambda: tiny_unet2d(folder / "unet", learned_variance=True),
        "v": lambda: tiny_unet2d(folder / "v", classes=None, prediction_type="v_prediction"),
        "dit": lambda: tiny_dit(folder / "dit"),
        "edm": lambda: write_edm(folder / "net.pkl", "ddpmpp"),
        "sd": lambda: tiny_sd(folder / "sd"),
        "sdxl": lambda: tiny_sdxl(folder / "sdxl"),
        "sd3": lambda: tiny_sd3(folder / "sd3"),
    }
    return {"base": str(makers[kind]())}


SIDES = {"unet": 8, "v": 8, "edm": 8, "dit": 16, "sd": 16, "sdxl": 16, "sd3": 16, "vae": 16}


@pytest.mark.parametrize("kind", SIDES)
def test_a_run_is_exported_with_what_it_trained(tmp_path: Path, kind: str) -> None:
    """The loss of the exported network on the validation images is the one that the run measured."""
    options = base_of(kind, tmp_path)
    config = TrainConfig(
        data=stripes(tmp_path / "data.npz", SIDES[kind]), out=str(tmp_path / "run"), val="0.25", **(QUICK | options)
    )
    summary = train(config, progress=False)
    assert summary.finished
    source, step, _ = run_source(summary.path, "last")
    assert step == 6
    assert source.model.class_names == NAMES

    info = RunFolder(summary.path).info()
    data = load_training_data(info.config, shape=info.shape)
    if source.encoder is not None:
        with torch.inference_mode():
            latents = source.encoder(torch.from_numpy(data.val_images).float() / 127.5 - 1)
        data = dataclasses.replace(data, val_images=latents.contiguous().numpy())
    network = WithTables(source.denoiser, source.tables) if source.tables else source.denoiser
    model = dataclasses.replace(source.model, image_shape=source.model.sample_shape, latent_shape=None)
    model = dataclasses.replace(model, defaults=dataclasses.replace(model.defaults, draws=16))
    objective = Objective(model.schedule, model.parameterization, info.config.p_mean, info.config.p_std)
    trainee = Trainee(network, model, objective, {})
    with torch_state(1, torch.device("cpu")):
        again = Validation(info.config, trainee, data, network, torch.device("cpu")).results(
            network, 6, lambda: False, last=True
        )
    assert again is not None
    assert again["val_loss"] == pytest.approx(summary.val_loss, rel=1e-4)
    assert again["val_accuracy"] == summary.val_accuracy


def test_a_bundle_of_a_run_on_latents_classifies(tmp_path: Path) -> None:
    config = TrainConfig(
        data=stripes(tmp_path / "data.npz", 16), out=str(tmp_path / "run"), **QUICK, **base_of("vae", tmp_path)
    )
    summary = train(config, progress=False)
    bundle = export_run(summary.path, tmp_path / "bundle", draws=2, checkpoint="last")
    found = bundle.manifest
    assert found["latent"]["shape"] == [4, 8, 8]
    assert found["training"]["class_counts"] == [18, 18]
    assert bundle.seen.trained_on(np.load(config.data)["images"])[0] == 36  # their pixels, not their latents
    assert not len(bundle.seen.chosen)  # nothing has chosen the last checkpoint
    assert found["provenance"]["base_sha256"] == RunFolder(summary.path).info().base["sha256"]
    assert "--model mlp --vae dit --size 16 --width 16" in found["provenance"]["command"]
    assert str(tmp_path) not in str(found)
    images = np.load(config.data)["images"][:2]
    assert len(fastdc.load(bundle).classify(images).labels) == 2


def test_fine_tuning_teaches_the_new_classes(tmp_path: Path) -> None:
    """Before the training all classes are alike, so that the accuracy is that of guessing."""
    options: dict[str, Any] = {**QUICK, "steps": 120, "batch": 16, "lr": 3e-3, "checkpoint_every": 120}
    base = str(tiny_unet2d(tmp_path / "unet"))
    data = stripes(tmp_path / "data.npz", 8, count=80)
    config = TrainConfig(data=data, base=base, out=str(tmp_path / "run"), val="0.5", **options)
    best = train(config, progress=False).best
    assert best is not None
    assert best.val_accuracy >= 0.9


def test_a_shipped_model_learns_faster_than_a_new_one(tmp_path: Path) -> None:
    test = fastdc.data.digits_test()
    data = tmp_path / "parity.npz"
    np.savez(data, images=test.images, labels=test.labels % 2, class_names=["even", "odd"])
    common: dict[str, Any] = {"steps": 150, "batch": 64, "threads": 1, "checkpoint_every": 150, "val": "0.5"}
    tuned = train(TrainConfig(data=str(data), base="digits-mlp", out=str(tmp_path / "a"), **common), progress=False)
    new = train(TrainConfig(data=str(data), model="mlp", out=str(tmp_path / "b"), **common), progress=False)
    assert tuned.best is not None
    assert new.best is not None
    assert tuned.best.val_accuracy > new.best.val_accuracy + 0.05


@pytest.mark.parametrize("kind", ["unet", "sd"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    options = {**QUICK, **base_of(kind, tmp_path), "flip": True, "val": "0"}
    data = stripes(tmp_path / "data.npz", SIDES[kind])

    class Killed(BaseException):
        """Stands for the process disappearing."""

    real = RunFolder.log

    def die_at_5(self: RunFolder, record: dict[str, Any]) -> None:
        real(self, record)
        if record["step"] == 5:  # after the checkpoint of step 3
            raise Killed

    train(TrainConfig(data=data, out=str(tmp_path / "whole"), **options), progress=False)
    broken = TrainConfig(data=data, out=str(tmp_path / "broken"), **options)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", die_at_5)
        with pytest.raises(Killed):
            train(broken, progress=False)
    said: list[str] = []
    assert train(broken, resume=True, progress=False, notify=said.append).step == 6
    assert not any("encoding" in line for line in said)  # the latents are in the run folder
    whole, other = (RunFolder(tmp_path / name).load_checkpoint() for name in ("whole", "broken"))
    assert whole is not None
    assert other is not None
    assert whole.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one, other.tensors[name]) for name, one in whole.tensors.items())
    assert all((".lora_" in name) == (kind == "sd") for name in whole.tensors)


def test_the_loras_file_is_what_the_export_has_merged(tmp_path: Path) -> None:
    base = tiny_sd(tmp_path / "sd")
    out = tmp_path / "run"
    options = {**QUICK, "lr": 0.05, "rank": 3, "template": "the red {}", "val": "0"}
    config = TrainConfig(data=stripes(tmp_path / "data.npz", 16), base=str(base), out=str(out), **options)
    train(config, progress=False)
    mine, _, _ = run_source(out)
    prompts = prompts_of(NAMES, ("the red {}",))
    theirs = open_source(base, prompts=prompts, lora=[Lora(out / "lora.safetensors")])
    plain = open_source(base, prompts=prompts)
    assert mine.model.prompts == ("the red cube", "the red cone")
    sample, time = torch.randn(1, 4, 8, 8), torch.tensor([400.0])
    with torch.inference_mode():
        one, two, three = (
            WithTables(source.denoiser, source.tables)(sample, time, torch.tensor([0]))
            for source in (mine, theirs, plain)
        )
    assert torch.equal(one, two)
    assert not torch.allclose(one, three, atol=1e-3)


def test_two_data_sets_are_trained_jointly_with_prompts_of_their_own(tmp_path: Path) -> None:
    """One table names the images of both; each of the four classes has a sentence, and one set can be asked about."""
    base, rng = tiny_sd(tmp_path / "sd"), np.random.default_rng(0)
    sentences = {
        "healthy": "a red cube",
        "effusion": "a blue cube",
        "benign": "a red cone",
        "melanoma": "a green cone",
    }
    lines = ["path,label"]
    for k, name in enumerate(sentences):
        (tmp_path / ("xray" if k < 2 else "skin")).mkdir(exist_ok=True)
        for number in range(3):
            file = f"{'xray' if k < 2 else 'skin'}/{name}-{number}.png"
            Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(tmp_path / file)
            lines.append(f"{file},{name}")
    (tmp_path / "both.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{text},{name},{k}" for k, (name, text) in enumerate(sentences.items())]
    (tmp_path / "texts.csv").write_text("\n".join(["prompt,classname,classidx", *rows]) + "\n")
    words = ["train", str(tmp_path / "both.csv"), "--out", str(tmp_path / "run"), "--from", str(base), "--val", "0"]
    words += ["--prompts", str(tmp_path / "texts.csv"), "--steps", "2", "--batch", "4", "--fit", "stretch"]
    result = CliRunner().invoke(cli, [*words, "--threads", "1"])
    assert result.exit_code == 0, result.output
    model = run_source(tmp_path / "run")[0].model
    assert dict(zip(model.class_names, model.prompts, strict=True)) == sentences
    assert RunFolder(tmp_path / "run").info().config.prompts == tuple(sentences.items())
    for changed, message in (
        ({"prompts": (("healthy", "a red cube"),)}, "prompts must have a text for every class of the data"),
        ({"prompts": (("healthy", "a"), ("healthy", "b"))}, "one text for each class, got several for 'healthy'"),
        ({"prompts": "texts.csv"}, "prompts must be pairs of a class and its text"),
        ({"prompts": (("healthy", "a"),), "template": "a {}"}, "expected one of them, got both"),
    ):
        options: dict[str, Any] = {
            "data": str(tmp_path / "both.csv"),
            "out": str(tmp_path / "no"),
            "base": str(base),
            "val": "0",
        }
        with pytest.raises(InputError, match=message):
            train(TrainConfig(**options, **changed), progress=False)


def test_damaged_latents_are_made_again_and_a_kill_loses_none(tmp_path: Path) -> None:
    data, out = stripes(tmp_path / "data.npz", 16), tmp_path / "run"
    config = TrainConfig(data=data, out=str(out), val="0", **{**QUICK, **base_of("vae", tmp_path)})
    said: list[str] = []
    train(config, progress=False, notify=said.append)
    kept = (out / "latents.safetensors").read_bytes()
    (out / "latents.safetensors").write_bytes(kept[:-8] + bytes(8))
    train(config, resume=True, progress=False, notify=said.append)
    assert sum("encoding 40 images" in line for line in said) == 2
    made, before = (safetensors.numpy.load(content) for content in ((out / "latents.safetensors").read_bytes(), kept))
    assert all(np.array_equal(made[name], one) for name, one in before.items())
    (tmp_path / "killed").mkdir()  # a process that was killed after it had encoded
    (tmp_path / "killed" / "latents.safetensors").write_bytes(kept)
    again = TrainConfig(**{**config.to_dict(), "out": str(tmp_path / "killed")})
    said.clear()
    assert train(again, progress=False, notify=said.append).finished
    assert not any("encoding" in line for line in said)


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = tiny_unet2d(tmp_path / "unet")
    config = TrainConfig(
        data=stripes(tmp_path / "data.npz", 8), base=str(base), out=str(tmp_path / "run"), val="0", **QUICK
    )
    train(config, progress=False)
    plain = TrainConfig(**{**config.to_dict(), "base": None})
    with pytest.raises(InputError, match="began with another model"):
        train(plain, resume=True, progress=False)
    tiny_unet2d(base, unet={"norm_num_groups": 2})  # other weights in the same place
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4:] = np.float32(0.25).tobytes()
    file.write_bytes(content)
    for act in (lambda: train(config, resume=True, progress=False), lambda: run_source(config.out)):
        with pytest.raises(InputError, match="unet is not what the run began with: its weights have another sha256"):
            act()


def test_a_run_of_fastdc_can_go_on_with_other_classes(tmp_path: Path) -> None:
    data = stripes(tmp_path / "data.npz", 4, channels=1)
    small: dict[str, Any] = {**QUICK, "val": "0"}
    first = TrainConfig(data=data, out=str(tmp_path / "one"), model="mlp", width=16, p_mean=0.1, **small)
    train(first, progress=False)
    second = TrainConfig(data=data, out=str(tmp_path / "two"), base=str(tmp_path / "one"), **small)
    train(second, progress=False)
    info = RunFolder(tmp_path / "two").info()
    before = RunFolder(tmp_path / "one").info()
    assert (info.config.p_mean, info.sigma_data) == (0.1, before.sigma_data)
    assert info.network == before.network
    bundle = export_run(tmp_path / "two", tmp_path / "bundle")
    assert "weights.safetensors" in bundle.files
    assert bundle.manifest["provenance"]["command"].startswith("fastdc train data.npz --out two --from one --steps 6")
    third = TrainConfig(data=data, out=str(tmp_path / "three"), base=str(tmp_path / "two"), **small)
    with pytest.raises(InputError, match=r"two is a run that began with .*one: start from that"):
        train(third, progress=False)
    from_bundle = TrainConfig(data=data, out=str(tmp_path / "four"), base=str(tmp_path / "bundle"), **small)
    assert train(from_bundle, progress=False).finished
    with np.load(data) as held:
        names = np.array(["cube", "cone", "ball"])
        np.savez(tmp_path / "more.npz", images=held["images"], labels=np.arange(40) % 3, class_names=names)
    for number, base in enumerate(("one", "bundle")):  # whose two classes have numbers of training images
        more = TrainConfig(
            data=str(tmp_path / "more.npz"), out=str(tmp_path / f"more-{number}"), base=str(tmp_path / base), **small
        )
        train(more, progress=False)
        assert RunFolder(more.out).info().class_counts == (14, 13, 13)


@pytest.mark.parametrize(("model", "width"), [("dit", 64), ("unet-cross", 16)])
def test_published_networks_learn_other_classes_at_their_own_levels(tmp_path: Path, model: str, width: int) -> None:
    small: dict[str, Any] = {**QUICK, "val": "0"}
    data = stripes(tmp_path / "data.npz", 8, channels=1)
    first = TrainConfig(data=data, out=str(tmp_path / "one"), model=model, width=width, layers=1, **small)
    train(first, progress=False)
    export_run(tmp_path / "one", tmp_path / "bundle")
    with np.load(data) as held:
        names = np.array(["cube", "cone", "ball"])
        np.savez(tmp_path / "more.npz", images=held["images"], labels=np.arange(40) % 3, class_names=names)
    more = TrainConfig(
        data=str(tmp_path / "more.npz"), out=str(tmp_path / "two"), base=str(tmp_path / "bundle"), **small
    )
    train(more, progress=False)
    info = RunFolder(tmp_path / "two").info()
    assert (info.config.p_mean, info.config.p_std) == (0.4, 1.2)  # of the model's preset, not of the unet's
    assert export_run(tmp_path / "two", tmp_path / "three").class_names == ("cube", "cone", "ball")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "nowhere"}, "--from nowhere does not exist: expected a bundle, a run, a diffusers folder"),
        ({"vae": "nowhere", "size": 16}, "--vae nowhere does not exist: expected a folder of diffusers"),
        ({"vae": "unet", "size": 16}, "unet has no component 'vae'"),
        ({"vae": "dit"}, "size must be given with vae"),
        ({"vae": "dit", "size": 15}, "size must be divisible by 2 for dit, got 15"),
        ({"base": "unet", "rank": 4}, "rank is for text-conditional models, but unet has classes of its own"),
        ({"base": "unet", "template": "a {}"}, "template is for text-conditional models, but unet has classes"),
        ({"base": "unet", "model": "mlp"}, "model cannot be given with a model to fine-tune"),
        ({"base": "unet", "channels": 1, "size": 8}, "channels cannot be given with a model to fine-tune"),
        ({"base": "unet", "sigma_data": 0.5}, "sigma_data is for EDM networks, but unet predicts epsilon"),
        ({"base": "unet", "p_mean": 0.5}, "p_mean and p_std must be given together"),
        ({"base": "unet", "size": 9}, "divisible by 2, got 9"),
        ({"base": "digits", "sigma_data": 0.5}, "sigma_data must be that of digits, 0.7516, got 0.5"),
        ({"base": "shapes"}, "has no torch weights"),
        ({"base": "timesteps"}, "classes"),
        ({"base": "dit", "augment": "photo"}, "augment must be none or flip for a network on latents, got photo"),
        ({"rank": 4}, "rank needs a text-conditional model to fine-tune"),
        ({"base": "unet", "template": "no braces"}, "a template must have exactly one"),
        ({"width": 17}, "width of the unet must be a multiple of 16, got 17"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {options.get("base"), options.get("vae")}
    if "unet" in wanted:
        tiny_unet2d(tmp_path / "unet")
    if "dit" in wanted:
        tiny_dit(tmp_path / "dit")
    if "timesteps" in wanted:
        tiny_unet2d(tmp_path / "timesteps", classes=None, unet={"class_embed_type": "timestep"})
    data = stripes(tmp_path / "data.npz", 8)
    with pytest.raises((InputError, BundleError), match=message) as caught:
        train(TrainConfig(data=data, out="made/too/run", **{**QUICK, **options}), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def fastdc_train(*args: str) -> Result:
    return CliRunner().invoke(cli, ["train", *args])


def test_the_command_fine_tunes_and_says_what_comes_next(tmp_path: Path) -> None:
    data, out = stripes(tmp_path / "data.npz", 8), str(tmp_path / "run")
    options = ["--steps", "2", "--batch", "4", "--val", "0", "--threads", "1"]
    result = fastdc_train(data, "--from", "digits-mlp", "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert "note: 40 images converted from RGB to grey" in result.stderr
    assert f"trained {out}: from digits-mlp, " in result.stdout
    assert f"next: fastdc export {out} BUNDLE" in result.stdout
    again = fastdc_train("--out", out, "--resume")
    assert again.exit_code == 0, again.output
