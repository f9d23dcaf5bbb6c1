"""``fastdc export``: turn a training run or another tool's model into a bundle that classifies without torch."""

import json
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from fastdc.bundle import Bundle, saved_by_parts
from fastdc.cli.export_checks import OF_SOURCES, check_export
from fastdc.cli.images import Limits, print_notes, read_labelled, seen_through, take_limits
from fastdc.cli.runner import progress_of, promise
from fastdc.cli.sources import STDIN
from fastdc.inference import PlanChoice
from fastdc.support import InputError

_OF_READING = ("prompts", "classes", "template", "image_size", "null_class", "lora", "variant", "scheduler")


def run(source: str, out: str, quiet: bool, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.export`."""
    choices: list[PlanChoice] = []
    notes: list[str] = []
    limits = take_limits(options, "calibrate-")
    given = [
        f"--{'calibrate-' * (name == 'split')}{name.replace('_', '-')}"
        for name, value in limits.items()
        if value not in (None, False)
    ]
    if given and options["calibrate"] is None:
        raise InputError(f"{given[0]} is for the images of --calibrate: expected both or neither")
    is_run = _is_run(source)
    if is_run and options["calibrate"] is not None:
        options["calibrate"] = _kept_aside(source, options["calibrate"], quiet=quiet)
    check_export(source, out, options, is_run=is_run)
    make = _run if is_run else _source
    options["on_choice"] = choices.append
    bundle = make(source, out, quiet, limits, notes, options)
    if quiet:
        return
    manifest = bundle.manifest
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    provenance = manifest["provenance"]
    difference = provenance.get("onnx_max_difference", provenance.get("denoiser_max_difference"))
    click.echo(
        f"exported {out}: {manifest['name']}, {len(manifest['classes'])} classes, {size / 1e6:.1f} MB, "
        f"within {difference:g} of torch"
    )
    for choice in choices:
        click.echo(choice)
        for line in choice.table():
            click.echo(f"    {line}")
    calibration = bundle.model.calibration
    if calibration is not None:
        click.echo(f"calibrated the race on {calibration.images} images: {promise(calibration.delta)}")
    for note in notes:
        click.echo(f"note: {note}")
    if options["calibrate"] is None:
        click.echo(
            "probabilities and race are not calibrated: to do so, export again with --calibrate DATA --overwrite"
        )
    click.echo(f"next: fastdc classify --model {shlex.quote(str(out))} IMAGE...")


def _is_run(source: str) -> bool:
    """Whether a folder is a run of ``fastdc train``: its config says so, or it cannot be anything else."""
    folder = Path(source)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return isinstance(config, dict) and "_class_name" not in config
    except (OSError, ValueError, RecursionError):
        return (folder / "checkpoint.safetensors").exists() or (folder / "config.json").exists()


def _kept_aside(source: str, path: str, *, quiet: bool) -> str:
    """The images to calibrate on: RUN/val.npz stands for the validation images that the run was given."""
    from fastdc.train import RunFolder, kept_aside

    if path == STDIN or Path(path).exists():
        return path
    folder = RunFolder(source)
    found = kept_aside(path, folder.path, folder.info().config)
    if found != path:
        print_notes([f"the run kept no images aside: {path} stands for its validation images, {found}"], quiet=quiet)
    return found


def _run(source: str, out: str, quiet: bool, limits: Limits, notes: list[str], options: dict[str, Any]) -> Bundle:
    """The bundle of a training run."""
    from fastdc.train import RunFolder

    for name in OF_SOURCES:
        del options[name]
    given = dict(options)
    given["precision"] = options["precision"] or "float32"
    if given["calibrate"] is not None:
        info = RunFolder(source).info()
        limits = seen_through(limits, info.config)
        given["calibrate"] = read_labelled(
            given["calibrate"], info.shape, limits, quiet=quiet, classes=info.class_names
        )
    from fastdc.export import export_run  # and torch with it

    with progress_of(quiet=quiet, description="calibrating") as progress:
        return export_run(source, out, progress=progress, notify=notes.append, **given)


def _source(source: str, out: str, quiet: bool, limits: Limits, notes: list[str], options: dict[str, Any]) -> Bundle:
    """The bundle of another tool's model."""
    from fastdc.export import DEFAULT_OPSET, compare_errors, export_source
    from fastdc.sources import open_decoder, open_source

    def say(line: str) -> None:
        if not quiet:
            click.echo(f"{line} ...", err=True)

    verify, engine, _ = options.pop("verify"), options.pop("engine"), options.pop("checkpoint")
    if engine is not None:
        _check_engine(engine, options["precision"])
    kept = {name: options.pop(name) for name in _OF_READING}
    loras = [_lora(text) for text in kept["lora"]]
    prompts, names = _conditions(source, kept)
    if prompts is None and not options["text"]:
        raise InputError(f"--no-text-encoder is for text-conditional models, and {source} is not one")
    say(f"reading {source}")
    opened = open_source(
        source,
        prompts=prompts,
        class_names=names,
        image_size=kept["image_size"],
        null_class=kept["null_class"],
        lora=loras,
        variant=kept["variant"],
        scheduler=kept["scheduler"],
    )
    if options["decoder"] and opened.model.latent_shape is None:
        raise InputError(f"--decoder is for models of latents, and {source} works on images")
    options["decoder"] = open_decoder(source) if options["decoder"] else None
    data, opset = options.pop("calibrate"), options.pop("opset")
    model, images = opened.model, None
    if data is not None:
        limits = seen_through(limits, model)
        images = read_labelled(data, model.image_shape, limits, quiet=quiet, classes=model.class_names)
    with progress_of(quiet=quiet, description="calibrating") as progress:
        bundle = export_source(
            opened,
            out,
            images=images,
            opset=opset or DEFAULT_OPSET,
            precision=options.pop("precision") or "float32",
            progress=progress,
            notify=say,
            **options,
        )
    options["calibrate"] = data
    notes += _findings(bundle)
    if engine is not None:
        say("building and testing an engine, which may take minutes")
        notes += _build_engine(engine, bundle)
    if verify:
        say("comparing with torch")
        notes.append(str(compare_errors(opened, bundle, None if images is None else images.images[:8])))
    return bundle


def _check_engine(folder: str, precision: str | None) -> None:
    """Refuses an engine that cannot be built or written, before the work starts.

    Raises:
        InputError: An engine cannot have this precision, or the folder is not writable.
        MissingDependencyError: A package that engines need is not installed.
        BackendError: There is no GPU, or TensorRT does not start.
    """
    from fastdc.backends.tensorrt import check_usable

    if precision == "int8":
        raise InputError("--engine needs --precision float32, float16 or bfloat16: int8 is for CPUs")
    check_usable()
    try:
        _engines(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=_engines(folder)):
            pass
    except OSError as error:
        raise InputError(f"--engine {folder} cannot be written to: {error.strerror}") from None


def _build_engine(folder: str, bundle: Bundle) -> list[str]:
    """Builds the engine that ``--backend tensorrt`` will use; returns notes about it."""
    from fastdc.backends.tensorrt import EngineCache, TensorRTNetwork

    made = TensorRTNetwork(bundle, cache=EngineCache(_engines(folder)))
    checks = made.self_test["checks"]
    return [
        f"engine of {made.version} {'built' if made.built else 'found'}, steps of {_listed(made.sizes or ())}; "
        f"at {_listed(one['batch'] for one in checks)} within {max(one['relative'] for one in checks):.1e} of the CPU, "
        f"limit {made.self_test['allowed']:.1e}",
        f"use it: FASTDC_CACHE={shlex.quote(folder)} fastdc classify --backend tensorrt --device cuda "
        f"--model {shlex.quote(str(bundle.path))} IMAGE...",
    ]


def _engines(folder: str) -> Path:
    """The folder of the engines in a FASTDC_CACHE."""
    return Path(folder) / "engines"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _conditions(source: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """The prompts or the class names that the options give; None for the other, or for both."""
    from fastdc.bundle import prompts_of, read_class_names, read_prompts
    from fastdc.sources import is_text_conditional

    listed, templates = options["classes"], options["template"]
    if options["prompts"] is not None:
        if listed is not None or templates:
            raise InputError("--prompts defines the classes: expected neither --classes nor --template with it")
        return read_prompts(options["prompts"]), None
    names = None
    if listed is not None:
        is_file = Path(listed).is_file()
        names = read_class_names(listed) if is_file else tuple(part.strip() for part in listed.split(","))
    if not is_text_conditional(source):
        if templates:
            raise InputError(f"--template is for text-conditional models, and {source} is not one")
        return None, names
    if names is None:
        raise InputError(f"{source} is text-conditional: define its classes by --prompts CSV or --classes LIST")
    return prompts_of(names, templates or ("a photo of a {}.",)), None


def _lora(text: str) -> Any:
    """A LoRA from "FILE" or "FILE=SCALE"."""
    from fastdc.sources import Lora

    path, _, scale = text.rpartition("=")
    try:
        return Lora(Path(path), float(scale)) if path else Lora(Path(text))
    except ValueError:
        raise InputError(f"--lora must be FILE or FILE=SCALE with a number, got {text!r:.120}") from None


def _findings(bundle: Bundle) -> list[str]:
    """The results of an export, one per line."""
    cost, found = bundle.manifest.get("cost", {}), bundle.manifest["provenance"]
    lines = [f"{cost['parameters'] / 1e6:.4g} M parameters, {cost['flops'] / 1e9:.4g} GFLOP per evaluation"]
    if "cell_flops" in cost:
        pair, label = (100 * cost[part] / cost["flops"] for part in ("pair_flops", "class_flops"))
        saved = 100 * saved_by_parts(cost, 10)
        lines.append(
            f"in parts: {pair:.1f} % of an evaluation is shared by all classes and {label:.1f} % by all images; "
            f"{saved:.1f} % saved with 10 classes"
        )
    if "int8_agreement" in found:
        lines.append(
            f"int8 agrees with float32 on {100 * found['int8_agreement']:.1f} % of {found['int8_images']} images; "
            f"accuracy {100 * found['int8_accuracy']:.1f} %, in float32 {100 * found['float32_accuracy']:.1f} %"
        )
    return lines
