"""Modules as ONNX graphs: every trap of the exporter, every family, every precision, and no trace of the machine."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fastdc.backends import PRECISIONS
from fastdc.support import BackendError, InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from fastdc.export import export_graph, export_onnx
from fastdc.export.verify import GraphCheck, denoiser_feeds, verify_graph
from helpers import exported
from helpers.tiny_graphs import Denoiser, denoiser, graph

TYPES = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}


class Trap(nn.Module):
    """Everything that exporters and engines are known to get wrong, in one network with tables as ``*tables``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.GroupNorm(1, 8)
        self.level = nn.Linear(6, 8)
        self.last = nn.Conv2d(8, 2, 3, padding=1, stride=2)
        self.labels = nn.Embedding(5, 8)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, *tables: Tensor) -> Tensor:
        b, _, height, width = sample.shape
        angles = timestep.float()[:, None] * torch.tensor([1.0, 0.1, 0.01])
        code = self.level(torch.cat([angles.sin(), angles.cos()], 1).to(sample.dtype)) + self.labels(class_labels)
        for table in tables:
            code = code + table[class_labels]
        h = nn.functional.silu(self.norm(self.first(sample)) + code[:, :, None, None])
        if h.shape[0] >= 64:  # as in diffusers' Upsample2D
            h = h.contiguous()
        h = torch.einsum("nhwpqc->nchpwq", h.reshape(b, height, width, 2, 2, 2)).reshape(b, 2, 2 * height, 2 * width)
        out: Tensor = self.last(torch.cat([h, h.flip(1), h * h, h.abs()], 1))
        return out


@cache
def trap() -> Trap:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Trap()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


TABLES: dict[str, np.ndarray] = {
    name: np.random.default_rng(seed).standard_normal((5, 8), np.float32)
    for seed, name in enumerate(("text", "pooled"))
}


def example(rows: int = 2) -> dict[str, Tensor]:
    inputs = {"sample": torch.zeros(rows, 2, 4, 4), "timestep": torch.zeros(rows), "class_labels": torch.arange(rows)}
    return {**inputs, **{name: torch.from_numpy(table) for name, table in TABLES.items()}}


def leading(inputs: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: "conditions" if name in TABLES else "batch" for name in inputs}


def export_trap(precision: str) -> onnx.ModelProto:
    inputs = example()
    return export_graph(trap(), inputs, ["output"], leading=leading(inputs), precision=precision)


