"""A bundle's denoiser in 8 bits, and how its answers compare with float32 on given images."""

from dataclasses import replace
from typing import Any

import numpy as np

from fastdc.bundle import DATA, DENOISER, write_bundle
from fastdc.classifier import DiffusionClassifier
from fastdc.data import LabelledImages
from fastdc.diffusion import make_plan
from fastdc.export.denoiser import conditions
from fastdc.export.int8_graph import calibration_feeds, quantize_graph
from fastdc.export.options import Files
from fastdc.inference import plan_config, to_model_range
from fastdc.loading import load
from fastdc.sources import Source
from fastdc.support import InputError, temporary_folder

_IMAGES = 32  # images that give the ranges of activations
_COMPARED = 64  # images, at most, that are classified in both precisions
_LEVELS = 8  # noise levels at which the ranges are taken


def quantized_files(
    source: Source, manifest: dict[str, Any], files: Files, images: LabelledImages
) -> tuple[Files, dict[str, float | str]]:
    """The files of a bundle with its denoiser in int8.

    Args:
        source: The model.
        manifest: Manifest of the bundle, with its name and defaults.
        files: Files of the bundle in float32.
        images: Labelled images. The first 32 give the ranges of activations; the first 64 are classified.

    Returns:
        The files, and entries for the provenance: the share of images with the same class as in float32, and the
        accuracy in both precisions.

    Raises:
        InputError: The denoiser's weights are too large to be quantised in memory.
        BackendError: ONNX Runtime cannot quantise the graph.
    """
    content = files[DENOISER]
    if DATA in files or not isinstance(content, bytes):
        raise InputError("int8 needs a denoiser of less than 1.5 GiB of weights")
    few = replace(
        images, images=images.images[:_COMPARED], labels=images.labels[:_COMPARED], ids=images.ids[:_COMPARED]
    )
    with temporary_folder() as place:
        write_bundle(place / "float32", {**manifest, "precision": "float32"}, files)
        plain = load(place / "float32", backend="onnx", device="cpu")
        model = plain.model
        samples = to_model_range(few.images[:_IMAGES], model, layout="NCHW")
        samples = model.samples(samples) if plain.encoder is None else plain.encoder.encode(samples)
        rows = make_plan(model.schedule, model.parameterization, plan_config(model, {"draws": _LEVELS})).rows
        levels = [(float(row[0]), float(row[1]), float(row[7])) for row in rows]
        feeds = calibration_feeds(samples, levels, conditions(source), tables=source.tables)
        quantised = {**files, DENOISER: quantize_graph(content, feeds)}
        write_bundle(place / "int8", {**manifest, "precision": "int8"}, quantised)
        small = load(place / "int8", backend="onnx", device="cpu")
        found = _compare(plain, small, few)
    return quantised, found


def _compare(plain: DiffusionClassifier, small: DiffusionClassifier, images: LabelledImages) -> dict[str, float | str]:
    """How often both give the same class, and how often each is right, at every class and draw of the default plan."""
    labels = [clf.classify(images.images, layout="NCHW", rule="full").labels for clf in (plain, small)]
    truth = images.labels
    return {
        "int8_images": str(len(truth)),
        "int8_agreement": float(np.mean(labels[0] == labels[1])),
        "float32_accuracy": float(np.mean(labels[0] == truth)),
        "int8_accuracy": float(np.mean(labels[1] == truth)),
    }
