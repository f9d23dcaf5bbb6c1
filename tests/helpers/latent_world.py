"""A bundle with everything that format version 2 brings, small enough to be computed by hand in NumPy.

Images (1, 4, 4) become latents (1, 2, 2), the means of blocks of four pixels. Five prompts describe three classes. With
table t (rows, 4), latent u and time input tau,

    F = tanh(u + tau) * (1 + label / 10) + (2 t[label]) reshaped to (1, 2, 2).

Whole, that is denoiser.onnx; in parts, prefix.onnx is tanh(u + tau), classes.onnx is (1 + label / 10, 2 t[label]) and
rest.onnx puts rows of both together. Prompts are counted words: text.onnx maps ids to a row of the table.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc import Bundle, Defaults, Model
from fastdc.bundle.folder import write_bundle
from fastdc.bundle.format import CLASSES, DENOISER, ENCODER, PREFIX, REST, TABLES, TEXT, TOKENIZERS
from fastdc.diffusion import DiscreteSchedule
from fastdc.diffusion.parameterization import Parameterization

Float32 = npt.NDArray[np.float32]

PROMPTS = ("red", "a red one", "green", "blue", "a blue one")
CLASS_OF = (0, 0, 1, 2, 2)
WORDS = ("[pad]", "[unk]", "a", "one", "red", "green", "blue")
LENGTH = 4

MODEL = Model(
    name="latent-world",
    image_shape=(1, 4, 4),
    latent_shape=(1, 2, 2),
    class_names=("red", "green", "blue"),
    prompts=PROMPTS,
    class_of=CLASS_OF,
    null_class=len(PROMPTS),
    schedule=DiscreteSchedule(num_train_timesteps=100),
    parameterization=Parameterization("epsilon"),
    defaults=Defaults(draws=8),
)


def word_table() -> Float32:
    """What each word adds to a prompt's row."""
    drawn: Float32 = np.random.default_rng(7).normal(size=(len(WORDS), 4)).astype(np.float32)
    return drawn


def ids_of(text: str) -> list[int]:
    ids = [WORDS.index(word) if word in WORDS else 1 for word in text.split()][:LENGTH]
    return ids + [0] * (LENGTH - len(ids))


def table(prompts: tuple[str, ...] = PROMPTS) -> Float32:
    """The condition table, with a row of zeros for "no prompt" last."""
    rows = [word_table()[ids_of(text)].sum(axis=0) for text in prompts]
    stacked: Float32 = np.stack([*rows, np.zeros(4, np.float32)]).astype(np.float32)
    return stacked


def network(sample: Float32, timestep: Float32, labels: npt.NDArray[np.int64], rows: Float32 | None = None) -> Float32:
    """F in NumPy."""
    context = 2 * (table() if rows is None else rows)[labels].reshape(-1, 1, 2, 2)
    scale = 1 + labels.astype(np.float32).reshape(-1, 1, 1, 1) / 10
    shared = np.tanh(sample + timestep.reshape(-1, 1, 1, 1))
    out: Float32 = (shared * scale + context).astype(np.float32)
    return out


class Encoder:
    """The encoder in NumPy."""

    def encode(self, images: Float32) -> Float32:
        latents: Float32 = images.reshape(-1, 1, 2, 2, 2, 2).mean(axis=(3, 5)).astype(np.float32)
        return latents


def tokenizer() -> str:
    return json.dumps(
        {
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": LENGTH, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": LENGTH},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[pad]",
            },
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "[unk]"},
        }
    )


_SHAPES: dict[str, tuple[str, list[Any]]] = {
    "sample": ("FLOAT", ["batch", 1, 2, 2]),
    "output": ("FLOAT", ["batch", 1, 2, 2]),
    "timestep": ("FLOAT", ["batch"]),
    "class_labels": ("INT64", ["batch"]),
    "pair": ("INT64", ["batch"]),
    "context": ("FLOAT", ["conditions", 4]),
    "pair.0": ("FLOAT", ["pairs", 1, 2, 2]),
    "class.0": ("FLOAT", ["conditions", 1, 1, 1]),
    "class.1": ("FLOAT", ["conditions", 1, 2, 2]),
    "pixels": ("FLOAT", ["batch", 1, 4, 4]),
    "latents": ("FLOAT", ["batch", 1, 2, 2]),
    "input_ids": ("INT64", ["batch", LENGTH]),
    "rows": ("FLOAT", ["batch", 4]),
}