@cache
def trap_graph(precision: str) -> onnx.ModelProto:
    """The trap's graph, exported once; not to be changed."""
    return export_trap(precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_with_every_trap_is_right_at_every_batch(precision: str) -> None:
    inputs, model = example(), trap_graph(precision)
    feeds = denoiser_feeds((2, 4, 4), 5, (0.0, 50.0), tables=TABLES)
    found = verify_graph(model, trap(), feeds, precision=precision, batches=(1, 3, 63, 64, 65, 200))
    assert found.relative < {"float32": 2e-6, "float16": 4e-3, "bfloat16": 4e-2}[precision]
    kinds = {node.op_type for node in model.graph.node}
    assert "Einsum" not in kinds
    assert "GroupNormalization" not in kinds  # its one group is lowered
    shapes = {value.name: value.type.tensor_type for value in model.graph.input}
    assert [shapes[name].shape.dim[0].dim_param for name in inputs] == ["batch"] * 3 + ["conditions"] * 2
    typed = {name: onnx.TensorProto.DataType.Name(shapes[name].elem_type) for name in inputs}
    assert typed == {
        "sample": TYPES[precision],
        "timestep": "FLOAT",
        "class_labels": "INT64",
        "text": "FLOAT",
        "pooled": "FLOAT",
    }
    assert model.graph.output[0].type.tensor_type.elem_type == shapes["sample"].elem_type
    assert all(parameter.dtype == torch.float32 for parameter in trap().parameters())


def test_more_or_fewer_conditions_than_the_example_had_are_taken() -> None:
    content = trap_graph("float32").SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(2)
    for rows in (1, 2, 4, 9):
        feed = {
            "sample": rng.standard_normal((4, 2, 4, 4), np.float32),
            "timestep": rng.uniform(0, 9, 4).astype(np.float32),
            "class_labels": rng.integers(0, min(rows, 5), 4),
            **{name: rng.standard_normal((rows, 8), np.float32) for name in TABLES},
        }
        want = trap()(*(torch.from_numpy(value) for value in feed.values())).numpy()
        np.testing.assert_allclose(session.run(None, feed)[0], want, atol=2e-5)


def test_the_same_module_gives_the_same_bytes_without_a_trace_of_the_machine() -> None:
    again = export_trap("float16")
    assert again.SerializeToString(deterministic=True) == trap_graph("float16").SerializeToString(deterministic=True)
    for tensor in again.graph.initializer:
        tensor.ClearField("raw_data")
    rest = again.SerializeToString()
    assert not re.search(rb"/[a-z0-9_.-]+/[a-z0-9_./-]*|\.py\b|site-packages|File \"|stack_trace", rest)


def test_several_outputs_keep_float32_outside_the_denoiser() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 2, stride=2)

        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            h = self.conv(pixels)
            return h, h.mean((2, 3))

    module = Encoder().eval().requires_grad_(False)
    inputs = {"pixels": torch.zeros(2, 3, 4, 4)}
    model = export_graph(module, inputs, ["latents", "average"], leading={"pixels": "batch"}, precision="float16")
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)

    def feeds(batch: int, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        return [{"pixels": rng.standard_normal((batch, 3, 4, 4), np.float32)}]

    found = verify_graph(model, module, feeds, precision="float16")
    assert 0 < found.relative < 3e-3


class Kept(nn.Module):
    """Frequencies that must not be rounded: with them the angles would be off by more than one."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.tensor([1.001, 17.003]))
        self.linear = nn.Linear(2, 3)
        self.linear.weight.data.copy_(torch.tensor([[1.0, -1.0], [0.5, 2.0], [1.0, 1.0]]))

    def forward(self, timestep: Tensor) -> Tensor:
        angles = timestep[:, None] * self.frequencies.float()
        out: Tensor = self.linear(angles.sin().to(self.linear.weight.dtype))
        return out


class KeptByName(Kept):
    _keep_in_fp32_modules = ("frequencies",)


class KeptByItself(Kept):
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeptByItself":
        exact = self.frequencies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.frequencies = exact
        return self


@pytest.mark.parametrize("kind", [Kept, KeptByName, KeptByItself])
def test_values_that_a_module_keeps_in_float32_stay_so(kind: type[Kept]) -> None:
    module = kind().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = {"timestep": torch.zeros(2)}
    model = export_graph(module, inputs, ["code"], leading={"timestep": "batch"}, precision="bfloat16")
    time = np.array([40.0, 41.0, 42.0], np.float32)

    def compare() -> GraphCheck:
        return verify_graph(model, module, lambda batch, rng: [{"timestep": time}], precision="bfloat16", batches=(3,))

    if kind is Kept:
        with pytest.raises(BackendError, match="differs from torch"):
            compare()
    else:
        assert compare().relative < 0.01
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}


def test_inputs_that_do_not_fit_are_refused() -> None:
    inputs = example()
    names = leading(inputs)
    with pytest.raises(InputError, match="precision must be one of float32, float16, bfloat16, got 'int8'"):
        export_graph(trap(), inputs, ["output"], leading=names, precision="int8")
    with pytest.raises(InputError, match="need opset 22, got 20"):
        export_graph(trap(), inputs, ["output"], leading=names, precision="bfloat16", opset=20)
    with pytest.raises(InputError, match="leading must name the inputs"):
        export_graph(trap(), inputs, ["output"], leading={"sample": "batch"})
    with pytest.raises(InputError, match="sample must be an example of at least two rows"):
        export_graph(trap(), example(1), ["output"], leading=names)

    class Branch(nn.Module):
        def forward(self, sample: Tensor) -> Tensor:
            return sample if float(sample.sum()) > 0 else -sample

    with pytest.raises(BackendError, match="torch cannot export the network") as caught:
        export_graph(Branch(), {"sample": torch.ones(2, 1)}, ["output"], leading={"sample": "batch"})
    assert "\n" not in str(caught.value)


def test_training_runs_are_exported_at_their_own_opset() -> None:
    family = denoiser("mlp")
    model = onnx.load_from_string(export_onnx(family.module, family.shape, family.conditions))
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]


# In float32, tests/export/test_families.py compares every family on its bundle.
HALVES = ("float16", "bfloat16")


def check_agreement(one: Denoiser, model: onnx.ModelProto, precision: str) -> None:
    feeds = denoiser_feeds(one.shape, one.conditions, one.timesteps, tables=one.tables)
    found = verify_graph(model, one.module, feeds, precision=precision)
    assert found.widened == (precision == "bfloat16")
    assert 0 < found.relative < {"float32": 1e-5, "float16": 1e-2, "bfloat16": 8e-2}[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_mlp_agrees_with_torch(precision: str) -> None:
    check_agreement(denoiser("mlp"), graph("mlp", precision=precision), precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("family", exported.PUBLISHED)
def test_every_family_agrees_with_torch(family: str, precision: str, shared: Path) -> None:
    model = exported.graph_of(family, shared, precision=precision)
    check_agreement(exported.denoiser_of(family, shared, precision=precision), model, precision)
