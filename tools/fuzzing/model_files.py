"""Targets that read models: graphs, tokenizers and weights of bundles, and models of other tools."""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastdc
from fastdc.bundle import DENOISER, Prompts
from fastdc.support import installed, one_line
from fastdc.testing import GaussianWorld
from fuzzing import routes
from fuzzing.mutations import change_json, change_pickle, change_protobuf, change_safetensors
from fuzzing.operators import change_operator, seeds_of_operators
from fuzzing.record_files import bundle_copy, replace_file
from fuzzing.target import Target


def graph(scratch: Path) -> Target:
    """The graph of a small bundle, run once if it loads."""
    bundle = scratch / "gaussian"
    seed = GaussianWorld.random(3).write(bundle).read(DENOISER)
    image = np.zeros((1, 1, 4, 4), np.uint8)

    def read(data: bytes) -> object:
        replace_file(bundle, DENOISER, data)
        return fastdc.load(bundle, backend="onnx", threads=1).errors(image, draws=1)

    return Target([seed], read, change_protobuf)


def operators(scratch: Path) -> Target:
    """Graphs of a single node, of each operator that a bundle's graph may use; they are loaded, which computes them."""
    from fastdc.backends.onnx.graphs import Graph, session_of
    from fastdc.backends.onnx.screen import screen

    def read(data: bytes) -> object:
        try:
            screen(data, None)
        except ValueError as error:
            raise fastdc.BundleError(one_line(error)) from None
        return session_of(Graph(data), scratch)

    return Target(seeds_of_operators(read), read, change_operator)


def parts(scratch: Path) -> Target:
    """The graphs of a bundle in parts, which share weights in a file."""
    bundle = bundle_copy("shapes", scratch)
    seeds = routes.seeds_of(bundle, ["prefix.onnx", "rest.onnx", "classes.onnx"])
    whole = dict(map(routes.split, seeds))
    image = np.zeros((1, 3, 32, 32), np.uint8)

    def read(data: bytes) -> object:
        name, content = routes.split(data)
        replace_file(bundle, name, content)
        try:
            classifier = fastdc.load(bundle, backend="onnx", threads=1)
            return classifier.errors(image, draws=1)
        finally:
            replace_file(bundle, name, whole[name])

    return Target(seeds, read, routes.changes({".onnx": change_protobuf}))


def tokenizer(scratch: Path) -> Target:
    """tokenizer.json of a bundle, asked for other prompts."""
    bundle = bundle_copy("shapes", scratch)
    seed = (bundle / "tokenizer.json").read_bytes()
    prompts = Prompts(("a red cube", "a blue cone", "a" * 40), (0, 1, 2), ("cube", "cone", "a"))

    def read(data: bytes) -> object:
        replace_file(bundle, "tokenizer.json", data)
        return fastdc.load(bundle, backend="onnx", threads=1, prompts=prompts).class_names

    return Target([seed], read, change_json)


def weights(scratch: Path) -> Target:
    """PyTorch weights of a bundle."""
    bundle = bundle_copy("digits-mlp", scratch)
    seed = (bundle / "weights.safetensors").read_bytes()
    image = np.zeros((1, 1, 8, 8), np.uint8)

    def read(data: bytes) -> object:
        replace_file(bundle, "weights.safetensors", data)
        return fastdc.load(bundle, backend="torch", threads=1).errors(image, draws=1)

    return Target([seed], read, change_safetensors)


def edm(scratch: Path) -> Target:
    """EDM pickles."""
    from fastdc.sources import open_source
    from fastdc.testing import write_edm

    file = scratch / "net.pkl"
    seeds = [
        write_edm(file, "ddpmpp", model_channels=4).read_bytes(),
        write_edm(file, "ddpmpp", model_channels=4, protocol=2).read_bytes(),
        write_edm(file, "adm", model_channels=4).read_bytes(),
    ]

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return open_source(file)

    return Target(seeds, read, change_pickle)


