"""From a diffusion model of any family to a bundle: graphs checked against torch, tables, and what it is.

A bundle is written when everything in it was found to compute what torch does, and not before. How close they are, what
an evaluation costs and which versions made the bundle stand in its manifest.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.bundle import (
    DENOISER,
    ENCODER,
    FORMAT,
    MANIFEST,
    PRECISIONS,
    TABLES,
    TEXT,
    TOKENIZERS,
    VERSION,
    Bundle,
    parse_manifest,
    write_bundle,
)
from fastdc.data import LabelledImages
from fastdc.diffusion import make_plan
from fastdc.export.calibrate import calibrate_manifest, check_delta
from fastdc.export.denoiser import DenoiserFiles, denoiser_files
from fastdc.export.graph import DEFAULT_OPSET, export_graph
from fastdc.export.int8_files import quantized_files
from fastdc.export.storage import LARGE, weight_bytes
from fastdc.export.verify import Feed, GraphCheck, verify_graph
from fastdc.inference import OnProgress, plan_config
from fastdc.sources import Source
from fastdc.support import BundleError, InputError, version_of

Files = dict[str, bytes | Path]
Notify = Callable[[str], None]

_FEW = (1, 3)  # batches at which encoders are compared: images are large, and nothing is traced with one of them
# Below 18 torch writes other operators than those that were checked; above 23 its exporter knows no operators.
_LEAST_OPSET, _LEAST_OPSET_BFLOAT16, _LARGEST_OPSET = 18, 22, 23
_PACKAGES = ("torch", "onnx", "onnxscript", "diffusers", "transformers")


def export_source(
    source: Source,
    out: str | Path,
    *,
    name: str | None = None,
    description: str | None = None,
    precision: str = "float32",
    opset: int = DEFAULT_OPSET,
    split: bool = True,
    text: bool = True,
    scored: bool = False,
    draws: int | None = None,
    levels: tuple[float, float] | None = None,
    weighting: str | None = None,
    loss: str | None = None,
    first: Sequence[float] = (),
    images: LabelledImages | None = None,
    calibrate: bool = True,
    delta: float | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
    notify: Notify = lambda _: None,
) -> Bundle:
    """Writes the bundle of a diffusion model.

    Args:
        source: The model: of ``fastdc.sources.open_source``, or made by hand.
        out: The bundle folder to write.
        name: Name of the bundle; default: the model's.
        description: One line about it; default: its family and size.
        precision: "float32", "float16", "bfloat16", or "int8": weights and activations of 8 bits on the CPU, ranges
            taken from `images`.
        opset: Version of ONNX's operators.
        split: Also write the parts of the denoiser where that saves work; see :mod:`fastdc.export.split`.
        text: Also write the text encoder, so that the bundle can be asked about other prompts.
        scored: Also write one graph from images and noise to errors, for other runtimes.
        draws: Default number of draws, as the four that follow; default: the model's.
        levels: Default band of noise-to-signal ratios.
        weighting: Default weighting of the noise levels.
        loss: Default distance.
        first: Default ratios of the first draws.
        images: Validation images, for int8 and to calibrate on.
        calibrate: Fit temperature and race to the images.
        delta: Level of the race's calibration; default: what as many images support.
        overwrite: Replace a bundle that is already there.
        progress: Called after every step of the race's calibration.
        notify: Called with a line about what is being done and what was found.

    Raises:
        InputError: An option cannot be used, or the images do not fit.
        BundleError: A default is out of range, or ``out`` exists and may not be replaced.
        BackendError: A graph does not compute what torch does.
        MissingDependencyError: A package of the extra export is not installed.
    """
    _check_place(Path(out), overwrite=overwrite)
    _check(source, precision, opset, images, calibrate=calibrate)
    check_delta(delta, images if calibrate else None)
    given = {"draws": draws, "levels": levels, "weighting": weighting, "loss": loss, "first": list(first) or None}
    manifest = _manifest(source, precision, {key: value for key, value in given.items() if value is not None})
    manifest["name"] = name if name is not None else source.model.name
    manifest["description"] = description if description is not None else source.family  # its size is not yet known
    _check_manifest(Path(out), manifest)
    with tempfile.TemporaryDirectory(prefix="fastdc-export-") as place:
        folder = Path(place)
        made = denoiser_files(
            source,
            folder,
            precision="float32" if precision == "int8" else precision,
            opset=opset,
            split=split and precision != "int8",
            scored=scored,
            notify=notify,
        )
        files: Files = dict(made.files)
        checks = {"denoiser": made.check}
        files |= _encoder_files(source, folder, opset, checks, notify)
        files |= _text_files(source, folder, opset, checks, notify, encoder=text)
        if description is None:
            manifest["description"] = _description(source, made)
        manifest["cost"] = made.cost()
        manifest["provenance"] = _provenance(source, made, checks)
        if precision == "int8" and images is not None:
            notify("quantising the denoiser")
            files, found = quantized_files(source, manifest, files, images)
            manifest["provenance"] |= found
        if images is not None and calibrate:
            notify(f"calibrating on {len(images)} images")
            calibrate_manifest(manifest, files, images, delta=delta, progress=progress, notify=notify)
        return write_bundle(out, manifest, files, overwrite=overwrite)


def _check_place(out: Path, *, overwrite: bool) -> None:
    """Refuses a place that is taken now, not after the work; ``write_bundle`` checks again, and more."""
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists: choose another path, or replace it with overwrite (--overwrite)")
    if out.exists() and not (out / MANIFEST).is_file():
        raise BundleError(f"{out} exists and is not a bundle: choose another path")


def _check(source: Source, precision: str, opset: int, images: LabelledImages | None, *, calibrate: bool) -> None:
    """Refuses before the work what could not be used after it."""
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    least = _LEAST_OPSET_BFLOAT16 if precision == "bfloat16" else _LEAST_OPSET
    if not least <= opset <= _LARGEST_OPSET:
        raise InputError(f"opset must be from {least} to {_LARGEST_OPSET} in {precision}, got {opset}")
    if precision == "int8" and images is None:
        raise InputError("int8 needs images to take the ranges of activations from (--calibrate)")
    if precision == "bfloat16" and images is not None and calibrate:
        raise InputError("a bundle in bfloat16 does not run on the CPU: calibrate it where it runs (fastdc calibrate)")
    if images is not None:
        if images.images.shape[1:] != source.model.image_shape:
            raise InputError(f"images must have shape {source.model.image_shape}, got {images.images.shape[1:]}")
        if images.class_names != source.model.class_names:
            raise InputError("the images have other classes than the model")
    if len(source.tables) and source.model.null_class not in (None, len(source.model.conditions)):
        raise InputError("tables must have the row of the null class after those of all conditions")


def _encoder_files(source: Source, folder: Path, opset: int, checks: dict[str, GraphCheck], notify: Notify) -> Files:
    """The encoder of images, if there is one; always float32, as it runs once an image."""
    if source.encoder is None:
        return {}
    import torch

    notify("exporting the encoder")
    shape = source.model.image_shape
    low, high = source.model.value_range

    def feeds(batch: int, rng: np.random.Generator) -> Iterable[Feed]:
        noise = rng.uniform(low, high, (batch, *shape)).astype(np.float32)
        yield {"pixels": noise}
        yield {"pixels": np.full_like(noise, low)}

    example = {"pixels": torch.zeros(2, *shape)}
    graph = export_graph(source.encoder, example, ("latents",), leading={"pixels": "batch"}, opset=opset)
    content = _inside(graph, ENCODER)
    checks["encoder"] = verify_graph(content, source.encoder, feeds, batches=_FEW)
    return {ENCODER: content}


def _text_files(
    source: Source, folder: Path, opset: int, checks: dict[str, GraphCheck], notify: Notify, *, encoder: bool
) -> Files:
    """The condition tables and, if asked for, what makes them of prompts."""
    from safetensors.numpy import save

    files: Files = {}
    if source.tables:
        files[TABLES] = save({key: np.ascontiguousarray(table) for key, table in source.tables.items()})
    if source.text is None or not encoder:
        return files
    import torch

    notify("exporting the text encoder")
    found = source.text
    texts = (*source.model.prompts[:2], "", "a")[:3]
    ids = found.input_ids(texts)
    names = ["input_ids", *(f"input_ids_{i + 2}" for i in range(len(ids) - 1))]

    def feeds(batch: int, _: np.random.Generator) -> Iterator[Feed]:
        yield {name: np.resize(part, (batch, part.shape[1])) for name, part in zip(names, ids, strict=True)}

    example = {name: torch.from_numpy(part[:2]) for name, part in zip(names, ids, strict=True)}
    graph = export_graph(found.module, example, found.names, leading=dict.fromkeys(names, "batch"), opset=opset)
    if weight_bytes(graph) >= LARGE:
        notify("the text encoder is left out: its graph is larger than a protobuf message")
        return files
    files[TEXT] = content = _inside(graph, TEXT)
    checks["text"] = verify_graph(content, found.module, feeds, batches=_FEW)
    return files | {name: text.encode() for name, text in zip(TOKENIZERS, found.tokenizers, strict=False)}


def _inside(graph: Any, name: str) -> bytes:
    """A graph with its weights inside.

    Raises:
        BundleError: It is too large for that.
    """
    if weight_bytes(graph) >= LARGE:
        raise BundleError(f"{name} would hold {weight_bytes(graph) / 2**30:.1f} GiB of weights, the limit is 1.5")
    return bytes(graph.SerializeToString(deterministic=True))


def _manifest(source: Source, precision: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """What is known before the work, but for name and description; format in docs/bundle.md.

    Args:
        source: The model.
        precision: Of the network.
        defaults: What takes the place of the model's own.
    """
    model = source.model
    manifest: dict[str, Any] = {
        "image": {"shape": list(model.image_shape), "range": list(model.value_range)},
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
            **defaults,
        },
    }
    if model.latent_shape is not None:
        manifest["latent"] = {"shape": list(model.latent_shape)}
    if model.prompts:
        manifest |= {"prompts": list(model.prompts), "class_of": list(model.class_of)}
    if precision != "float32":
        manifest["precision"] = precision
    return manifest


def _check_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Reads a manifest as a loader will, before the work that it is to describe.

    Raises:
        BundleError: A name or a default that no loader takes.
        InputError: Noise levels that the schedule does not have.
    """
    nothing = {"sha256": "0" * 64, "bytes": 0}
    names = [DENOISER, *([ENCODER] if "latent" in manifest else [])]
    head = {"format": FORMAT, "version": VERSION, **manifest, "provenance": {}, "files": dict.fromkeys(names, nothing)}
    model = parse_manifest(out, json.loads(json.dumps(head)), "")
    make_plan(model.schedule, model.parameterization, plan_config(model, {}))


def _provenance(source: Source, made: DenoiserFiles, checks: dict[str, GraphCheck]) -> dict[str, Any]:
    """Where the model comes from, how close its graphs are to torch, and what made them."""
    provenance: dict[str, Any] = {"family": source.family, **source.provenance}
    for part, check in checks.items():
        provenance[f"{part}_max_difference"] = float(f"{check.difference:.2g}")
    provenance["denoiser_checked_at_batches"] = ", ".join(map(str, made.check.batches))
    if made.split is not None:
        provenance["parts_max_difference"] = float(f"{made.split_difference:.2g}")
    return provenance | {package: version for package in _PACKAGES if (version := version_of(package))}


def _description(source: Source, made: DenoiserFiles) -> str:
    size = "x".join(str(side) for side in source.model.image_shape[1:])
    what = f"{source.family} of {made.flops.parameters / 1e6:.3g} M parameters"
    return f"{what}, {size} images in {source.model.num_classes} classes"
