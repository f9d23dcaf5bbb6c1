"""The graph of errors against the reference in float64 and the kernels' rows."""

from pathlib import Path

import numpy as np
import pytest

from fastdc.support import InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnx
import onnxruntime
import torch

from fastdc.export.scored import COLUMNS, scored_graph
from helpers import exported
from helpers.tiny_graphs import denoiser, graph


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == set(feed)
    out: np.ndarray = session.run(["errors"], feed)[0]
    return out


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_errors_are_those_of_the_definition(precision: str) -> None:
    family = denoiser("mlp")
    model = scored_graph(graph("mlp", precision=precision))
    rng = np.random.default_rng(0)
    assert COLUMNS == ("gx", "ge", "a", "b", "c", "d", "weight")
    for batch in (1, 5):
        x, noise = rng.standard_normal((2, batch, *family.shape), np.float32)
        rows = rng.uniform(0.2, 1.5, (batch, 7)).astype(np.float32)
        timestep, labels = rng.uniform(0, 9, batch).astype(np.float32), rng.integers(0, 4, batch)
        feed = {"x0": x, "noise": noise, "coefficients": rows, "timestep": timestep, "class_labels": labels}
        got = run(model, feed)
        assert got.shape == (batch,)
        for i in range(batch):
            gx, ge, a, b, c, _, weight = rows[i].astype(np.float64)
            u = (gx * x[i].astype(np.float64) + ge * noise[i])[None].astype(np.float32)
            given = (torch.from_numpy(value) for value in (u, timestep[i : i + 1], labels[i : i + 1]))
            output = family.module(*given).numpy()[0].astype(np.float64)
            want = weight * ((a * output + b * x[i] + c * noise[i]) ** 2).mean()
            assert got[i] == pytest.approx(want, rel=2e-5 if precision == "float32" else 2e-2)


@pytest.mark.slow
def test_tables_are_inputs_of_the_errors_too(shared: Path) -> None:
    family = exported.denoiser_of("stable-diffusion", shared)
    model = scored_graph(exported.graph_of("stable-diffusion", shared))
    assert [one.name for one in model.graph.input][:3] == ["x0", "noise", "coefficients"]
    feed = family.feeds(family.conditions)
    sample = feed.pop("sample")
    rows = np.tile(np.array([1, 0, 1, 0, 0, 0, 2], np.float32), (len(sample), 1))
    got = run(model, {"x0": sample, "noise": np.zeros_like(sample), "coefficients": rows, **feed})
    output = family.module(*(torch.from_numpy(value) for value in (sample, *feed.values()))).numpy()
    np.testing.assert_allclose(got, 2 * (output.astype(np.float64) ** 2).mean((1, 2, 3)), rtol=1e-4)


def test_other_graphs_are_refused() -> None:
    model = graph("mlp")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    with pytest.raises(InputError, match=r"must be like the sample, \[1, 8, 8\], got \[2, 8, 8\]"):
        scored_graph(model)
    model.graph.input[0].name = "pixels"
    with pytest.raises(InputError, match="must be a denoiser's"):
        scored_graph(model)
