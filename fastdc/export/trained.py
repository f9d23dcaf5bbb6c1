"""From a training run to a bundle: the averaged weights as an ONNX graph, checked against torch, with a manifest.

Temperature and race are fitted to images that the model has not seen; see :func:`export_run`.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from fastdc.bundle import (
    DENOISER,
    WEIGHTS,
    Bundle,
    SeenImages,
    build_network,
    bundle_place,
    parameter_count,
    write_bundle,
)
from fastdc.data import LabelledImages, load_labelled
from fastdc.export.bundle import export_source
from fastdc.export.calibrate import calibrate_manifest, check_calibration
from fastdc.export.known_graphs import traced_and_verified
from fastdc.export.manifest import check_manifest, training_field
from fastdc.export.options import ExportKeywords, ExportOptions, Files, check_place
from fastdc.support import InputError, UsualWindow, checks, one_line, require, version_of
from fastdc.train import (
    RunFolder,
    RunInfo,
    TrainConfig,
    content_digest,
    kept_aside,
    run_defaults,
    run_model,
    run_source,
    sample_shape,
)

if TYPE_CHECKING:
    from torch import nn

CHECKPOINTS = ("best", "last")

# Fields of a recipe that its command leaves out: the positional ones, and those that do not change the numbers.
_NOT_IN_COMMAND = ("data", "out", "model", "prompts", "max_pixels", "threads", "log_every", "device")


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    calibrate: str | Path | LabelledImages | None = None,
    checkpoint: str | None = None,
    precision: str = "float32",
    **options: Unpack[ExportKeywords],
) -> Bundle:
    """Writes the bundle of a training run.

    Args:
        run: Run folder of :func:`fastdc.train.train`, finished or not.
        out: Folder of the bundle.
        calibrate: Labelled images, or where to load them, that the model has not seen and on which no result will be
            reported. Noise levels are chosen on one half, unless ``levels`` are given or there are fewer than 99;
            temperature and race are fitted to the other. With fewer than 19 images there is no race.
        checkpoint: "best": the averaged weights that were the best on half of the validation images while they were
            trained; "last": the last ones; None: the best if there are any.
        precision: As for :func:`fastdc.export.export_source`; weights for torch come with "float32" only.
        **options: Options of every export, see ``ExportOptions``. The default draws, if they are not chosen, are 16 in
            the run's band of levels (units of images in [-1, 1]), with the weighting "edm" and the loss "l2".

    Raises:
        InputError: There is no usable run, the images cannot be used, or another process is writing to ``out``.
        BundleError: A default is out of range, or ``out`` exists and may not be replaced.
        BackendError: ONNX Runtime and torch disagree about the exported network.
        MissingDependencyError: torch, onnx or onnxruntime is not installed.

    Example:
        >>> from fastdc import export, train
        >>> np.savez(folder / "data.npz", images=images, labels=labels % 2)
        >>> recipe = train.TrainConfig(data=f"{folder}/data.npz", out=f"{folder}/run", model="mlp", width=8, steps=2)
        >>> export.export_run(train.train(recipe, progress=False).path, folder / "even").class_names
        ('0', '1')
    """
    given, out, folder = ExportOptions(**options), Path(out), RunFolder(run)
    checks.one_of("checkpoint", "best" if checkpoint is None else checkpoint, CHECKPOINTS)
    info = folder.info()
    if info.base.get("kind", "own") != "own" or precision != "float32":
        return _export_as_source(folder, info, out, checkpoint, calibrate, precision, options)
    name = given.name if given.name is not None else out.resolve().name
    with bundle_place(out):
        check_place(out, overwrite=given.overwrite)
        images = _calibration_images(calibrate, info, folder, given)
        check_calibration(given, images, seen := folder.seen(info, checkpoint))
        defaults = {**run_defaults(info.config), "levels": list(info.levels), "temperature": 1.0, **given.defaults()}
        check_manifest(out, {"name": name or out.resolve().name, **_manifest(info, seen, defaults, {})})
        network, steps, chosen = _averaged_network(folder, info, checkpoint, given)
        model, difference = _traced(network, info)
        files: Files = {DENOISER: model, WEIGHTS: _weights(network)}
        description = _description(info) if given.description is None else given.description
        manifest = {
            **{"name": name, "description": description},
            **_manifest(info, seen, defaults, {**_provenance(info, steps, network, difference), "checkpoint": chosen}),
            "cost": {"parameters": parameter_count(network), "flops": _flops(model)},
        }
        if images is not None:
            calibrate_manifest(manifest, files, images, given)
        return write_bundle(out, manifest, files, overwrite=given.overwrite)


def _traced(network: "nn.Module", info: RunInfo) -> Any:
    """The ONNX graph of a run's network, and its largest difference to torch."""
    model, labels = run_model(info), len(info.class_names) + 1
    first, last = model.schedule.levels([0.0, 1.0]).timestep.tolist()
    return traced_and_verified(network, info.network, model.sample_shape, labels, timesteps=(first, last))


