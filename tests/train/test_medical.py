"""The medical recipe of Favero et al. (arXiv 2502.03687): loss, schedule, average, presets, and small runs."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fastdc import InputError
from fastdc.bundle import HaarTransform
from fastdc.cli.main import cli
from fastdc.diffusion import CosineSchedule, DiscreteSchedule, Parameterization
from fastdc.support import Float64
from fastdc.train import RunFolder, TrainConfig, run_model, run_source
from helpers.worlds import fails_with

pytest.importorskip("torch")

import torch
from torch import Tensor

import fastdc
from fastdc.backends import TorchNetwork
from fastdc.bundle import torch_samples
from fastdc.train import train
from fastdc.train.batches import Batches
from fastdc.train.dataset import load_training_data
from fastdc.train.loss import Objective, denoising_loss
from fastdc.train.networks import network_config
from fastdc.train.run_model import run_schedule
from fastdc.train.state import TrainState
from fastdc.train.trainee import Trainee
from helpers.tiny_runs import tiny

QUARTER = float(np.log(64 / 256))
SMALL: dict[str, Any] = {"width": 16, "steps": 3, "batch": 8, "val": "0", "threads": 1, "checkpoint_every": 3}


class Half(torch.nn.Module):
    """A network that is not zero, and shows its time input."""

    def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
        return 0.5 * sample + (timestep / 100)[:, None, None, None]


def losses_of(kind: str, weighting: str, positions: Float64) -> tuple[Tensor, Any]:
    """The losses of fixed images and noise, and what the released code names them by."""
    schedule = CosineSchedule(-15 + QUARTER, 15 + QUARTER, 2 * QUARTER)
    objective = Objective(schedule, Parameterization(kind), weighting=weighting)
    generator = torch.Generator().manual_seed(3)
    x, eps = (torch.randn(len(positions), 2, 3, 3, generator=generator) for _ in range(2))
    terms = objective.terms(positions, "cpu")
    losses = denoising_loss(Half(), x, torch.zeros(len(x), dtype=torch.int64), eps, terms)
    logsnr = torch.from_numpy(schedule.levels(positions).timestep)
    return losses, (x.double(), eps.double(), logsnr)


def test_the_medical_loss_is_that_of_the_released_code() -> None:
    """mean (eps' - eps)^2 / (1 + min(SNR, 5)), with eps' = sigma z + alpha v, in float64."""
    positions = np.linspace(0.05, 0.95, 19)
    got, (x, eps, logsnr) = losses_of("v_prediction", "medical", positions)
    alpha, sigma = (torch.sqrt(torch.sigmoid(sign * logsnr))[:, None, None, None] for sign in (1, -1))
    z = alpha * x + sigma * eps
    said = sigma * z + alpha * (0.5 * z + (logsnr / 100)[:, None, None, None])
    weight = 1 / (1 + torch.exp(logsnr).clamp(max=5))
    want = weight * ((said - eps) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_min_snr_weighs_the_error_of_the_image_by_the_clipped_snr(kind: str) -> None:
    """Hang et al., arXiv 2303.09556: min(SNR, 5) |x0' - x0|^2, whatever the network predicts."""
    positions = np.linspace(0.2, 0.8, 13)
    got, (x, eps, logsnr) = losses_of(kind, "min_snr", positions)
    alpha, sigma = (torch.sqrt(torch.sigmoid(sign * logsnr))[:, None, None, None] for sign in (1, -1))
    z = alpha * x + sigma * eps
    out = 0.5 * z + (logsnr / 100)[:, None, None, None]
    clean = {"v_prediction": alpha * z - sigma * out, "epsilon": (z - sigma * out) / alpha, "sample": out}[kind]
    want = torch.exp(logsnr).clamp(max=5) * ((clean - x) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=1e-6)


def test_without_a_weighting_the_loss_is_plain() -> None:
    objective = Objective(DiscreteSchedule(), Parameterization("epsilon"))
    assert torch.equal(objective.terms(np.linspace(0, 1, 5), "cpu").weight, torch.ones(5))


def test_the_schedule_is_that_of_the_size_of_the_images() -> None:
    config = TrainConfig(data="-", out="-", prediction="v_prediction", timestep_scale=1.0)
    for shift, at in (("none", 0.0), ("size", 2 * QUARTER)):
        assert run_schedule(replace(config, shift=shift), (3, 256, 300)) == CosineSchedule(shift=at)
    medical = run_schedule(replace(config, shift="medical"), (3, 256, 256))
    assert medical == CosineSchedule(-15 + QUARTER, 15 + QUARTER, 2 * QUARTER)


def test_published_recipes_are_the_papers_and_options_win() -> None:
    recipe = TrainConfig.named("medical-unet", data="-", out="-", size=64, width=32)
    assert (recipe.size, recipe.width, recipe.label_dropout, recipe.ema, recipe.ema_every) == (64, 32, 0.15, 0.999, 5)
    assert (recipe.lr, recipe.warmup, recipe.batch, recipe.clip, recipe.fit) == (1e-4, 100, 128, 1.0, "stretch")
    assert TrainConfig.named("medical-dit", data="-", out="-").warmup == 250
    fails_with(lambda: TrainConfig.named("paper", data="-", out="-"), "medical-unet, medical-dit", kind=InputError)


def fails(named: str, **options: Any) -> None:
    fails_with(lambda: TrainConfig(data="-", out="-", **options), named, kind=InputError)


def test_words_that_do_not_go_together_are_refused() -> None:
    fails("prediction must be one of", prediction="v")
    fails("shift is for prediction v_prediction", shift="size")
    fails("loss_weighting is for prediction v_prediction", loss_weighting="min_snr")
    fails("transform must be one of haar", transform="db2")
    fails("transform is of images", transform="haar", vae="vae", size=8)
    fails("expected no base", prediction="v_prediction", base="digits")
    fails("transform cannot be given with a model to fine-tune", transform="haar", base="digits")
    fails("ema_every must be", ema_every=0)


def test_the_network_is_given_coefficients_of_changed_images(data: Path, tmp_path: Path) -> None:
    """An augmentation acts on pixels, before the transform."""
    plain = tiny(data, tmp_path / "run", flip=True, label_dropout=0.0)
    loaded = load_training_data(plain)
    pixels, coefficients = (
        Batches(config, loaded, torch.device("cpu")).draw(2)[0] for config in (plain, replace(plain, transform="haar"))
    )
    assert coefficients.shape[1:] == (4, 2, 2)
    assert torch.equal(coefficients, torch_samples(HaarTransform(0.5), pixels))
    np.testing.assert_allclose(HaarTransform(0.5).inverse(coefficients.numpy()), pixels.numpy(), atol=1e-6)


def test_the_average_moves_every_few_steps() -> None:
    """At every third of 6 steps, with decays 1/10 and 2/11, those of the warm-up's first and second update."""
    network = torch.nn.Linear(3, 1)
    config = TrainConfig(data="-", out="-", steps=6, lr=0.1, ema_every=3)
    state = TrainState(config, Trainee(network, Any, Any, {}), torch.device("cpu"))  # type: ignore[arg-type]
    want, seen = network.weight.detach().clone(), []
    for step in range(1, 7):
        state.update([network(torch.ones(3)).square().sum()])
        if step % 3 == 0:
            decay = {3: 1 / 10, 6: 2 / 11}[step]
            want = decay * want + (1 - decay) * network.weight.detach()
        torch.testing.assert_close(state.averaged["weight"], want)
        seen.append(network.weight.detach().clone())
    short = TrainState(replace(config, steps=2), Trainee(network, Any, Any, {}), torch.device("cpu"))  # type: ignore[arg-type]
    before = short.averaged["weight"].detach().clone()
    for _ in range(2):
        short.update([network(torch.ones(3)).square().sum()])
    assert not torch.equal(short.averaged["weight"], before)
    assert not any(torch.equal(before, after) for before, after in pairwise(seen))


def test_a_small_run_of_the_recipe_learns_and_becomes_a_bundle(data: Path, tmp_path: Path) -> None:
    """v on a shifted cosine, wavelets, stretched pictures, in training and in the bundle."""
    pytest.importorskip("onnxruntime")
    from fastdc.export import export_run

    with np.load(data) as file:
        wide = {**file, "images": np.repeat(file["images"], 2, axis=2)}
    np.savez(tmp_path / "wide.npz", **wide)
    small = {**SMALL, "model": "mlp", "size": 4, "channels": 1, "width": 32, "steps": 400, "batch": 32, "lr": 3e-3}
    recipe = TrainConfig.named("medical-unet", data=str(tmp_path / "wide.npz"), out=str(tmp_path / "run"), **small)
    run = train(recipe, progress=False)
    bundle = export_run(run.path, tmp_path / "made")
    model = bundle.model
    assert (model.image_shape, model.sample_shape, model.fit) == ((1, 4, 4), (4, 2, 2), "stretch")
    assert model.transform == HaarTransform(0.5)
    assert model.schedule == run_schedule(recipe, (1, 4, 4))
    assert (model.parameterization.kind, model.defaults.weighting, model.null_class) == ("v_prediction", "uniform", 2)
    assert run_source(run.path)[0].model.schedule == model.schedule
    command = bundle.manifest["provenance"]["command"]
    assert "--transform haar" in command
    assert "--prediction v_prediction --shift medical --loss-weighting medical" in command
    assert "None" not in command
    for base in ("run", "made"):
        more = TrainConfig(data=recipe.data, out=str(tmp_path / "more"), base=str(tmp_path / base), steps=2)
        fails_with(partial(train, more, progress=False), "--resume continues", kind=InputError)
    on_torch, clf = (fastdc.load(tmp_path / "made", backend=name, threads=1) for name in ("torch", "onnx"))
    options: dict[str, Any] = {"draws": 24, "levels": (0.1, 10.0), "rule": "full"}
    found = clf.classify(tmp_path / "wide.npz", **options)
    assert (found.labels == wide["labels"]).mean() > 0.9
    np.testing.assert_allclose(
        on_torch.classify(tmp_path / "wide.npz", **options).table.errors, found.table.errors, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["medical-dit", pytest.param("medical-unet", marks=pytest.mark.slow)])
def test_the_published_networks_become_bundles(data: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("diffusers")
    from fastdc.export import export_run

    small = {**SMALL, "size": 16, "channels": 1, "layers": 1, "width": 64 if name == "medical-dit" else 16}
    recipe = TrainConfig.named(name, data=str(data), out=str(tmp_path / "run"), **small)
    bundle = export_run(train(recipe, progress=False).path, tmp_path / "made")
    assert bundle.model.sample_shape == (4, 8, 8)
    images = np.random.default_rng(0).random((2, 1, 16, 16), dtype=np.float32)
    on_torch, clf = (fastdc.load(tmp_path / "made", backend=backend, threads=1) for backend in ("torch", "onnx"))
    assert isinstance(on_torch.network, TorchNetwork)
    tables = [one.errors(images, draws=3) for one in (on_torch, clf)]
    np.testing.assert_allclose(tables[0].errors, tables[1].errors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("width", [16, 32, 48, 128])
def test_groups_of_the_cross_unet_have_four_channels_or_more(width: int) -> None:
    """As published: 32 groups of 128. Of one channel, a group norm would remove the mean of every channel."""
    config = TrainConfig.named("medical-unet", data="-", out="-", width=width)
    groups = network_config(config, (12, 32, 32), 2)[1]["norm_num_groups"]
    assert width % groups == 0
    assert width // groups >= 4
    assert groups == 32 or width < 128


def test_wavelets_go_with_edms_loss_too(data: Path, tmp_path: Path) -> None:
    """Noise levels and the deviation of the data are halved with the coefficients."""
    plain, waves = (
        RunFolder(train(tiny(data, tmp_path / str(k), steps=2, transform=k), progress=False).path).info()
        for k in (None, "haar")
    )
    assert waves.sigma_data == pytest.approx(plain.sigma_data / 2)
    assert waves.levels == tuple(level / 2 for level in plain.levels)
    assert plain.config.p_mean is not None
    assert waves.config.p_mean == pytest.approx(plain.config.p_mean - np.log(2))
    assert run_model(waves).sample_shape == (4, 2, 2)


def test_the_command_has_the_recipe(data: Path, tmp_path: Path) -> None:
    words = ["train", str(data), "--out", str(tmp_path / "run"), "--preset", "medical-unet", "--model", "mlp"]
    small = ["--size", "4", "--channels", "1", "--width", "16", "--steps", "2", "--batch", "8", "--val", "0"]
    result = CliRunner().invoke(cli, [*words, *small, "--threads", "1"])
    assert result.exit_code == 0, result.output
    config = RunFolder(tmp_path / "run").info().config
    assert (config.prediction, config.shift, config.transform, config.batch) == ("v_prediction", "medical", "haar", 8)
    again = CliRunner().invoke(cli, ["train", "--out", str(tmp_path / "run"), "--resume", "--preset", "medical-dit"])
    assert isinstance(again.exception, InputError)
    assert "preset is for a new run" in str(again.exception)