def lora(scratch: Path) -> Target:
    """LoRA files, merged into a small pipeline."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    from fastdc.sources import Lora
    from fastdc.sources.lora import fuse_lora
    from fastdc.testing.tiny_pipelines import tiny_sd

    tiny_sd(scratch / "sd")
    unet = UNet2DConditionModel.from_pretrained(scratch / "sd" / "unet")
    state = unet.state_dict()
    layers = [f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{one}" for one in "qk"]
    tensors = {}
    for layer in layers:
        rows, columns = state[f"{layer}.weight"].shape
        key = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = torch.ones(2, columns)
        tensors[f"{key}.lora_up.weight"] = torch.ones(rows, 2)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    file = scratch / "lora.safetensors"
    save_file(tensors, file)

    def read(data: bytes) -> None:
        file.write_bytes(data)
        fuse_lora("StableDiffusionPipeline", {"unet": copy.deepcopy(unet)}, [Lora(file)])  # a failure leaves it spoilt

    return Target([file.read_bytes()], read, change_safetensors)


def model_folder(scratch: Path) -> Target:
    """Folders of diffusers models: every description, and weights."""
    from fastdc.sources import open_source
    from fastdc.testing.tiny_pipelines import tiny_dit, tiny_sd, tiny_unet2d

    made = {"unet": tiny_unet2d, "dit": tiny_dit, "sd": tiny_sd}
    for name, make in made.items():
        make(scratch / name)
    prompts = Prompts(("a red cube", "a blue cone"), (0, 1), ("cube", "cone"))
    descriptions = [str(file.relative_to(scratch)) for file in sorted(scratch.rglob("*.json"))]
    weight_files = [str(file.relative_to(scratch)) for file in sorted(scratch.rglob("*.safetensors"))]
    seeds = routes.seeds_of(scratch, descriptions) + routes.seeds_of(scratch, weight_files)

    def read(data: bytes) -> object:
        name, content = routes.split(data)
        file = scratch / name
        kept = file.read_bytes()
        file.write_bytes(content)
        family = name.partition("/")[0]
        try:
            return open_source(scratch / family, prompts=prompts if family == "sd" else None)
        finally:
            file.write_bytes(kept)

    def change(data: bytes, rng: random.Random) -> bytes:
        by_suffix = routes.changes({".json": change_json, ".safetensors": change_safetensors})
        return by_suffix(data, rng)

    return Target(seeds, read, change)


def image_text(scratch: Path) -> Target:
    """Folders of CLIP, SigLIP and ViLT: every description, and weights; one image is compared with two texts."""
    from fastdc.matching import ClipMatcher, Trials, ViltMatcher
    from fastdc.testing import tiny_image_text

    kinds = ("clip", "siglip", "siglip2", "vilt")
    for kind in kinds:
        tiny_image_text(scratch / kind, kind)
    names = [f"{kind}/{file.name}" for kind in kinds for file in sorted((scratch / kind).iterdir())]
    trials = Trials.of(np.zeros((1, 3, 20, 24), np.uint8), [["a red cube", "a photo of a blue cone"]])

    def read(data: bytes) -> object:
        name, content = routes.split(data)
        file = scratch / name
        kept = file.read_bytes()
        file.write_bytes(content)
        kind = name.partition("/")[0]
        try:
            return (ViltMatcher if kind == "vilt" else ClipMatcher)(scratch / kind, threads=1).match(trials)
        finally:
            file.write_bytes(kept)

    by_suffix = routes.changes({".json": change_json, ".safetensors": change_safetensors})
    return Target(routes.seeds_of(scratch, names), read, by_suffix)


TARGETS: dict[str, Callable[[Path], Target]] = {}
if installed("onnxruntime"):
    TARGETS["parts"] = parts
if installed("onnxruntime") and installed("onnx"):
    TARGETS["graph"] = graph
    TARGETS["operators"] = operators
if installed("onnxruntime") and installed("tokenizers"):
    TARGETS["tokenizer"] = tokenizer
if installed("torch"):
    TARGETS["weights"] = weights
    TARGETS["edm"] = edm
if installed("torch") and installed("transformers"):
    TARGETS["image-text"] = image_text
if installed("diffusers") and installed("transformers") and installed("peft"):
    TARGETS["lora"] = lora
    TARGETS["model-folder"] = model_folder
