"""Tiny denoisers with random weights and their ONNX graphs, on which the tests of graphs run.

Each is a module called as (sample, timestep, class_labels, *tables) -> F, exported once per process for each opset and
precision. The networks of other tools are in :mod:`helpers.exported`. Beside them are random graphs with the same
inputs, made without a module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fastdc.bundle import build_network
from fastdc.export import export_graph


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A module and its inputs.

    Attributes:
        module: The module, as in the docstring of the file.
        shape: Shape of a sample.
        conditions: Number of classes or prompts, the null class included.
        tables: Condition tables by name.
        timesteps: The least and the largest timestep.
    """

    module: nn.Module
    shape: tuple[int, int, int]
    conditions: int
    tables: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    timesteps: tuple[float, float] = (1.0, 900.0)

    def feeds(self, pairs: int, *, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
        """As many samples and timesteps, every condition once, and the tables."""
        rng = np.random.default_rng(seed)
        return {
            "sample": rng.standard_normal((pairs, *self.shape), dtype=np.float32),
            "timestep": rng.uniform(*self.timesteps, pairs).astype(np.float32),
            "class_labels": np.arange(self.conditions),
            **self.tables,
        }

    def graph(self, *, opset: int = 22, precision: str = "float32") -> onnx.ModelProto:
        """The exported network."""
        feeds = {name: torch.from_numpy(array) for name, array in self.feeds(2).items()}
        feeds["class_labels"] = feeds["class_labels"][:2]
        leading = {name: "conditions" if name in self.tables else "batch" for name in feeds}
        return export_graph(self.module, feeds, ["output"], leading=leading, opset=opset, precision=precision)


def _mlp() -> Denoiser:
    """fastdc's own MLP."""
    config = {"shape": [1, 8, 8], "num_class_embeds": 4, "width": 48, "blocks": 2, "code_width": 16}
    network = build_network("mlp", config)
    for parameter in network.parameters():  # its last layers start at zero
        nn.init.normal_(parameter, std=0.2)
    return Denoiser(network, (1, 8, 8), 4)


class Attending(nn.Module):
    """A group normalisation, attention between pixels, and attention to a text: what opsets write differently."""

    def __init__(self, *, channels: int = 4, width: int = 16, text: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.level = nn.Linear(1, width)
        self.norm = nn.GroupNorm(4, width)
        self.own = nn.Linear(width, 3 * width)
        self.query = nn.Linear(width, width)
        self.text = nn.Linear(text, 2 * width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, table: Tensor) -> Tensor:
        level = self.level((timestep[:, None] / 1000).to(self.level.weight.dtype))
        h = nn.functional.silu(self.norm(self.first(sample) + level[:, :, None, None]))
        pixels = h.flatten(2).transpose(1, 2)
        pixels = pixels + _attend(*self.own(pixels).chunk(3, -1))
        key, value = self.text(table[class_labels]).chunk(2, -1)
        pixels = pixels + _attend(self.query(pixels), key, value)
        out: Tensor = self.last(pixels.transpose(1, 2).reshape(h.shape))
        return out


def _attend(*streams: Tensor) -> Tensor:
    """Attention of two heads, of query, key and value (b, n, width)."""
    query, key, value = (one.reshape(one.shape[0], one.shape[1], 2, -1).transpose(1, 2) for one in streams)
    mixed: Tensor = nn.functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)


def _attending() -> Denoiser:
    table = np.random.default_rng(0).standard_normal((3, 7, 12), dtype=np.float32)
    return Denoiser(Attending(), (4, 8, 8), 3, tables={"table": table})


_MADE: dict[str, Callable[[], Denoiser]] = {"mlp": _mlp, "attending": _attending}


@cache
def denoiser(name: str) -> Denoiser:
    """The "mlp" or the "attending" denoiser, with the same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _MADE[name]()
        with torch.no_grad():
            for parameter in made.module.parameters():  # fresh biases may be zeros, which would hide a missing sum
                parameter.add_(0.1 * torch.randn_like(parameter) * (parameter.ndim == 1))
    made.module.eval().requires_grad_(False)
    return made


@cache
def _graph(name: str, opset: int, precision: str) -> bytes:
    content: bytes = denoiser(name).graph(opset=opset, precision=precision).SerializeToString()
    return content


def graph(name: str, *, opset: int = 22, precision: str = "float32") -> onnx.ModelProto:
    """The graph of one of these denoisers; a fresh copy, so that a test may change it."""
    return onnx.load_model_from_string(_graph(name, opset, precision))


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
