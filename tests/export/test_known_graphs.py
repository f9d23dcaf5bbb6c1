"""Graphs with exchanged weights, against those that torch writes."""

from typing import Any

import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import torch

from fastdc.bundle import build_network
from fastdc.export import known_graphs
from fastdc.export.graph import export_onnx
from fastdc.export.known_graphs import traced_and_verified, with_weights

SHAPE = (1, 4, 4)
MLP: dict[str, Any] = {"shape": list(SHAPE), "num_class_embeds": 4, "width": 16, "blocks": 1}
UNET: dict[str, Any] = {
    "sample_size": [8, 8],
    "in_channels": 1,
    "out_channels": 1,
    "num_class_embeds": 3,
    "block_out_channels": [16, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def network(seed: int, kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """A network without a weight of zero, as a trained one is."""
    torch.manual_seed(seed)
    made = build_network(kind, config).eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_exchanging_the_weights_gives_the_graph_that_torch_writes() -> None:
    first, second = network(1, "mlp", MLP), network(2, "mlp", MLP)
    assert with_weights(export_onnx(first, SHAPE, 4), second) == export_onnx(second, SHAPE, 4)


def test_a_graph_of_transposed_weights_is_traced_afresh() -> None:
    pytest.importorskip("diffusers")
    first = network(1, "unet2d", UNET)
    assert with_weights(export_onnx(first, (1, 8, 8), 3), first) is None


def test_another_architecture_is_traced_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_graphs, "_known", {})
    traced: list[torch.nn.Module] = []
    monkeypatch.setattr(known_graphs, "export_onnx", lambda net, *rest: traced.append(net) or export_onnx(net, *rest))
    networks = [network(seed, "mlp", MLP) for seed in (1, 2)] + [network(3, "mlp", {**MLP, "width": 8})]
    configs = [MLP, MLP, {**MLP, "width": 8}]
    for net, config in zip(networks, configs, strict=True):
        made, difference = traced_and_verified(net, {"kind": "mlp", "config": config}, SHAPE, 4, timestep_scale=100.0)
        assert difference < 1e-4
        assert len(made) > 1000
    assert traced == [networks[0], networks[2]]


def test_a_graph_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = network(1, "mlp", MLP), network(2, "mlp", MLP)
    description = {"kind": "mlp", "config": MLP}
    monkeypatch.setattr(known_graphs, "_known", {})
    traced_and_verified(first, description, SHAPE, 4, timestep_scale=100.0)
    monkeypatch.setattr(known_graphs, "with_weights", lambda model, network: model)  # the first network's weights
    made, _ = traced_and_verified(second, description, SHAPE, 4, timestep_scale=100.0)
    assert made == export_onnx(second, SHAPE, 4)


def test_weights_that_do_not_fit_are_refused() -> None:
    graph = export_onnx(network(1, "mlp", MLP), SHAPE, 4)
    assert with_weights(graph, network(1, "mlp", {**MLP, "width": 8})) is None
    assert with_weights(graph, network(1, "mlp", {**MLP, "blocks": 2})) is None
