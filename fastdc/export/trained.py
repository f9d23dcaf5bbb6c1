"""From a training run to a bundle: the averaged weights as an ONNX graph, checked against torch, with a manifest.

The temperature and the race's calibration are fitted on images that the model has not seen; see :func:`export_run`.
"""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdc.backends import one_line
from fastdc.bundle import Bundle, write_bundle
from fastdc.data import LabelledImages, load_labelled
from fastdc.export.calibrate import calibrate_manifest, check_delta
from fastdc.export.graph import export_onnx
from fastdc.export.verify import SIGMA_MAX, SIGMA_MIN, verify_onnx
from fastdc.inference import OnProgress
from fastdc.support import BundleError, InputError, require, version_of
from fastdc.train import RunFolder, RunInfo, TrainConfig, content_digest

if TYPE_CHECKING:
    from torch import nn


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    description: str | None = None,
    calibrate: str | Path | LabelledImages | None = None,
    draws: int = 16,
    levels: tuple[float, float] = (0.2, 2.0),
    weighting: str = "edm",
    loss: str = "l2",
    first: Sequence[float] = (),
    delta: float | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Bundle:
    """Writes the bundle of a training run.

    Args:
        run: A run folder of :func:`fastdc.train.train`, finished or not.
        out: The bundle folder to write.
        name: Name of the bundle; default: the name of ``out``.
        description: One line about it; default: what it was trained on.
        calibrate: Labelled images (or where to load them) that the model has not seen and that no result will be
            reported on: the temperature that turns errors into probabilities is fitted to them, and the race is
            calibrated on them, which takes classes x 128 draws x 4 noise seeds evaluations an image.
        draws: Default number of Monte-Carlo draws.
        levels: Default range of sigma of those draws, in the units of images in [-1, 1].
        weighting: Default weighting of the errors.
        loss: Default distance, such as ``l2``.
        first: Default noise-to-signal ratios of the first draws, in the same units as levels.
        delta: Level of the race's calibration, see :mod:`fastdc.calibration.race`. Default: 0.01, or what as many
        images
            support up to 0.05; there is no race where they are fewer than 19.
        overwrite: Replace a bundle that is already there.
        progress: Called after every step of the race's calibration.
        notify: Called with a line if the race is not calibrated.

    Raises:
        InputError: There is no usable run, the calibration images do not fit or were trained on, or they are too few
            for the delta that was given.
        BundleError: A default is out of range, or ``out`` exists and may not be replaced.
        BackendError: ONNX Runtime and torch disagree about the exported network.
        MissingDependencyError: torch, onnx or onnxruntime is not installed.
    """
    folder = RunFolder(run)
    info = folder.info()
    if Path(out).exists() and not overwrite:  # said now, not after the work; write_bundle checks again
        raise BundleError(f"{out} exists: choose another path, or replace it with overwrite (--overwrite)")
    images = None if calibrate is None else _calibration_images(calibrate, info)
    check_delta(delta, images)
    network, state = _averaged_network(folder, info)
    model = export_onnx(network, info.shape, len(info.class_names) + 1)
    scale = info.config.timestep_scale
    difference = verify_onnx(model, network, info.shape, len(info.class_names) + 1, timestep_scale=scale)
    files = {"denoiser.onnx": model, "weights.safetensors": _weights(network)}
    defaults = {"draws": draws, "levels": list(levels), "weighting": weighting, "loss": loss, "temperature": 1.0}
    if first:
        defaults["first"] = list(first)
    provenance = _provenance(info, state, network, difference)
    manifest = {
        "name": name if name is not None else Path(out).resolve().name,
        "description": description if description is not None else _description(info),
        **_manifest(info, defaults, provenance),
    }
    if images is not None:
        calibrate_manifest(manifest, files, images, delta=delta, progress=progress, notify=notify)
    return write_bundle(out, manifest, files, overwrite=overwrite)


def _manifest(info: RunInfo, defaults: dict[str, Any], provenance: dict[str, str | int | float]) -> dict[str, Any]:
    """The manifest without its name, description and files; format in :mod:`fastdc.bundle.folder`."""
    return {
        "image": {"shape": list(info.shape), "range": [-1.0, 1.0]},
        "classes": list(info.class_names),
        "null_class": len(info.class_names),
        "schedule": {
            "kind": "edm",
            "sigma_min": SIGMA_MIN,
            "sigma_max": SIGMA_MAX,
            "timestep_scale": info.config.timestep_scale,
        },
        "parameterization": {"kind": "edm", "sigma_data": info.sigma_data},
        "defaults": defaults,
        "network": info.network,
        "provenance": provenance,
    }


def _averaged_network(folder: RunFolder, info: RunInfo) -> tuple["nn.Module", dict[str, Any]]:
    from fastdc.bundle import build_network

    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        raise InputError(f"{folder.path} has no checkpoint yet: train it first")
    network = build_network(info.network["kind"], info.network["config"])
    weights = {name[4:]: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("ema.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{folder.checkpoint_file} does not fit the run's network: {one_line(error)}") from error
    return network.eval().requires_grad_(False), checkpoint.progress


def _weights(network: "nn.Module") -> bytes:
    require("torch", extra="train")
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


def _calibration_images(source: str | Path | LabelledImages, info: RunInfo) -> LabelledImages:
    images = source if isinstance(source, LabelledImages) else load_labelled(str(source), info.shape)
    if images.class_names != info.class_names:
        raise InputError("the calibration images have other classes than the run")
    if images.images.shape[1:] != info.shape:
        raise InputError(f"calibration images must have shape {info.shape}, got {images.images.shape[1:]}")
    if content_digest(images.images, images.labels, images.class_names) == info.data_digest:
        raise InputError("calibrate on images that the model was not trained on: these are the training images")
    return images


def _description(info: RunInfo) -> str:
    size = "x".join(str(side) for side in info.shape[1:])
    kind = "UNet" if info.network["kind"] == "unet2d" else "MLP"
    return f"{kind} denoiser of {size} images in {len(info.class_names)} classes"


def _provenance(
    info: RunInfo, progress: dict[str, Any], network: "nn.Module", difference: float
) -> dict[str, str | int | float]:
    from fastdc.bundle import parameter_count

    return {
        "command": training_command(info.config),
        "data": Path(info.config.data).name,
        "data_sha256": info.data_digest,
        "training_images": info.images,
        "seed": info.config.seed,
        "steps": int(progress["step"]),
        "batch": int(info.config.batch or 0),
        "parameters": parameter_count(network),
        "onnx_max_difference": float(f"{difference:.2g}"),
        "torch": str(version_of("torch")),
        "onnx": str(version_of("onnx")),
        "diffusers": str(version_of("diffusers")) if info.network["kind"] == "unet2d" else "not used",
    }


def training_command(config: TrainConfig) -> str:
    """The ``fastdc train`` line of a recipe, with file names only and without what does not change the numbers."""
    plain = TrainConfig(data=config.data, out=config.out, model=config.model)
    words = ["fastdc", "train", Path(config.data).name, "--out", Path(config.out).name, "--model", config.model]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("data", "out", "model", "threads", "checkpoint_every", "log_every", "device"):
            continue
        if value == getattr(plain, field.name):
            continue
        option = "--" + field.name.replace("_", "-")
        if field.name == "val":
            value = value if config.val_fraction is not None else Path(value).name
        words += [option] if value is True else [option, str(value)]
    return shlex.join(words)