def _export_as_source(
    folder: RunFolder,
    info: RunInfo,
    out: Path,
    checkpoint: str | None,
    calibrate: str | Path | LabelledImages | None,
    precision: str,
    options: ExportKeywords,
) -> Bundle:
    """The bundle of a run, written like that of another tool's model.

    So are runs that began with such a model or with an image encoder, and all runs in another precision than float32.
    """
    given = ExportOptions(**options)
    images = _calibration_images(calibrate, info, folder, given)
    check_place(out, overwrite=given.overwrite)
    check_calibration(given, images, folder.seen(info, checkpoint))
    source, steps, chosen = run_source(folder.path, checkpoint)
    given.say(f"weights of {chosen}")
    origin = {f"base_{name}": value for name, value in info.base.items()}
    made = dataclasses.replace(
        source,
        model=dataclasses.replace(source.model, name=out.resolve().name),
        provenance={**source.provenance, **origin, **_training(info, steps), "checkpoint": chosen},
    )
    return export_source(made, out, images=images, precision=precision, **options)


def _manifest(
    info: RunInfo, seen: SeenImages, defaults: dict[str, Any], provenance: dict[str, str | int | float]
) -> dict[str, Any]:
    """The manifest without its name, description and files; docs/bundle.md describes the format."""
    training, model = training_field(info.class_counts, seen), run_model(info)
    return {
        "image": {
            "shape": list(info.shape),
            "range": [-1.0, 1.0],
            **({"window": list(info.config.window)} if info.config.window else {}),
            **({"fit": info.config.fit} if info.config.fit not in (None, "crop") else {}),
        },
        "classes": list(info.class_names),
        "null_class": len(info.class_names),
        **({} if model.transform is None else {"transform": model.transform.to_dict()}),
        "schedule": model.schedule.to_dict(),
        "parameterization": model.parameterization.to_dict(),
        "defaults": defaults,
        "network": info.network,
        "provenance": provenance,
        **({"training": training} if training else {}),
    }


def _averaged_network(
    folder: RunFolder, info: RunInfo, wanted: str | None, given: ExportOptions
) -> tuple["nn.Module", int, str]:
    """The network with the averaged weights of a checkpoint, its number of steps, and a description, which is said."""
    weights, step, chosen = folder.averaged(wanted)
    network = build_network(info.network["kind"], info.network["config"])
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{folder.path}: {chosen} does not fit the run's network: {one_line(error)}") from error
    given.say(f"weights of {chosen}")
    return network.eval().requires_grad_(False), step, chosen


def _flops(graph: bytes) -> int:
    """Operations of an evaluation."""
    from fastdc.export.flops import input_shapes, measure_flops

    model = require("onnx", extra="export").load_model_from_string(graph)
    return measure_flops(model, input_shapes(model, batch=1)).per_row


def _weights(network: "nn.Module") -> bytes:
    require("torch", extra="train")
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


