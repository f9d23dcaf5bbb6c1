"""Text-conditional pipelines in tests: prompts, classifiers of tiny pipelines, and checks of exported graphs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import torch

from fastdc.backends.torch import TorchNetwork
from fastdc.bundle.prompts import Prompts
from fastdc.classifier import DiffusionClassifier
from fastdc.sources.base import Source, WithTables

Floats = npt.NDArray[np.float32]

INPUT_IDS = ("input_ids", "input_ids_2", "input_ids_3")

PROMPTS = Prompts(
    (
        "a photo of a red cube",
        "a photo of the blue cone, which is far too long to be read",
        "a red cone",
        "Cône «bleu»",
    ),
    (0, 1, 2, 2),
    ("red cube", "blue cone", "cone"),
)


# Stable Diffusion 2 differs from 1 by heads per level and by linear maps around the attention.
SECOND: dict[str, Any] = {"attention_head_dim": (2, 4), "use_linear_projection": True}

SEED, STREAMS, DRAWS = 11, (3, 2**50), 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more than they gain by sharing their work among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Encoder:
    """A source's encoder on arrays."""

    def __init__(self, source: Source) -> None:
        assert source.encoder is not None
        self.module = source.encoder

    def encode(self, images: Floats) -> Floats:
        with torch.inference_mode():
            latents: Floats = self.module(torch.from_numpy(images)).numpy()
        return latents


def classifier(source: Source) -> DiffusionClassifier:
    network = TorchNetwork(WithTables(source.denoiser, source.tables), source.model.sample_shape)
    return DiffusionClassifier(source.model, network, Encoder(source))


def images_of(source: Source) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (len(STREAMS), *source.model.image_shape), dtype=np.uint8)


def graphs_of(source: Source) -> tuple[bytes, bytes]:
    """The ONNX graphs of a source's denoiser and text encoder, whose first dimensions are dynamic."""
    from fastdc.export import export_graph

    assert source.text is not None
    samples = {
        "sample": torch.zeros(2, *source.model.sample_shape),
        "timestep": torch.zeros(2),
        "class_labels": torch.zeros(2, dtype=torch.int64),
    }
    tables = {name: torch.from_numpy(table) for name, table in source.tables.items()}
    leading = dict.fromkeys(samples, "batch") | dict.fromkeys(tables, "conditions")
    denoiser = export_graph(source.denoiser, {**samples, **tables}, ("output",), leading=leading)
    ids = source.text.input_ids(["a red cube", ""])
    inputs = {name: torch.from_numpy(part) for name, part in zip(INPUT_IDS, ids, strict=False)}
    text = export_graph(source.text.module, inputs, source.text.names, leading=dict.fromkeys(inputs, "batch"))
    return denoiser.SerializeToString(), text.SerializeToString()


def check_graphs(source: Source, denoiser: bytes | Path, text: bytes | Path) -> None:
    """Denoiser and text encoder in ONNX Runtime equal torch, at other batches and numbers of conditions."""
    import onnxruntime

    session = onnxruntime.InferenceSession(denoiser, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for batch, rows in ((1, 2), (3, 9), (65, 5)):
        feeds = {
            "sample": torch.randn(batch, *source.model.sample_shape, generator=generator),
            "timestep": 999 * torch.rand(batch, generator=generator),
            "class_labels": torch.randint(0, rows, (batch,), generator=generator),
        }
        for name, table in source.tables.items():
            feeds[name] = torch.randn(rows, *table.shape[1:], generator=generator)
        with torch.inference_mode():
            wanted = source.denoiser(*feeds.values())
        (found,) = session.run(["output"], {name: value.numpy() for name, value in feeds.items()})
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * float(wanted.abs().max()))
    session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
    assert source.text is not None
    for texts in (["the blue cone"], [*PROMPTS.texts, "", "photo " * 30]):
        ids = source.text.input_ids(texts)
        found = session.run(list(source.text.names), dict(zip(INPUT_IDS, ids, strict=False)))
        for value, (name, table) in zip(found, source.text.encode(texts).items(), strict=True):
            np.testing.assert_allclose(value, table, atol=1e-4 * float(np.abs(table).max()), err_msg=name)
