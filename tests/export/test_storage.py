"""Weights beside a graph: the same results, aligned, written once, deterministic."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from fastdc.support import InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime

from fastdc.export.storage import SMALLEST_MOVED, external, weight_bytes
from fastdc.export.verify import denoiser_feeds, verify_graph
from helpers.tiny_graphs import denoiser, graph

MLP = denoiser("mlp")


def moved(folder: Path) -> onnx.ModelProto:
    model = external(graph("mlp"), folder / "denoiser.data")
    (folder / "denoiser.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return model


def test_the_graph_computes_the_same_with_its_weights_outside(tmp_path: Path) -> None:
    moved(tmp_path)
    before = onnxruntime.InferenceSession(graph("mlp").SerializeToString(), providers=["CPUExecutionProvider"])
    after = onnxruntime.InferenceSession(tmp_path / "denoiser.onnx", providers=["CPUExecutionProvider"])
    feeds = MLP.feeds(4)
    assert np.array_equal(before.run(None, feeds)[0], after.run(None, feeds)[0])
    found = verify_graph(tmp_path / "denoiser.onnx", MLP.module, denoiser_feeds(MLP.shape, MLP.conditions, (0, 999.0)))
    assert 0 < found.relative < 1e-5


def test_weights_lie_aligned_without_overlap_and_hold_their_bytes(tmp_path: Path) -> None:
    model = moved(tmp_path)
    content = (tmp_path / "denoiser.data").read_bytes()
    original = {one.name: one.raw_data for one in graph("mlp").graph.initializer}
    places = []
    for tensor in model.graph.initializer:
        if len(original[tensor.name]) < SMALLEST_MOVED:
            assert tensor.raw_data == original[tensor.name]
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(place["offset"]), int(place["length"])
        assert place["location"] == "denoiser.data"
        assert offset % (4096 if length >= 65_536 else 64) == 0
        assert content[offset : offset + length] == original[tensor.name]
        places.append((offset, offset + length))
    places = sorted(set(places))
    assert len(places) > 3
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert weight_bytes(model) < SMALLEST_MOVED * len(model.graph.initializer)


def test_equal_weights_are_written_once_and_the_same_graph_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        moved(tmp_path / name)
    for file in ("denoiser.data", "denoiser.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    twin = graph("mlp")
    largest = max(twin.graph.initializer, key=lambda one: len(one.raw_data))
    twin.graph.initializer.add().CopyFrom(largest)
    twin.graph.initializer[-1].name = "twin"
    external(twin, tmp_path / "twin.data")
    assert (tmp_path / "twin.data").read_bytes() == (tmp_path / "a" / "denoiser.data").read_bytes()


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "denoiser.data").write_bytes(b"mine")
    model = graph("mlp")
    with pytest.raises(InputError, match="exists"):
        external(model, tmp_path / "denoiser.data")
    assert model.SerializeToString() == graph("mlp").SerializeToString()
    assert (tmp_path / "denoiser.data").read_bytes() == b"mine"
