"""EDM networks equal a float64 network written from the papers, and diffusers' ADM; their names and sizes are right."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc.support.exceptions import BundleError
from fastdc.support.optional import installed

pytest.importorskip("torch")

import torch

from fastdc.sources import edm_network
from fastdc.testing import edm_files

Array = npt.NDArray[np.float64]
Weights = dict[str, Array]


def _silu(x: Array) -> Array:
    out: Array = x / (1 + np.exp(-x))
    return out


def _conv(x: Array, weight: Array, padding: int, stride: int = 1) -> Array:
    """A plain convolution, (b, i, h, w) by (o, i, k, k)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    side = weight.shape[-1]
    rows = (x.shape[2] - side) // stride + 1
    columns = (x.shape[3] - side) // stride + 1
    out = np.zeros((x.shape[0], weight.shape[0], rows, columns))
    for i in range(side):
        for j in range(side):
            part = x[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            out += np.einsum("bchw,oc->bohw", part, weight[:, :, i, j])
    return out


def _each(taps: Array, channels: int) -> Array:
    """A filter as the weight of a convolution that treats each channel separately."""
    weight = np.zeros((channels, channels, *taps.shape))
    for channel in range(channels):
        weight[channel, channel] = taps
    return weight


def _resampled(x: Array, taps: Array, direction: str) -> Array:
    """Resampled by 2: shrinking filters and drops pixels, growing puts zeros between them and filters."""
    n = len(taps)
    if direction == "down":
        return _conv(x, _each(taps, x.shape[1]), (n - 1) // 2, stride=2)
    grown = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    grown[:, :, ::2, ::2] = x
    # An even filter has no middle: pixel i becomes 2i and 2i + 1, so the filter reaches one further to the left.
    grown = np.pad(grown, ((0, 0), (0, 0), (n // 2, n // 2 - 1), (n // 2, n // 2 - 1)))
    return _conv(grown, _each(4 * taps[::-1, ::-1], x.shape[1]), 0)


class _Oracle:
    """The networks of the papers in float64, with the files' names of parameters."""

    def __init__(self, variant: str, weights: Weights, **more: Any) -> None:
        self.w = weights
        self.options = edm_files.options(variant, **more)
        self.adm = variant == "adm"
        taps = np.array(self.options.get("resample_filter", [1, 1]), dtype=np.float64)
        self.taps = np.outer(taps, taps) / taps.sum() ** 2
        self.scale = 1.0 if self.adm else math.sqrt(0.5)

    def conv(self, name: str, x: Array) -> Array:
        weight = self.w[f"{name}.weight"]
        return _conv(x, weight, weight.shape[-1] // 2) + self.w[f"{name}.bias"][None, :, None, None]

    def linear(self, name: str, x: Array) -> Array:
        out: Array = x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", np.float64(0))
        return out

    def norm(self, name: str, x: Array) -> Array:
        b, c, h, w = x.shape
        groups = x.reshape(b, min(32, c // 4), -1)
        eps = 1e-5 if self.adm else 1e-6
        groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + eps)
        out: Array = groups.reshape(b, c, h, w) * self.w[f"{name}.weight"][:, None, None]
        return out + self.w[f"{name}.bias"][:, None, None]

    def block(self, name: str, x: Array, emb: Array, direction: str = "") -> Array:
        h = _silu(self.norm(f"{name}.norm0", x))
        h = self.conv(f"{name}.conv0", _resampled(h, self.taps, direction) if direction else h)
        code = self.linear(f"{name}.affine", emb)[:, :, None, None]
        if self.adm:
            half = code.shape[1] // 2
            h = self.norm(f"{name}.norm1", h) * (1 + code[:, :half]) + code[:, half:]
        else:
            h = self.norm(f"{name}.norm1", h + code)
        h = self.conv(f"{name}.conv1", _silu(h))
        x = _resampled(x, self.taps, direction) if direction else x
        x = self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.w else x
        x = (x + h) * self.scale
        if f"{name}.qkv.weight" in self.w:
            x = (x + self.conv(f"{name}.proj", self.attention(name, x))) * self.scale
        return x

    def attention(self, name: str, x: Array) -> Array:
        b, c, height, width = x.shape
        heads = c // 64 if self.adm else 1
        d = c // heads
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x)).reshape(b, 3 * c, -1)
        out = np.zeros((b, c, height * width))
        for image in range(b):
            for head in range(heads):
                query, key, value = (qkv[image, 3 * d * head + part : 3 * d * (head + 1) : 3] for part in range(3))
                shares = np.exp(query.T @ key / math.sqrt(d))  # (queries, keys)
                shares /= shares.sum(axis=1, keepdims=True)
                out[image, d * head : d * (head + 1)] = value @ shares.T
        return out.reshape(x.shape)

    def embedding(self, timestep: Array, labels: list[int]) -> Array:
        classes = self.options["label_dim"]
        if "map_noise.freqs" in self.w:
            angles = 2 * np.pi * timestep[:, None] * self.w["map_noise.freqs"]
        else:
            half = self.options["model_channels"] // 2
            last = half if self.adm else half - 1
            angles = timestep[:, None] * np.array([10_000.0 ** (-i / last) for i in range(half)])
        features = [np.cos(angles), np.sin(angles)] if self.adm else [np.sin(angles), np.cos(angles)]
        emb = np.concatenate(features, axis=1)
        vectors = np.zeros((len(labels), classes))
        for row, label in enumerate(labels):
            if label < classes:
                vectors[row, label] = 1
        if self.adm:
            emb = self.linear("map_layer1", _silu(self.linear("map_layer0", emb)))
            return _silu(emb + self.linear("map_label", vectors)) if classes else _silu(emb)
        if classes:
            emb = emb + self.linear("map_label", math.sqrt(classes) * vectors)
        return _silu(self.linear("map_layer1", _silu(self.linear("map_layer0", emb))))

    def __call__(self, sample: Array, timestep: Array, labels: list[int]) -> Array:
        emb = self.embedding(timestep, labels)
        sides = [8 >> level for level in range(len(self.options["channel_mult"]))]
        blocks = self.options["num_blocks"]
        x = self.conv("enc.8x8_conv", sample)
        image = sample
        kept = [x]
        for level, side in enumerate(sides):
            if level:
                x = self.block(f"enc.{side}x{side}_down", x, emb, "down")
                x, image = self.joined(side, x, image)
                kept.append(x)
            for i in range(blocks):
                x = self.block(f"enc.{side}x{side}_block{i}", x, emb)
                kept.append(x)
        x = self.block(f"dec.{sides[-1]}x{sides[-1]}_in0", x, emb)
        x = self.block(f"dec.{sides[-1]}x{sides[-1]}_in1", x, emb)
        out: Array | None = None
        for side in sides[::-1]:
            if side != sides[-1]:
                x = self.block(f"dec.{side}x{side}_up", x, emb, "up")
                out = None if out is None else _resampled(out, self.taps, "up")
            for i in range(blocks + 1):
                x = self.block(f"dec.{side}x{side}_block{i}", np.concatenate([x, kept.pop()], axis=1), emb)
            if f"dec.{side}x{side}_aux_conv.weight" in self.w:
                part = self.conv(f"dec.{side}x{side}_aux_conv", _silu(self.norm(f"dec.{side}x{side}_aux_norm", x)))
                out = part if out is None else out + part
        assert not kept
        if self.adm:
            return self.conv("out_conv", _silu(self.norm("out_norm", x)))
        assert out is not None
        return out

    def joined(self, side: int, x: Array, image: Array) -> tuple[Array, Array]:
        kind = self.options.get("encoder_type", "standard")
        if kind == "skip":
            image = _resampled(image, self.taps, "down")
            x = x + self.conv(f"enc.{side}x{side}_aux_skip", image)
        if kind == "residual":
            name = f"enc.{side}x{side}_aux_residual"
            wide = _conv(image, self.w[f"{name}.weight"], 1 + (len(self.taps) - 1) // 2)
            small = _conv(wide, _each(self.taps, wide.shape[1]), 0, stride=2)
            x = image = (x + small + self.w[f"{name}.bias"][None, :, None, None]) / math.sqrt(2)
        return x, image


def _inputs(seed: int, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 3, 8, 8, generator=generator)
    sigma = torch.exp(torch.randn(batch, generator=generator) * 2)
    return sample, torch.log(sigma) / 4, torch.arange(batch) % 5


@pytest.mark.parametrize(
    ("variant", "more"),
    [
        ("ddpmpp", {}),
        ("ncsnpp", {}),
        ("skips", {}),
        ("adm", {}),
        ("ddpmpp", {"label_dim": 0, "num_blocks": 2, "attn_resolutions": [8, 4]}),
        ("ddpmpp", {"channel_mult": [2]}),
        ("ncsnpp", {"decoder_type": "skip", "encoder_type": "standard"}),
        ("ncsnpp", {"channel_mult": [1, 2, 3, 2]}),
        ("adm", {"label_dim": 0, "channel_mult": [1, 1, 2], "attn_resolutions": [4, 2]}),
        ("adm", {"model_channels": 32}),  # too narrow for a head on the first level
    ],
)
def test_equal_to_the_papers_in_float64(variant: str, more: dict[str, Any]) -> None:
    net = edm_files.network(variant, seed=3, **more)
    weights = {name: value.double().numpy() for name, value in net.state_dict().items()}
    sample, timestep, labels = _inputs(1, 5)  # the last label is "no class"
    with torch.no_grad():
        got = net(sample, timestep, labels).double().numpy()
        precise = net.double()(sample.double(), timestep.double(), labels).numpy()
    wanted = _Oracle(variant, weights, **more)(sample.double().numpy(), timestep.double().numpy(), labels.tolist())
    assert np.abs(wanted).max() > 0.1
    # float32 through about 20 layers
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    # float64 except for the frequencies
    np.testing.assert_allclose(precise, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_labels_matter_and_no_class_is_a_vector_of_zeros() -> None:
    for variant in edm_files.TINY:
        net = edm_files.network(variant)
        sample, timestep, _ = _inputs(2, 1)
        with torch.no_grad():
            outs = [net(sample, timestep, torch.tensor([label])) for label in range(5)]
            assert all(not torch.allclose(outs[i], outs[j], atol=1e-3) for i in range(5) for j in range(i))
            dict(net.named_parameters())["map_label.weight"].zero_()
            none = net(sample, timestep, torch.tensor([0]))
        # The labels' bias acts on "no class" too.
        torch.testing.assert_close(none, outs[4], rtol=0, atol=1e-5)


def _named_as_in_diffusers(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters of an ADM with 2 levels of one block, attention on the second, by UNet2DModel's names."""
    theirs: dict[str, torch.Tensor] = {}

    def put(name: str, source: str) -> None:
        for part in ("weight", "bias"):
            if f"{source}.{part}" in ours:
                theirs[f"{name}.{part}"] = ours[f"{source}.{part}"]

    def block(name: str, source: str, attention: str = "") -> None:
        pairs = [("norm1", "norm0"), ("conv1", "conv0"), ("time_emb_proj", "affine"), ("norm2", "norm1")]
        for target, origin in [*pairs, ("conv2", "conv1"), ("conv_shortcut", "skip")]:
            put(f"{name}.{target}", f"{source}.{origin}")
        if attention:
            put(f"{attention}.group_norm", f"{source}.norm2")
            weight, bias = ours[f"{source}.qkv.weight"][:, :, 0, 0], ours[f"{source}.qkv.bias"]
            for index, part in enumerate(("to_q", "to_k", "to_v")):
                theirs[f"{attention}.{part}.weight"] = weight[index::3]
                theirs[f"{attention}.{part}.bias"] = bias[index::3]
            theirs[f"{attention}.to_out.0.weight"] = ours[f"{source}.proj.weight"][:, :, 0, 0]
            theirs[f"{attention}.to_out.0.bias"] = ours[f"{source}.proj.bias"]

    put("time_embedding.linear_1", "map_layer0")
    put("time_embedding.linear_2", "map_layer1")
    theirs["class_embedding.weight"] = ours["map_label.weight"].t()
    put("conv_in", "enc.8x8_conv")
    block("down_blocks.0.resnets.0", "enc.8x8_block0")
    block("down_blocks.0.downsamplers.0", "enc.4x4_down")
    block("down_blocks.1.resnets.0", "enc.4x4_block0", "down_blocks.1.attentions.0")
    block("mid_block.resnets.0", "dec.4x4_in0", "mid_block.attentions.0")
    block("mid_block.resnets.1", "dec.4x4_in1")
    for index in range(2):
        block(f"up_blocks.0.resnets.{index}", f"dec.4x4_block{index}", f"up_blocks.0.attentions.{index}")
        block(f"up_blocks.1.resnets.{index}", f"dec.8x8_block{index}")
    block("up_blocks.0.upsamplers.0", "dec.8x8_up")
    put("conv_norm_out", "out_norm")
    put("conv_out", "out_conv")
    return theirs


@pytest.mark.skipif(not installed("diffusers"), reason="diffusers is not installed")
def test_adm_is_the_network_of_diffusers() -> None:
    """UNet2DModel has the same layers, with other names and other code."""
    from diffusers import UNet2DModel

    # From 128 channels on, all norms have 32 groups, which UNet2DModel takes for granted.
    more: dict[str, Any] = {"model_channels": 128, "channel_mult": [1, 2], "attn_resolutions": [4], "label_dim": 3}
    net = edm_files.network("adm", **more)
    other = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(128, 256),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        layers_per_block=1,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=64,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=3,
        freq_shift=0,
        flip_sin_to_cos=True,
        norm_eps=1e-5,
    ).eval()
    other.load_state_dict(_named_as_in_diffusers(net.state_dict()), strict=True)
    sample, timestep, labels = _inputs(4, 3)
    with torch.no_grad():
        got = net(sample, timestep, labels)
        wanted = other(sample, timestep, class_labels=labels).sample
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_sizes_of_the_published_models() -> None:
    """Karras et al., table 7: 56 M (CIFAR-10), 62 M and 63 M (FFHQ-64, DDPM++ and NCSN++), 296 M (ImageNet-64)."""
    ncsn = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
    ncsn |= {"resample_filter": [1, 3, 3, 1]}
    cifar: dict[str, Any] = {"img_resolution": 32, "label_dim": 10, "augment_dim": 9, "channel_mult": [2, 2, 2]}
    ffhq: dict[str, Any] = {"img_resolution": 64, "augment_dim": 9, "channel_mult": [1, 2, 2, 2]}
    for kind, options, millions in (
        ("SongUNet", cifar, 55.7),
        ("SongUNet", ffhq, 61.8),
        ("SongUNet", {**ffhq, **ncsn}, 62.8),
        ("DhariwalUNet", {"img_resolution": 64, "label_dim": 1000}, 295.9),
    ):
        with torch.device("meta"):
            net = edm_network(kind, {"in_channels": 3, "out_channels": 3, **options})
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions


def test_names_are_those_of_the_files() -> None:
    """The names in the public training logs and checkpoints."""

    def block(name: str, *more: str) -> set[str]:
        parts = ("norm0", "conv0", "affine", "norm1", "conv1", *more)
        return {f"{name}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}

    wanted = {f"map_{part}.{kind}" for part in ("label", "layer0", "layer1") for kind in ("weight", "bias")}
    wanted |= {"map_noise.freqs", "enc.8x8_conv.weight", "enc.8x8_conv.bias"}
    wanted |= (
        block("enc.8x8_block0")
        | block("enc.4x4_down", "skip")
        | block("enc.4x4_block0", "skip", "norm2", "qkv", "proj")
    )
    wanted |= {f"enc.4x4_down.{part}.resample_filter" for part in ("conv0", "skip")}
    wanted |= {f"enc.4x4_aux_residual.{part}" for part in ("weight", "bias", "resample_filter")}
    wanted |= block("dec.4x4_in0", "norm2", "qkv", "proj") | block("dec.4x4_in1")
    wanted |= block("dec.4x4_block0", "skip") | block("dec.4x4_block1", "skip", "norm2", "qkv", "proj")
    wanted |= block("dec.8x8_up", "skip") | {f"dec.8x8_up.{part}.resample_filter" for part in ("conv0", "skip")}
    wanted |= block("dec.8x8_block0", "skip") | block("dec.8x8_block1", "skip")
    wanted |= {f"dec.8x8_aux_{part}.{kind}" for part in ("norm", "conv") for kind in ("weight", "bias")}
    assert set(edm_files.network("ncsnpp", channel_mult=[1, 2]).state_dict()) == wanted

    # ADM has no bias for labels, no 1x1 convolution on a resampled skip of the same width, and a filter per resampling.
    adm = set(edm_files.network("adm").state_dict())
    assert {"map_label.weight", "out_norm.weight", "out_conv.bias", "enc.4x4_down.skip.resample_filter"} < adm
    assert not {"map_label.bias", "enc.4x4_down.skip.weight", "dec.8x8_aux_conv.weight", "map_noise.freqs"} & adm


def test_other_sizes_of_images_and_widths_without_heads() -> None:
    net = edm_files.network("ncsnpp")
    with torch.no_grad():
        out = net(torch.randn(2, 3, 16, 12), torch.zeros(2), torch.tensor([0, 4]))
    assert out.shape == (2, 3, 16, 12)
    with pytest.raises(BundleError, match="3 heads"):
        edm_files.network("adm", model_channels=194)
    with pytest.raises(BundleError, match="normalisation in 32 groups"):
        edm_files.network("ddpmpp", model_channels=136)


@pytest.mark.parametrize("variant", ["ncsnpp", "adm"])
def test_half_precision_keeps_the_angles(variant: str) -> None:
    net = edm_files.network(variant)
    sample, timestep, labels = _inputs(6, 3)
    with torch.no_grad():
        wanted = net(sample, timestep, labels)
        for dtype, tolerance in ((torch.bfloat16, 0.06), (torch.float16, 0.008)):
            got = edm_files.network(variant).to(dtype)(sample.to(dtype), timestep, labels)
            assert got.dtype == dtype
            # About 8 roundings deep; rounded frequencies would turn the features by tens of degrees.
            assert float((got.float() - wanted).abs().max()) < tolerance * float(wanted.abs().max())
