"""Tiny denoisers of the usual families with random weights, and their ONNX graphs: what the tests of graphs run on.

Each is a module called as (sample, timestep, class_labels, *tables) -> F, exported once a process for each opset and
precision. Beside them, random graphs with the same inputs that no module stands behind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fastdc.export.graph import export_graph


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A module and what it takes.

    Attributes:
        module: As in the docstring of the file.
        shape: Of a sample.
        conditions: Number of classes or prompts, no class included.
        tables: Shapes of a row of each table.
    """

    module: nn.Module
    shape: tuple[int, int, int]
    conditions: int
    tables: tuple[tuple[int, ...], ...] = ()

    def feeds(self, pairs: int, *, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
        """As many samples and timesteps, every condition once, and the tables."""
        rng = np.random.default_rng(seed)
        feeds: dict[str, npt.NDArray[Any]] = {
            "sample": rng.standard_normal((pairs, *self.shape), dtype=np.float32),
            "timestep": rng.uniform(1, 900, pairs).astype(np.float32),
            "class_labels": np.arange(self.conditions),
        }
        for index, row in enumerate(self.tables):
            feeds[f"table_{index}"] = rng.standard_normal((self.conditions, *row), dtype=np.float32)
        return feeds

    def graph(self, *, opset: int = 22, precision: str = "float32") -> onnx.ModelProto:
        """The exported network; a copy, so that a test may change it."""
        feeds = {name: torch.from_numpy(array) for name, array in self.feeds(2).items()}
        feeds["class_labels"] = feeds["class_labels"][:2]
        leading = {name: "conditions" if name.startswith("table") else "batch" for name in feeds}
        return export_graph(self.module, feeds, ["output"], leading=leading, opset=opset, precision=precision)


class Wrapped(nn.Module):
    """A network behind the call of a denoiser without tables."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        return self.call(self.network, sample, timestep, class_labels)


class WrappedOne(Wrapped):
    """The same with one table; the exporter wants every input as an argument of its own."""

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        return self.call(self.network, sample, timestep, table[class_labels])


class WrappedTwo(Wrapped):
    """The same with two tables."""

    def forward(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor, text: Tensor, pooled: Tensor
    ) -> Tensor:
        return self.call(self.network, sample, timestep, text[class_labels], pooled[class_labels])


def unet2d() -> Denoiser:
    """UNet2DModel: the class is added to the embedding of the level."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    network = UNet2DModel(
        sample_size=8,
        num_class_embeds=5,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return Denoiser(Wrapped(network, lambda net, x, t, c: net(x, t, class_labels=c).sample), (3, 8, 8), 5)


def mlp() -> Denoiser:
    """fastdc's own MLP."""
    from fastdc.bundle.architectures import MLPDenoiser

    network = MLPDenoiser((1, 8, 8), 4, 48, blocks=2, code_width=16)
    for parameter in network.parameters():  # its last layers start at zero
        nn.init.normal_(parameter, std=0.2)
    return Denoiser(network, (1, 8, 8), 4)


def songunet() -> Denoiser:
    """EDM's SongUNet: DDPM++ with the class in the level's embedding."""
    from fastdc.sources.edm_networks import SongUNet
    from fastdc.sources.edm_options import SongOptions

    options = SongOptions(
        img_resolution=8,
        in_channels=3,
        out_channels=3,
        label_dim=4,
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
    )
    network = SongUNet(options)
    for parameter in network.parameters():  # made to be filled from a file
        scale = math.prod(parameter.shape[1:]) ** -0.5
        nn.init.constant_(parameter, 0.5) if parameter.ndim == 1 else nn.init.normal_(parameter, std=scale)
    for buffer in network.buffers():  # a filter over 2 x 2 pixels
        nn.init.constant_(buffer, 0.25)
    return Denoiser(network, (3, 8, 8), 5)


def stable_diffusion() -> Denoiser:
    """UNet2DConditionModel: cross-attention to a text of 7 tokens."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=48,
    )
    module = WrappedOne(network, lambda net, x, t, text: net(x, t, encoder_hidden_states=text).sample)
    return Denoiser(module, (4, 8, 8), 3, ((7, 48),))


def stable_diffusion_xl() -> Denoiser:
    """The same with a pooled text and sizes of the image in the level's embedding, expanded to the batch."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=48,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=60,
    )
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])

    def call(net: nn.Module, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(x), -1)}
        out: Tensor = net(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
        return out

    return Denoiser(WrappedTwo(network, call), (4, 8, 8), 3, ((7, 48), (12,)))


def dit() -> Denoiser:
    """DiTTransformer2DModel: class and level modulate every block."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=4,
    )
    return Denoiser(Wrapped(network, lambda net, x, t, c: net(x, t, class_labels=c).sample), (4, 8, 8), 5)


def stable_diffusion_3() -> Denoiser:
    """SD3Transformer2DModel: image and text in one attention."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=16,
    )

    def call(net: nn.Module, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        out: Tensor = net(x, timestep=t, encoder_hidden_states=text, pooled_projections=pooled).sample
        return out

    return Denoiser(WrappedTwo(network, call), (4, 8, 8), 3, ((7, 48), (24,)))


FAMILIES: dict[str, Callable[[], Denoiser]] = {
    "unet2d": unet2d,
    "mlp": mlp,
    "songunet": songunet,
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-xl": stable_diffusion_xl,
    "dit": dit,
    "stable-diffusion-3": stable_diffusion_3,
}


@cache
def denoiser(family: str) -> Denoiser:
    """A denoiser with the same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = FAMILIES[family]()
        with torch.no_grad():
            for parameter in made.module.parameters():  # fresh biases are zeros, which would hide what is not added
                parameter.add_(0.1 * torch.randn_like(parameter) * (parameter.ndim == 1))
    made.module.eval().requires_grad_(False)
    return made


@cache
def _graph(family: str, opset: int, precision: str) -> bytes:
    content: bytes = denoiser(family).graph(opset=opset, precision=precision).SerializeToString()
    return content


def graph(family: str, *, opset: int = 22, precision: str = "float32") -> onnx.ModelProto:
    """The graph of a denoiser, a fresh copy."""
    return onnx.load_model_from_string(_graph(family, opset, precision))


def random_graph(rng: np.random.Generator) -> onnx.ModelProto:
    """Some twenty operations on rows of 8 numbers, from three inputs, sizes of other values among them."""
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 2, 4]),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("table", TensorProto.FLOAT, ["conditions", 8]),
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2, 4])
    weights = {f"w{i}": rng.normal(scale=0.5, size=(8, 8)).astype(np.float32) for i in range(4)}
    weights["spread"] = rng.normal(size=(1, 8)).astype(np.float32)
    weights["both"] = rng.normal(scale=0.3, size=(16, 8)).astype(np.float32)
    indices = {"flat": np.array([-1, 8]), "last": np.array([1]), "image": np.array([-1, 2, 4])}
    nodes = [
        helper.make_node("Reshape", ["sample", "flat"], ["v0"]),
        helper.make_node("Unsqueeze", ["timestep", "last"], ["t"]),
        helper.make_node("Mul", ["t", "spread"], ["v1"]),
        helper.make_node("Gather", ["table", "class_labels"], ["v2"]),
    ]
    count = 3
    for _ in range(int(rng.integers(6, 20))):
        a, b = (f"v{rng.integers(max(0, count - 6), count)}" for _ in range(2))
        out = f"v{count}"
        kind = rng.choice(["matmul", "add", "mul", "tanh", "softmax", "concat", "reshape", "expand"])
        if kind == "matmul":
            nodes.append(helper.make_node("MatMul", [a, f"w{rng.integers(4)}"], [out]))
        elif kind in ("add", "mul"):
            nodes.append(helper.make_node(str(kind).capitalize(), [a, b], [out]))
        elif kind in ("tanh", "softmax"):
            nodes.append(helper.make_node(str(kind).capitalize(), [a], [out]))
        elif kind == "concat":
            nodes.append(helper.make_node("Concat", [a, b], [f"{out}.both"], axis=1))
            nodes.append(helper.make_node("MatMul", [f"{out}.both", "both"], [out]))
        elif kind == "reshape":
            nodes.append(helper.make_node("Shape", [b], [f"{out}.shape"]))
            nodes.append(helper.make_node("Reshape", [a, f"{out}.shape"], [out]))
        else:
            nodes.append(helper.make_node("Shape", [b], [f"{out}.shape"]))
            nodes.append(helper.make_node("Expand", ["spread", f"{out}.shape"], [f"{out}.wide"]))
            nodes.append(helper.make_node("Sub", [f"{out}.wide", a], [out]))
        count += 1
    nodes.append(helper.make_node("Sum", [f"v{i}" for i in range(count)], ["total"]))  # every value is used
    nodes.append(helper.make_node("Reshape", ["total", "image"], ["output"]))
    for place, node in enumerate(nodes):
        node.name = f"n{place}"
    constants = [numpy_helper.from_array(array, name) for name, array in (*weights.items(), *indices.items())]
    graph = helper.make_graph(nodes, "random", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
