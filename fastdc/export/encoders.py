"""The files of a bundle beside its denoiser: encoder and decoder of images, tables of conditions, encoder of texts.

Encoders are always float32: the encoder of images runs once per image, that of texts once per prompt.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.bundle import DECODER, ENCODER, TABLES, TEXT, TOKENIZERS, checked_tokenizer
from fastdc.export.graph import export_graph
from fastdc.export.options import Files, Notify
from fastdc.export.storage import LARGE, weight_bytes
from fastdc.export.verify import Feed, GraphCheck, verify_graph
from fastdc.sources import Source
from fastdc.support import BundleError, InputError, require

# Batches at which encoders are compared with torch: images are large, and no encoder is traced at one of these.
_BATCHES = (1, 3)


def encoder_files(source: Source, opset: int, notify: Notify) -> tuple[Files, dict[str, GraphCheck]]:
    """The encoder of images, and how it compares with torch; nothing if the network works on pixels.

    Raises:
        BundleError: The weights do not fit into the graph's file.
        BackendError: torch cannot export the encoder, or the graph differs from it.
    """
    if source.encoder is None:
        return {}, {}
    torch = require("torch", extra="export")
    notify("exporting the encoder")
    shape = source.model.image_shape
    low, high = source.model.value_range

    def feeds(batch: int, rng: np.random.Generator) -> Iterable[Feed]:
        noise = rng.uniform(low, high, (batch, *shape)).astype(np.float32)
        yield {"pixels": noise}
        yield {"pixels": np.full_like(noise, low)}

    example = {"pixels": torch.zeros(2, *shape)}
    graph = export_graph(source.encoder, example, ("latents",), leading={"pixels": "batch"}, opset=opset)
    if weight_bytes(graph) >= LARGE:
        raise BundleError(f"{ENCODER} would hold {weight_bytes(graph) / 2**30:.1f} GiB of weights, the limit is 1.5")
    content = bytes(graph.SerializeToString(deterministic=True))
    return {ENCODER: content}, {"encoder": verify_graph(content, source.encoder, feeds, batches=_BATCHES)}


def check_decoder(source: Source, decoder: Any) -> None:
    """Refuses a decoder that has nothing to decode.

    Raises:
        InputError: The model works on images.
    """
    if decoder is not None and source.model.latent_shape is None:
        raise InputError("a decoder is for models of latents: expected none for a model of images")


def decoder_files(source: Source, decoder: Any, opset: int, notify: Notify) -> tuple[Files, dict[str, GraphCheck]]:
    """The decoder of latents, and how it compares with torch; nothing if there is none.

    Args:
        source: The model, which works on latents.
        decoder: Module that turns latents (b, c, h, w) into images (b, C, H, W); None: there is none.
        opset: Version of the ONNX operator set.
        notify: Called with a line of progress.

    Raises:
        BundleError: The weights do not fit into the graph's file.
        BackendError: torch cannot export the decoder, or the graph differs from it.
    """
    if decoder is None:
        return {}, {}
    torch = require("torch", extra="export")
    notify("exporting the decoder")
    shape = source.model.sample_shape

    def feeds(batch: int, rng: np.random.Generator) -> Iterable[Feed]:
        yield {"latents": rng.standard_normal((batch, *shape)).astype(np.float32)}

    example = {"latents": torch.zeros(2, *shape)}
    graph = export_graph(decoder, example, ("pixels",), leading={"latents": "batch"}, opset=opset)
    if weight_bytes(graph) >= LARGE:
        raise BundleError(f"{DECODER} would hold {weight_bytes(graph) / 2**30:.1f} GiB of weights, the limit is 1.5")
    content = bytes(graph.SerializeToString(deterministic=True))
    return {DECODER: content}, {"decoder": verify_graph(content, decoder, feeds, batches=_BATCHES)}


def table_files(source: Source) -> Files:
    """The condition tables; nothing if a condition is an index alone."""
    from safetensors.numpy import save

    if not source.tables:
        return {}
    return {TABLES: save({key: np.ascontiguousarray(table) for key, table in source.tables.items()})}


def text_files(source: Source, opset: int, notify: Notify) -> tuple[Files, dict[str, GraphCheck]]:
    """The encoder of texts with its tokenizers, and how it compares with torch; nothing if conditions are no texts.

    Raises:
        BackendError: torch cannot export the encoder, or the graph differs from it.
    """
    if source.text is None:
        return {}, {}
    torch = require("torch", extra="export")
    text = source.text
    tokenizers: Files = {name: one.encode() for name, one in zip(TOKENIZERS, text.tokenizers, strict=False)}
    try:
        for name, one in tokenizers.items():
            checked_tokenizer(bytes(one), Path(name))
    except BundleError as error:  # a reader of the bundle would refuse it
        notify(f"the text encoder is left out: {error}")
        return {}, {}
    notify("exporting the text encoder")
    ids = text.input_ids((*source.model.prompts[:2], "", "a")[:3])
    names = ["input_ids", *(f"input_ids_{i + 2}" for i in range(len(ids) - 1))]

    def feeds(batch: int, _: np.random.Generator) -> Iterator[Feed]:
        yield {name: np.resize(part, (batch, part.shape[1])) for name, part in zip(names, ids, strict=True)}

    example = {name: torch.from_numpy(part[:2]) for name, part in zip(names, ids, strict=True)}
    graph = export_graph(text.module, example, text.names, leading=dict.fromkeys(names, "batch"), opset=opset)
    if weight_bytes(graph) >= LARGE:
        notify("the text encoder is left out: its graph is larger than a protobuf message")
        return {}, {}
    content = bytes(graph.SerializeToString(deterministic=True))
    check = verify_graph(content, text.module, feeds, batches=_BATCHES)
    return {TEXT: content, **tokenizers}, {"text": check}
