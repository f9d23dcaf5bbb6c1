"""The manifest of a source's bundle; docs/bundle.md describes the format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdc.bundle import DENOISER, ENCODER, FORMAT, VERSION, SeenImages, parse_manifest
from fastdc.diffusion import make_plan
from fastdc.export.denoiser import DenoiserFiles
from fastdc.export.options import ExportOptions
from fastdc.export.verify import GraphCheck
from fastdc.inference import plan_config
from fastdc.sources import Source
from fastdc.support import version_of

_PACKAGES = ("torch", "onnx", "onnxscript", "diffusers", "transformers")


def source_manifest(source: Source, precision: str, options: ExportOptions) -> dict[str, Any]:
    """The fields that are known before the work.

    Args:
        source: The model.
        precision: Precision of the network.
        options: Name and description, and defaults that replace the model's own.
    """
    model = source.model
    manifest: dict[str, Any] = {
        "image": {
            "shape": list(model.image_shape),
            "range": list(model.value_range),
            **({"window": list(model.window)} if model.window else {}),
            **({"fit": model.fit} if model.fit != "crop" else {}),
        },
        "classes": list(model.class_names),
        "null_class": model.null_class,
        "schedule": model.schedule.to_dict(),
        "parameterization": model.parameterization.to_dict(),
        "defaults": {
            "draws": model.defaults.draws,
            "levels": None if model.defaults.levels is None else list(model.defaults.levels),
            "weighting": model.defaults.weighting,
            "loss": model.defaults.loss,
            "temperature": model.defaults.temperature,
            **({"first": list(model.defaults.first)} if model.defaults.first else {}),
            **options.defaults(),
        },
    }
    if model.transform is not None:
        manifest["transform"] = model.transform.to_dict()
    if model.latent_shape is not None:
        manifest["latent"] = {"shape": list(model.latent_shape)}
    if model.prompts:
        manifest |= {"prompts": list(model.prompts), "class_of": list(model.class_of)}
    training = training_field(source.class_counts, source.seen)
    if training:
        manifest["training"] = training
    if precision != "float32":
        manifest["precision"] = precision
    manifest["name"] = model.name if options.name is None else options.name
    # Until the network's size is known, the family stands in for a description.
    manifest["description"] = source.family if options.description is None else options.description
    return manifest


def training_field(class_counts: Sequence[int], seen: SeenImages) -> dict[str, Any]:
    """The field ``training``; empty if nothing is known.

    Args:
        class_counts: Number of training images of each class, or nothing.
        seen: The images that the model has seen.
    """
    held = {"class_counts": list(class_counts), "seen": seen.to_dict()}
    return {name: value for name, value in held.items() if value}


def check_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Reads a manifest as a loader will, before the work that it will describe.

    Raises:
        BundleError: A name or a default that no loader takes.
        InputError: Noise levels that the schedule does not have.
    """
    nothing = {"sha256": "0" * 64, "bytes": 0}
    names = [DENOISER, *([ENCODER] if "latent" in manifest else [])]
    head = {"format": FORMAT, "version": VERSION, **manifest, "provenance": {}, "files": dict.fromkeys(names, nothing)}
    model = parse_manifest(out, json.loads(json.dumps(head)), "")
    levels = model.defaults.levels or "all"
    plan = plan_config(model, {"levels": levels, "first": model.defaults.first})
    make_plan(model.schedule, model.parameterization, plan)


def add_findings(
    manifest: dict[str, Any], source: Source, made: DenoiserFiles, checks: dict[str, GraphCheck], *, describe: bool
) -> None:
    """Adds the fields that are known after the work: cost and provenance, and a description.

    Args:
        manifest: Manifest of the bundle; changed.
        source: The model.
        made: Its denoiser.
        checks: Comparisons with torch, by part of the bundle.
        describe: Whether to describe the model by its family and size.
    """
    if describe:
        size = "x".join(str(side) for side in source.model.image_shape[1:])
        network = f"{source.family} of {made.flops.parameters / 1e6:.3g} M parameters"
        manifest["description"] = f"{network}, {size} images in {source.model.num_classes} classes"
    manifest["cost"] = made.cost()
    provenance: dict[str, Any] = {"family": source.family, **source.provenance}
    for part, check in checks.items():
        provenance[f"{part}_max_difference"] = float(f"{check.difference:.2g}")
    provenance["denoiser_checked_at_batches"] = ", ".join(map(str, made.check.batches))
    if made.largest is not None:
        provenance["float16_largest_value"] = float(f"{made.largest:.3g}")
    if made.split is not None:
        provenance["parts_max_difference"] = float(f"{made.split_difference:.2g}")
    versions = {package: version for package in _PACKAGES if (version := version_of(package))}
    manifest["provenance"] = provenance | versions
