"""The UNet and the MLP that fastdc builds itself: shapes, conditioning, and invalid configs."""

from typing import Any

import pytest

from fastdc.support.exceptions import BundleError, InputError
from fastdc.train.config import TrainConfig
from fastdc.train.networks import network_config

pytest.importorskip("torch")

import torch

from fastdc.bundle import architectures as networks

MLP: dict[str, Any] = {"shape": [1, 4, 6], "num_class_embeds": 4, "width": 16}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "num_class_embeds": 4,
    "block_out_channels": [16, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}

CROSS: dict[str, Any] = {
    "shape": [4, 8, 8],
    "num_class_embeds": 4,
    "block_out_channels": [8, 16, 16],
    "attention": [False, True, False],
    "layers_per_block": 1,
    "embedding": 12,
    "norm_num_groups": 8,
}
DIT: dict[str, Any] = {
    "shape": [4, 8, 8],
    "num_class_embeds": 4,
    "patch_size": 4,
    "layers": 2,
    "heads": 2,
    "head_width": 12,
}
CONFIGS = {
    "unet2d": (UNET, (1, 8, 8)),
    "mlp": (MLP, (1, 4, 6)),
    "unet2d_cross": (CROSS, (4, 8, 8)),
    "dit": (DIT, (4, 8, 8)),
}


def build(kind: str) -> tuple[Any, tuple[int, int, int]]:
    if kind != "mlp":
        pytest.importorskip("diffusers")
    config, shape = CONFIGS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build_network(kind, config).eval()
        for parameter in network.parameters():  # layers that start at zero would hide their inputs
            torch.nn.init.normal_(parameter, std=0.2)
    return network, shape


