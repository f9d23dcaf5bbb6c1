"""Class-conditional models of diffusers: errors against a loop over the pipeline's own network and scheduler.

The loop is algorithm 1 of Li et al. (arXiv 2303.16203) and uses the pipeline's functions: add_noise makes x_t, step
estimates the clean image from the network's prediction, and the estimate of the noise follows from
x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) e. Only the noise is fastdc's, from the float64 oracle.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from fastdc import BundleError, DiffusionClassifier, ErrorTable, InputError  # noqa: E402
from fastdc.backends import ModuleEncoder, NetworkOptions, TorchNetwork  # noqa: E402
from fastdc.diffusion import TableSchedule  # noqa: E402
from fastdc.sources import Source  # noqa: E402
from fastdc.sources.class_conditional import open_dit, open_unet2d  # noqa: E402
from fastdc.support.arrays import Float64  # noqa: E402
from fastdc.testing import reference  # noqa: E402
from fastdc.testing.tiny_pipelines import DDPM, tiny_dit, tiny_unet2d, tiny_vae  # noqa: E402
from helpers.worlds import assert_one_line, unit_images  # noqa: E402

DRAWS = 5
Images = npt.NDArray[np.float32]


def ours(source: Source, images: Images) -> ErrorTable:
    network = TorchNetwork(source.denoiser, source.model.sample_shape, NetworkOptions(batch=7, threads=1))
    encoder = None if source.encoder is None else ModuleEncoder(source.encoder)
    return DiffusionClassifier(source.model, network, encoder).errors(images, draws=DRAWS, seed=11)


def loop(network: Any, scheduler: Any, x0: Any, table: ErrorTable, classes: int | None) -> Float64:
    """Errors (n, K, J) of the estimated noise; the network works on `x0`, float32 (n, c, h, w)."""
    if not isinstance(scheduler, diffusers.DDPMScheduler):
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    alpha_bar = scheduler.alphas_cumprod.double()
    ratio = ((1 - alpha_bar) / alpha_bar).sqrt().log()
    out = np.empty((len(x0), classes or 1, DRAWS))
    for i, j in np.ndindex(len(x0), DRAWS):
        t = torch.tensor([int((ratio - np.log(table.sigma[j])).abs().argmin())])
        noise = reference.normal(table.seed, int(table.streams[i]), j, x0[i].numel())
        e = torch.from_numpy(noise).reshape(x0[i : i + 1].shape)
        x_t = scheduler.add_noise(x0[i : i + 1].double(), e, t)
        for k in range(classes or 1):
            label = None if classes is None else torch.tensor([k])
            with torch.no_grad():
                f = network(x_t.float(), t, class_labels=label).sample[:, : x0.shape[1]]
            estimate = scheduler.step(f.double(), int(t), x_t).pred_original_sample
            root = alpha_bar[t].sqrt()
            e_hat = (x_t - root * estimate) / (1 - root**2).sqrt()
            out[i, k, j] = float((e_hat - e).square().mean())
    return out


def assert_errors(source: Source, network: Any, scheduler: Any, images: Images, x0: Any, classes: int | None) -> None:
    table = ours(source, images)
    expected = loop(network, scheduler, x0, table, classes)
    assert table.errors.shape == (len(images), classes or 1, DRAWS)
    assert len(set(table.sigma.tolist())) == DRAWS
    # float32 networks on inputs that differ in rounding differ by about 1e-6 relative to the output, squared and
    # averaged. The scheduler's alpha_bar is a float32 product of up to a thousand factors.
    np.testing.assert_allclose(table.errors, expected, rtol=1e-5)
    if classes is not None:  # the classes differ by much more than that, so a wrong label would show
        assert (np.ptp(expected, axis=1).max(axis=1) > 1e-3 * expected.mean(axis=(1, 2))).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_errors_of_a_unet_are_those_of_the_loop(kind: str, pipeline: str, tmp_path: Path) -> None:
    scheduler = "DDPMScheduler" if pipeline == "DDPMPipeline" else "DDIMScheduler"
    folder = tiny_unet2d(tmp_path / "m", pipeline=pipeline, scheduler=scheduler, prediction_type=kind)
    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    source, images = open_unet2d(folder), unit_images(2, (3, 8, 8))
    assert (source.family, source.model.name, source.model.parameterization.kind) == ("unet2d", "m", kind)
    assert source.model.class_names == ("0", "1", "2", "3")
    assert (source.model.null_class, source.encoder, source.text, source.tables) == (None, None, None, {})
    assert source.provenance == {"pipeline": pipeline, "source": "m"}
    assert_errors(source, made.unet, made.scheduler, images, torch.from_numpy(images * 2 - 1), 4)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"trained_betas": np.linspace(1e-3, 0.1, 60).tolist(), "num_train_timesteps": 60},
        {"beta_schedule": "sigmoid", "num_train_timesteps": 300},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=["cosine", "scaled", "listed", "sigmoid", "rescaled"],
)
def test_errors_at_other_levels(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_unet2d(tmp_path / "m", **config)
    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    images = unit_images(1, (3, 8, 8))
    source = open_unet2d(folder)
    if "rescale_betas_zero_snr" in config:
        # Their float32 table is 2e-4 off ours in alpha, so compare at exactly our levels, without the last, pure noise.
        assert isinstance(source.model.schedule, TableSchedule)
        assert len(source.model.schedule.table) == 999
        made.scheduler.alphas_cumprod = torch.tensor((*source.model.schedule.table, 1e-12), dtype=torch.float64)
    assert_errors(source, made.unet, made.scheduler, images, torch.from_numpy(images * 2 - 1), 4)


def test_a_variance_is_left_out_and_a_null_class_found(tmp_path: Path) -> None:
    folder = tiny_unet2d(tmp_path / "m", learned_variance=True, channels=1, unet={"sample_size": [8, 16]})
    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    images = unit_images(2, (1, 8, 16))
    source = open_unet2d(folder, class_names=["a", "b", "c"])
    assert (source.model.image_shape, source.model.null_class) == ((1, 8, 16), 3)
    assert_errors(source, made.unet, made.scheduler, images, torch.from_numpy(images * 2 - 1), 3)
    assert open_unet2d(folder, null_class=True).model.class_names == ("0", "1", "2")
    assert open_unet2d(folder, class_names=["a", "b", "c", "d"]).model.null_class is None
    x, t = torch.randn(2, 1, 8, 16), torch.tensor([3.0, 900.0])
    null = source.denoiser(x, t, torch.tensor([3, 3]))
    with torch.no_grad():
        expected = made.unet(x, t, class_labels=torch.tensor([3, 3])).sample[:, :1]
    np.testing.assert_allclose(null.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [16, (4, 12)])
def test_a_unet_on_images_of_another_size(size: Any, tmp_path: Path) -> None:
    folder = tiny_unet2d(tmp_path / "m")
    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    source = open_unet2d(folder, image_size=size)
    images = unit_images(1, source.model.image_shape)
    assert source.model.image_shape == ((3, 16, 16) if size == 16 else (3, 4, 12))
    assert_errors(source, made.unet, made.scheduler, images, torch.from_numpy(images * 2 - 1), 4)


def test_a_unet_without_classes(tmp_path: Path) -> None:
    folder = tiny_unet2d(tmp_path / "m", classes=None)
    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    images = unit_images(2, (3, 8, 8))
    source = open_unet2d(folder)
    assert source.model.class_names == ("image",)
    assert_errors(source, made.unet, made.scheduler, images, torch.from_numpy(images * 2 - 1), None)


def test_classes_that_are_numbers(tmp_path: Path) -> None:
    """class_embed_type "timestep": the label goes through the features of a timestep."""
    folder = tiny_unet2d(tmp_path / "m", unet={"class_embed_type": "timestep"})
    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    images = unit_images(1, (3, 8, 8))
    source = open_unet2d(folder, class_names=["a", "b", "c"])
    assert_errors(source, made.unet, made.scheduler, images, torch.from_numpy(images * 2 - 1), 3)


def test_a_unet_alone_takes_the_scheduler_beside_it(tmp_path: Path) -> None:
    folder = tiny_unet2d(tmp_path / "m", bare=True)
    with pytest.raises(InputError) as caught:
        open_unet2d(folder)
    assert_one_line(
        caught.value,
        "m has no scheduler: give the scheduler_config.json of its training (--scheduler)",
    )
    scheduler = diffusers.DDPMScheduler(**{**DDPM, "prediction_type": "sample"})
    scheduler.save_config(folder)
    source = open_unet2d(folder)
    assert source.model.parameterization.kind == "sample"
    assert source.provenance["pipeline"] == "UNet2DModel"
    unet = diffusers.UNet2DModel.from_pretrained(folder)
    images = unit_images(1, (3, 8, 8))
    assert_errors(source, unet, scheduler, images, torch.from_numpy(images * 2 - 1), 4)


def latents_of(pipeline: Any, images: Images) -> Any:
    with torch.no_grad():
        mean = pipeline.vae.encode(torch.from_numpy(images * 2 - 1)).latent_dist.mode()
    return mean * pipeline.vae.config.scaling_factor


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("size", [None, 24])
def test_errors_of_dit_are_those_of_the_loop(kind: str, size: int | None, tmp_path: Path) -> None:
    folder = tiny_dit(tmp_path / "m", prediction_type=kind)
    made = diffusers.DiTPipeline.from_pretrained(folder)
    source = open_dit(folder, image_size=size)
    side = size or 16
    assert (source.family, source.model.image_shape) == ("dit", (3, side, side))
    assert (source.model.latent_shape, source.model.null_class) == ((4, side // 2, side // 2), 5)
    assert source.model.class_names[:2] == ("thing 0, also 0", "thing 1, also 1")
    images = unit_images(2, (3, side, side))
    assert_errors(source, made.transformer, made.scheduler, images, latents_of(made, images), 5)


def test_the_null_class_of_dit(tmp_path: Path) -> None:
    folder = tiny_dit(tmp_path / "m")
    made, source = diffusers.DiTPipeline.from_pretrained(folder), open_dit(folder)
    x, t, null = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 500.0, 999.0]), torch.full((3,), 5)
    with torch.no_grad():
        expected = made.transformer(x, t, null).sample[:, :4]
    np.testing.assert_allclose(source.denoiser(x, t, null).numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_names_of_dit(tmp_path: Path) -> None:
    folder = tiny_dit(tmp_path / "m", names=False)
    assert open_dit(folder).model.class_names == ("0", "1", "2", "3", "4")
    assert open_dit(folder, class_names="abcde").model.class_names == ("a", "b", "c", "d", "e")
    index = folder / "model_index.json"
    text = index.read_text()
    index.write_text(text.replace("{", '{"id2label": {"0": "a"},', 1))
    with pytest.raises(BundleError, match="id2label must name classes 0 to 4"):
        open_dit(folder)


def test_the_published_name_of_dit_is_known(tmp_path: Path) -> None:
    folder = tiny_dit(tmp_path / "m")
    for file in (folder / "model_index.json", folder / "transformer" / "config.json"):
        file.write_text(file.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    source = open_dit(folder)
    x, t, k = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 2.0]), torch.tensor([0, 5])
    with torch.no_grad():
        expected = open_dit(tiny_dit(tmp_path / "other")).denoiser(x, t, k)
    np.testing.assert_array_equal(source.denoiser(x, t, k).numpy(), expected.numpy())


UNETS: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "too few names": (
        {},
        {"class_names": ["a", "b"]},
        InputError,
        "4 class rows: expected 4 class names (--classes), got 2",
    ),
    "too many names": ({}, {"class_names": list("abcde")}, InputError, "expected 4 class names (--classes), got 5"),
    "names and null": ({}, {"class_names": list("abcd"), "null_class": True}, InputError, "expected 3 class names"),
    "only null": ({"classes": 1}, {"null_class": True}, InputError, "expected classes beside the null class"),
    "null of none": ({"classes": None}, {"null_class": True}, InputError, "takes no classes"),
    "names of none": ({"classes": None}, {"class_names": ["a", "b"]}, InputError, "takes no classes"),
    "numbers, no names": ({"unet": {"class_embed_type": "timestep"}}, {}, InputError, "give class names (--classes)"),
    "vectors": ({"unet": {"class_embed_type": "identity"}}, {}, BundleError, "class_embed_type must be None or"),
    "odd": ({}, {"image_size": 9}, InputError, "divisible by 2, got 9"),
    "no size": ({"unet": {"sample_size": None}}, {}, InputError, "give the image size (--image-size)"),
    "three sides": (
        {},
        {"image_size": (8, 8, 8)},
        InputError,
        "(--image-size) must be a side or (height, width)",
    ),
    "text": ({}, {"image_size": "8"}, InputError, "(--image-size) must be a side"),
    "zero": ({}, {"image_size": 0}, InputError, "(--image-size) must be a side"),
    "huge": ({}, {"image_size": 10**6}, InputError, "(--image-size) must be a side"),
    "channels": ({"unet": {"out_channels": 5}}, {}, BundleError, "out_channels must be 3, or 6 with a variance, got 5"),
    "fourier": ({"unet": {"time_embedding_type": "fourier"}}, {}, BundleError, "time_embedding_type must be"),
    "levels": ({"scheduler": "ScoreSdeVeScheduler"}, {}, BundleError, "scheduler must be one of"),
}


@pytest.mark.parametrize("name", UNETS)
def test_unets_that_cannot_be_used_are_refused(name: str, tmp_path: Path) -> None:
    made, options, kind, message = UNETS[name]
    if made.get("scheduler"):
        folder = tiny_unet2d(tmp_path / "m")
        diffusers.ScoreSdeVeScheduler().save_config(folder / "scheduler")
    else:
        folder = tiny_unet2d(tmp_path / "m", **made)
    with pytest.raises(kind) as caught:
        open_unet2d(folder, **options)
    assert_one_line(caught.value, message)


def test_dits_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    folder = tiny_dit(tmp_path / "m")
    for options, message in (
        ({"class_names": ["a"]}, "m has 5 classes: expected as many class names (--classes), got 1"),
        ({"image_size": 18}, "divisible by 4, got 18"),
        ({"image_size": (16, 32)}, "works on square images (--image-size), got 16 x 32"),
    ):
        with pytest.raises(InputError) as caught:
            open_dit(folder, **options)
        assert_one_line(caught.value, message)
    with pytest.raises(BundleError) as refused:
        open_dit(tiny_unet2d(tmp_path / "u"))
    assert_one_line(refused.value, "u has no component 'transformer': it has scheduler, unet")
    tiny_vae(channels=8).save_pretrained(folder / "vae", safe_serialization=True)
    with pytest.raises(BundleError, match="latents have 8 channels, expected 4"):
        open_dit(folder)
    with pytest.raises(BundleError, match="has no component 'unet'"):
        open_unet2d(folder)