def _calibration_images(
    source: str | Path | LabelledImages | None, info: RunInfo, folder: RunFolder, given: ExportOptions
) -> LabelledImages | None:
    if source is None:
        return None
    if folder.best_file.exists() and not len(info.seen.trained):
        given.say("this run of an earlier version does not know which images chose its best checkpoint, and so they "
                  "would calibrate: resume it once (fastdc train --resume), or calibrate on others")  # fmt: skip
    if isinstance(source, LabelledImages):
        images = source.with_classes(info.class_names)
    else:
        window = None if info.config.window is None else UsualWindow(*info.config.window)
        how: dict[str, Any] = {"window": window, "fit": info.config.fit, "natural": "val"}
        images = load_labelled(
            kept_aside(str(source), folder.path, info.config), info.shape, classes=info.class_names, **how
        )
    if images.images.shape[1:] != info.shape:
        raise InputError(f"calibration images must have shape {info.shape}, got {images.images.shape[1:]}")
    digest = content_digest(images.images, images.labels, images.class_names)
    if digest == info.source_digest:
        raise InputError(
            "calibrate on images that the model was not trained on: most of these are, take the run's val.npz"
        )
    if digest == info.data_digest:
        raise InputError("calibrate on images that the model was not trained on: these are the training images")
    return images


def _description(info: RunInfo) -> str:
    size = "x".join(str(side) for side in info.shape[1:])
    kind = {"mlp": "MLP", "dit": "DiT"}.get(info.network["kind"], "UNet")
    return f"{kind} denoiser of {size} images in {len(info.class_names)} classes"


def _provenance(info: RunInfo, steps: int, network: "nn.Module", difference: float) -> dict[str, str | int | float]:
    return {
        **_training(info, steps),
        **{f"base_{name}": value for name, value in info.base.items()},
        "parameters": parameter_count(network),
        "onnx_max_difference": float(f"{difference:.2g}"),
        "torch": str(version_of("torch")),
        "onnx": str(version_of("onnx")),
        "diffusers": str(version_of("diffusers")) if info.network["kind"] != "mlp" else "not used",
    }


def _training(info: RunInfo, steps: int) -> dict[str, str | int | float]:
    """The origin of the weights of a run."""
    return {
        "command": training_command(info.config, sample_shape(info)),
        **({"extended": _extensions(info)} if info.extended else {}),
        "data": Path(info.config.data).name,
        "data_sha256": info.data_digest,
        **({"source_sha256": info.source_digest} if info.source_digest else {}),
        "training_images": info.images,
        "seed": info.config.seed,
        "steps": steps,
        "batch": int(info.config.batch or 0),
    }


def _extensions(info: RunInfo) -> str:
    """What a command alone does not tell: that the number of steps was another one at first."""
    return ", ".join(f"{steps} steps until step {step}" for step, steps in info.extended)


def training_command(config: TrainConfig, shape: tuple[int, int, int]) -> str:
    """The ``fastdc train`` line of a recipe, with bare file names, without the options that do not change the numbers.

    Args:
        config: The recipe.
        shape: Shape (c, h, w) of the images or latents that the network works on, which decides the defaults.
    """
    config = config.for_shape(shape)
    given: dict[str, Any] = {"model": config.model, "base": config.base, "vae": config.vae}
    if config.vae is not None:
        given["size"] = config.size
    plain = TrainConfig(data=config.data, out=config.out, **given).for_shape(shape)
    words = ["fastdc", "train", Path(config.data).name, "--out", Path(config.out).name]
    for name, value in given.items():
        if value is not None:
            local = name in ("base", "vae") and not str(value).startswith("hf://")
            words += ["--from" if name == "base" else f"--{name}", Path(value).name if local else str(value)]
    if config.prompts is not None:
        words += ["--prompts", "FILE"]  # whose texts the manifest has
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kept = value is None and field.name != "val"  # no option, such as p_mean of prediction v_prediction
        if kept or field.name in _NOT_IN_COMMAND or value == getattr(plain, field.name):
            continue
        option = "--" + field.name.replace("_", "-")
        if field.name == "val":
            value = "0" if value is None else Path(value).name if config.val_source is not None else value
        values = value if isinstance(value, tuple) else (value,)
        words += [option] if value is True else [option, *map(str, values)]
    return shlex.join(words)