def graph(
    inputs: str, outputs: str, lines: list[tuple[str, str, str]], constants: dict[str, Any], **names: str
) -> bytes:
    """An ONNX graph from lines (operator, inputs, output); `names` declares values under the shape of another."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper

    def value(name: str) -> Any:
        kind, shape = _SHAPES[names.get(name, name)]
        return helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)

    nodes = [
        helper.make_node(op, taken.split(), [made], **({"keepdims": 0} if op == "ReduceSum" else {}))
        for op, taken, made in lines
    ]
    initializers = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    made = helper.make_graph(
        nodes, "g", [value(name) for name in inputs.split()], [value(name) for name in outputs.split()], initializers
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


_COLUMN = {"column": np.array([-1, 1, 1, 1])}
_PREFIX = [("Reshape", "timestep column", "tau"), ("Add", "sample tau", "noisy")]


def _classes(scale: str, context: str) -> list[tuple[str, str, str]]:
    return [
        ("Gather", "tenths class_labels", "factors"),
        ("Reshape", "factors column", scale),
        ("Gather", "context class_labels", "rows"),
        ("Add", "rows rows", "twice"),
        ("Reshape", "twice latent", context),
    ]


def whole() -> bytes:
    lines = [*_PREFIX, ("Tanh", "noisy", "shared"), *_classes("scale", "added")]
    lines += [("Mul", "shared scale", "scaled"), ("Add", "scaled added", "output")]
    return graph("sample timestep class_labels context", "output", lines, {**_COLUMN, **_constants()})


def _constants() -> dict[str, Any]:
    return {"tenths": (1 + np.arange(99) / 10).astype(np.float32), "latent": np.array([-1, 1, 2, 2])}


def parts() -> dict[str, bytes]:
    rest = [
        ("Gather", "pair.0 pair", "shared"),
        ("Gather", "class.0 class_labels", "scale"),
        ("Gather", "class.1 class_labels", "added"),
        ("Mul", "shared scale", "scaled"),
        ("Add", "scaled added", "output"),
    ]
    return {
        PREFIX: graph("sample timestep", "pair.0", [*_PREFIX, ("Tanh", "noisy", "pair.0")], _COLUMN),
        CLASSES: graph(
            "class_labels context", "class.0 class.1", _classes("class.0", "class.1"), {**_COLUMN, **_constants()}
        ),
        REST: graph("pair class_labels pair.0 class.0 class.1", "output", rest, {}),
    }


def encoder() -> bytes:
    blocks = {"blocks": np.array([-1, 1, 2, 2, 2, 2]), "axes": np.array([3, 5]), "quarter": np.float32(0.25)}
    lines = [
        ("Reshape", "pixels blocks", "blocked"),
        ("ReduceSum", "blocked axes", "sums"),
        ("Mul", "sums quarter", "latents"),
    ]
    return graph("pixels", "latents", lines, blocks)


def text() -> bytes:
    lines = [("Gather", "words input_ids", "found"), ("ReduceSum", "found axes", "context")]
    constants = {"words": word_table(), "axes": np.array([1])}
    return graph("input_ids", "context", lines, constants, context="rows")


def manifest(**changes: Any) -> dict[str, Any]:
    entry = {
        "name": MODEL.name,
        "image": {"shape": list(MODEL.image_shape), "range": list(MODEL.value_range)},
        "latent": {"shape": list(MODEL.sample_shape)},
        "classes": list(MODEL.class_names),
        "prompts": list(MODEL.prompts),
        "class_of": list(MODEL.class_of),
        "null_class": MODEL.null_class,
        "schedule": MODEL.schedule.to_dict(),
        "parameterization": MODEL.parameterization.to_dict(),
        "defaults": {"draws": MODEL.defaults.draws},
    }
    return {**entry, **changes}


def files() -> dict[str, bytes]:
    from safetensors.numpy import save

    return {
        DENOISER: whole(),
        **parts(),
        ENCODER: encoder(),
        TABLES: save({"context": table()}),
        TEXT: text(),
        TOKENIZERS[0]: tokenizer().encode(),
    }


def write(path: Path, changes: dict[str, bytes] | None = None, *, without: tuple[str, ...] = ()) -> Bundle:
    """The bundle, some of its files changed."""
    given = {**files(), **(changes or {})}
    return write_bundle(path, manifest(), {name: data for name, data in given.items() if name not in without})
