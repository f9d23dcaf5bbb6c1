"""From a training run to a bundle: the averaged weights as an ONNX graph, checked against torch, with a manifest.

The temperature and the race's calibration are fitted on images that the model has not seen; see :func:`export_run`.
"""

import dataclasses
import math
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdc.backends.base import one_line
from fastdc.bundle import Bundle, write_bundle
from fastdc.calibration import controlled_limit
from fastdc.classifier import DiffusionClassifier, load
from fastdc.data import LabelledImages, load_labelled
from fastdc.decide import fit_temperature
from fastdc.exceptions import BundleError, InputError
from fastdc.export.graph import export_onnx
from fastdc.export.verify import SIGMA_MAX, SIGMA_MIN, verify_onnx
from fastdc.extras import require, version_of
from fastdc.results import OnProgress
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import content_digest
from fastdc.train.run import RunFolder, RunInfo

if TYPE_CHECKING:
    from torch import nn

CALIBRATION_SEEDS = 4  # noise seeds of every calibration image: more near misses to learn the temperature from
_LARGEST_DELTA = 0.05  # of the race, unless a user asks for more


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
        delta: Level of the race's calibration, see :mod:`fastdc.calibration`. Default: 0.01, or what as many images
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
    if delta is not None:
        if images is None:
            raise InputError(f"delta = {delta:g} is of a calibration: give the images to calibrate on")
        controlled_limit(np.zeros((len(images), 1)), delta)  # refuses what would be refused after the work
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
        classifier = _classifier(manifest, files)
        defaults["temperature"] = _temperature(classifier, images)
        provenance["calibration"] = f"{len(images)} images, {draws} draws, {CALIBRATION_SEEDS} noise seeds"
        try:
            level = supported_delta(len(images)) if delta is None else delta
            race = classifier.calibrate(images.images, delta=level, seeds=CALIBRATION_SEEDS, progress=progress)
            manifest["calibration"] = race.to_dict()
        except InputError as error:
            if notify is not None:
                notify(f"the race is not calibrated: {error}")
    return write_bundle(out, manifest, files, overwrite=overwrite)


def _manifest(info: RunInfo, defaults: dict[str, Any], provenance: dict[str, str | int | float]) -> dict[str, Any]:
    """The manifest without its name, description and files; format in :mod:`fastdc.bundle`."""
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
    from fastdc.networks import build_network

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


def supported_delta(n: int) -> float:
    """The level of the race's calibration on n images unless a user says otherwise: 0.01, or the next whole percent
    that so few support.

    Raises:
        InputError: That is above 0.05, with which the race would not be worth its name.
    """
    delta = max(1, math.ceil(100 / (n + 1) - 1e-9)) / 100
    if delta > _LARGEST_DELTA:
        raise InputError(f"{n} images support no level below {100 / (n + 1):.2g} %: it takes 19, and 99 for 1 %")
    return delta


def _classifier(manifest: dict[str, Any], files: dict[str, bytes]) -> DiffusionClassifier:
    """The very bundle that is being made, opened."""
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "bundle", manifest, files)
        return load(Path(folder) / "bundle", backend="onnx", device="cpu")


def _temperature(classifier: DiffusionClassifier, images: LabelledImages) -> float:
    """Fits the temperature to full runs of the default draws.

    To those of the race it would hardly differ: on the test digits, the log-likelihood of either by the temperature of
    the other is within 0.002 of that by its own.
    """
    seeds = range(CALIBRATION_SEEDS)
    runs = [classifier.classify(images.images, rule="full", seed=seed).errors for seed in seeds]
    errors, labels = with_doubt(np.concatenate(runs), np.tile(images.labels, len(runs)), len(runs))
    return float(f"{fit_temperature(errors, labels):.4g}")


def with_doubt(
    errors: NDArray[np.float64], labels: NDArray[np.int64], weight: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Adds one image that goes to the runner-up, as the rule of succession does for counts.

    Where every validation image is classified correctly the likelihood grows without bound as the temperature falls to
    zero: the posterior would claim certainty on the strength of a few hundred images. (Measured on the digits: fits to
    single noise seeds ranged from 0.001 to 0.029, and the lowest cost fourteen times the best log-likelihood on the
    test images.) Platt (1999) moves the targets of his sigmoid for the same reason. The image that is added
    is one of those that are there, at the 5 % quantile of the margin: mistakes are made on the hard ones.

    Args:
        errors: Mean errors (n, K).
        labels: int64 (n,).
        weight: How many times to add it.
    """
    ordered = np.sort(errors, axis=1)
    margin = ordered[:, 1] - ordered[:, 0]
    chosen = np.argsort(margin, kind="stable")[int(0.05 * len(margin))]
    runner_up = np.argsort(errors[chosen], kind="stable")[1]
    more = np.repeat(errors[chosen : chosen + 1], weight, axis=0)
    return np.concatenate([errors, more]), np.concatenate([labels, np.full(weight, runner_up)])


def _description(info: RunInfo) -> str:
    size = "x".join(str(side) for side in info.shape[1:])
    kind = "UNet" if info.network["kind"] == "unet2d" else "MLP"
    return f"{kind} denoiser of {size} images in {len(info.class_names)} classes"


def _provenance(
    info: RunInfo, progress: dict[str, Any], network: "nn.Module", difference: float
) -> dict[str, str | int | float]:
    from fastdc.networks import parameter_count

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
