"""Graphs with exchanged weights, against those that torch writes."""

import functools
from typing import Any

import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import torch

from fastdc.bundle import build_network
from fastdc.export import known_graphs
from fastdc.export.graph import export_onnx
from fastdc.export.known_graphs import traced_and_verified, with_weights

SHAPE = (1, 4, 4)
MLP: dict[str, Any] = {"shape": list(SHAPE), "num_class_embeds": 4, "width": 16, "blocks": 1}


def network(seed: int, kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """A network without a weight of zero, as a trained one is."""
    torch.manual_seed(seed)
    made = build_network(kind, config).eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@functools.cache
def traced(seed: int, width: int) -> tuple[torch.nn.Module, bytes]:
    """A network and its graph as torch writes it; tracing takes a second."""
    made = network(seed, "mlp", {**MLP, "width": width})
    return made, export_onnx(made, SHAPE, 4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """No graph is known; the networks that torch was asked to trace."""
    networks: list[torch.nn.Module] = []
    graphs = dict(traced(seed, width) for seed, width in ((1, 16), (2, 16), (3, 8)))

    def ask(network: torch.nn.Module, shape: tuple[int, int, int], labels: int) -> bytes:
        assert (shape, labels) == (SHAPE, 4)
        networks.append(network)
        return graphs[network]

    monkeypatch.setattr(known_graphs, "_known", {})
    monkeypatch.setattr(known_graphs, "export_onnx", ask)
    return networks


def made(seed: int, width: int = 16) -> bytes:
    """The graph of a network, of which another one may be known."""
    description = {"kind": "mlp", "config": {**MLP, "width": width}}
    graph, difference = traced_and_verified(traced(seed, width)[0], description, SHAPE, 4, timesteps=(-620.0, 440.0))
    assert difference < 1e-4
    return graph


def test_exchanging_the_weights_gives_the_graph_that_torch_writes() -> None:
    network, graph = traced(2, 16)
    assert with_weights(traced(1, 16)[1], network) == graph


def test_an_architecture_is_traced_once(asked: list[torch.nn.Module]) -> None:
    assert [made(1), made(2), made(3, width=8)] == [traced(1, 16)[1], traced(2, 16)[1], traced(3, 8)[1]]
    assert asked == [traced(1, 16)[0], traced(3, 8)[0]]


def test_a_graph_that_computes_something_else_is_not_used(
    asked: list[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(1)
    monkeypatch.setattr(known_graphs, "with_weights", lambda model, network: model)  # the first network's weights
    assert made(2) == traced(2, 16)[1]
    assert len(asked) == 2


def test_weights_that_do_not_fit_are_refused() -> None:
    graph = traced(1, 16)[1]
    assert with_weights(graph, traced(3, 8)[0]) is None
    assert with_weights(graph, network(1, "mlp", {**MLP, "blocks": 2})) is None


def test_a_graph_of_transposed_weights_is_not_used() -> None:
    """As torch writes some of a UNet's, under names of their own."""
    model = onnx.load_from_string(traced(1, 16)[1])
    (weight,) = [one for one in model.graph.initializer if one.name == "linear_in.weight"]
    weight.name = "val_3"
    assert with_weights(model.SerializeToString(), traced(1, 16)[0]) is None