@pytest.mark.parametrize("kind", networks.KINDS)
@torch.no_grad()
def test_output_has_the_shape_of_the_sample_and_rows_are_independent(kind: str) -> None:
    network, shape = build(kind)
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(5, *shape, generator=generator)
    timestep = torch.linspace(-600.0, 400.0, 5)
    labels = torch.tensor([0, 1, 2, 3, 0])
    out = network(sample, timestep, labels)
    assert out.shape == sample.shape
    assert out.dtype == torch.float32
    alone = torch.cat([network(sample[i : i + 1], timestep[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(out, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", networks.KINDS)
@torch.no_grad()
def test_every_class_and_the_null_class_and_the_noise_level_matter(kind: str) -> None:
    network, shape = build(kind)
    sample = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2)).expand(4, *shape)
    by_class = network(sample, torch.zeros(4), torch.arange(4))
    by_level = network(sample, torch.tensor([-300.0, -1.0, 0.0, 200.0]), torch.full((4,), 3))
    for out in (by_class, by_level):
        gaps = torch.cdist(out.flatten(1), out.flatten(1)) + torch.eye(4)
        assert gaps.min() > 1e-3


@torch.no_grad()
def test_the_mlp_starts_as_zero_so_the_denoiser_starts_linear() -> None:
    network = networks.build_network("mlp", MLP)
    assert not network(torch.ones(2, 1, 4, 6), torch.ones(2), torch.tensor([0, 3])).any()


@torch.no_grad()
def test_the_mlp_runs_in_half_precision_with_the_noise_code_in_float32() -> None:
    network, shape = build("mlp")
    sample, timestep, labels = torch.ones(2, *shape), torch.tensor([-512.25, 300.5]), torch.tensor([0, 3])
    want = network(sample, timestep, labels)
    got = network.to(torch.bfloat16)(sample.bfloat16(), timestep, labels)
    assert got.dtype == torch.bfloat16
    # The angles must not be rounded to bfloat16 before the sine: an error of 1 radian would change the output.
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("resnet", {}, "network kind must be one of unet2d, mlp, unet2d_cross, dit, got 'resnet'"),
        ("mlp", {**MLP, "hook": "os.system"}, "mlp config has the unknown key 'hook'"),
        ("mlp", {"width": 8}, "mlp config must give shape, num_class_embeds"),
        ("mlp", {**MLP, "width": True}, "width has a value that is not supported: True"),
        ("mlp", {**MLP, "width": "64"}, "width has a value that is not supported: '64'"),
        ("mlp", {**MLP, "shape": [1, 8]}, "shape has a value that is not supported"),
        ("mlp", {**MLP, "dropout": float("nan")}, "dropout has a value that is not supported: nan"),
        ("mlp", {**MLP, "shape": [4096, 4096, 4096], "width": 65536}, "must have at most 2,000,000,000 parameters"),
        ("unet2d", {**UNET, "down_block_types": ["KDownBlock2D"] * 2}, "down_block_types has a value that is not"),
        ("unet2d", {**UNET, "block_out_channels": [16]}, "differ in length"),
        ("unet2d", {**UNET, "norm_num_groups": 7}, "norm_num_groups 7 must divide every width of [16, 16]"),
        ("unet2d", {**UNET, "sample_size": 7}, "2 levels need sides divisible by 2, got (7, 7)"),
        ("unet2d_cross", {**CROSS, "attention": [True]}, "block_out_channels, attention differ in length"),
        ("unet2d_cross", {**CROSS, "shape": [4, 8, 6]}, "3 levels need sides divisible by 4, got (8, 6)"),
        ("unet2d_cross", {**CROSS, "heads": 3}, "heads must divide the widths"),
        ("unet2d_cross", {**CROSS, "attention": [0, 1, 0]}, "attention has a value that is not supported"),
        ("unet2d_cross", {**CROSS, "cross_attention_dim": 8}, "unet2d_cross config has the unknown key"),
        ("dit", {**DIT, "shape": [4, 8, 12]}, "sides must be equal and divisible by patch_size, got 8x12"),
        ("dit", {**DIT, "patch_size": 3}, "sides must be equal and divisible by patch_size, got 8x8"),
        ("dit", {"shape": [4, 8, 8]}, "dit config must give num_class_embeds"),
        ("unet2d", {**UNET, "_class_name": "x"}, "unet2d config has the unknown key '_class_name'"),
    ],
)
def test_a_bad_config_is_refused_in_one_line(kind: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        networks.build_network(kind, config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absurd_unet_is_refused_before_memory_is_taken() -> None:
    pytest.importorskip("diffusers")
    huge = {**UNET, "block_out_channels": [8192, 8192], "layers_per_block": 16}  # 137e9 weights
    with pytest.raises(BundleError, match="at most 2,000,000,000 parameters"):
        networks.build_network("unet2d", huge)


@pytest.mark.parametrize("side", [4, 6, 7, 8, 14, 16, 28, 32, 48, 64])
@torch.no_grad()
def test_the_presets_fit_common_image_sizes(side: int) -> None:
    pytest.importorskip("diffusers")
    for model, width in (("unet", None), ("mlp", None), ("unet-cross", 32), ("dit", 128)):
        kind, config = network_config(TrainConfig(data="-", out="-", model=model, width=width), (3, side, side), 10)
        with torch.device("meta"):  # this test needs only shapes
            network = networks.build_network(kind, config)
            out = network(torch.zeros(2, 3, side, side), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
        assert out.shape == (2, 3, side, side)
        assert 1e5 < networks.parameter_count(network) < 5e7


def test_the_medical_networks_have_the_published_sizes() -> None:
    """Widths 128 128 256 512 1024 with attention at 512; DiT-B has 12 blocks of 12 heads."""
    pytest.importorskip("diffusers")
    for name, wanted, size in (
        ("medical-unet", {"block_out_channels": [128, 128, 256, 512, 1024], "embedding": 512}, 275_843_852),
        ("medical-dit", {"layers": 12, "heads": 12, "head_width": 64, "patch_size": 4}, 138_502_080),
    ):
        kind, config = network_config(TrainConfig.named(name, data="-", out="-"), (12, 128, 128), 2)
        assert {key: config[key] for key in wanted} == wanted
        assert config.get("attention", [False, False, False, True, False]) == [False, False, False, True, False]
        with torch.device("meta"):
            assert networks.parameter_count(networks.build_network(kind, config)) == pytest.approx(size, rel=1e-3)


def test_the_dit_drops_no_labels_itself() -> None:
    """diffusers' class drops a tenth in training, beside those that the training drops."""
    network, shape = build("dit")
    same = torch.ones(1, *shape).expand(64, *shape)
    out = network.train()(same, torch.zeros(64), torch.zeros(64, dtype=torch.int64))
    torch.testing.assert_close(out, out[:1].expand_as(out))


def test_the_unet_of_the_digits_has_the_published_size() -> None:
    pytest.importorskip("diffusers")
    kind, config = network_config(TrainConfig(data="-", out="-"), (1, 8, 8), 10)
    assert networks.parameter_count(networks.build_network(kind, config)) == 285_921


@pytest.mark.parametrize("shape", [(1, 33, 33), (3, 50, 50), (1, 100, 99)])
def test_sizes_that_the_unet_cannot_halve_are_refused_with_a_suggestion(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"resize, for example to \d+"):
        network_config(TrainConfig(data="-", out="-"), shape, 10)
