"""``fastdc info``: the installation, or a model."""

import json
from typing import Any

import click

from fastdc.backends import find_choice, usable_cpus
from fastdc.build_info import CAPABILITIES, build_config
from fastdc.bundle import REST, TEXT, Bundle, Model, find_model, load_bundle, saved_by_parts, shipped_models
from fastdc.cli.runner import promise
from fastdc.inference import plan_config


def run(model: str | None, as_json: bool, quiet: bool) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.info`."""
    if model is None:
        facts = _installation()
    else:
        bundle = load_bundle(find_model(model))
        bundle.verify()
        facts = _describe(bundle)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        click.echo(f"{name:<{width}}{_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry:.6g}" for name, entry in value.items() if not isinstance(entry, dict))
    return str(value)


def _installation() -> dict[str, Any]:
    config = build_config()
    cuda = f"{config['cuda_compiler']}, {config['cuda_architectures']}" if config["cuda"] else "not built in"
    facts: dict[str, Any] = {
        "fastdc": config["version"],
        "python": config["python"],
        "platform": config["platform"],
        "cpus": usable_cpus(),
        "compiler": f"{config['compiler']} ({config['build_type']})",
        "cpu kernels": f"{config['cpu_isa']} in use, {config['cpu_isas']} available",
        "cuda kernels": cuda,
        "cuda devices": config["cuda_devices"],
    }
    missing = {capability: f"missing: {command}" for capability, command in config["missing"].items()}
    facts |= {capability: (config["present"] | missing)[capability] for capability in CAPABILITIES}
    facts["models"] = list(shipped_models())
    return facts


def _race(model: Model) -> str:
    """The rule that classify uses by default."""
    calibration = model.calibration
    if calibration is None:
        return "paired tests, as there is no calibration"
    if not calibration.fits(plan_config(model, {})):
        return "paired tests, as the calibration is of other levels or weights than the defaults"
    return f"calibrated: {promise(calibration.delta)}"


def _noised(model: Model) -> str:
    """The methods and noises that the race is calibrated for, as --sigma and sigma / alpha, each with its guarantee."""
    found: dict[str, list[str]] = {}
    for calibration in model.noised_calibrations:
        method, noise = calibration.noised or ("", 0.0)
        found.setdefault(method, []).append(
            f"--sigma {noise / model.noise_ratio(1.0):g} (sigma / alpha {noise:g}, {100 * calibration.delta:.3g} %)"
        )
    each = "; ".join(f"--method {method}, {', '.join(noises)}" for method, noises in found.items())
    return f"calibrated: {each}" if found else "paired tests, as there is no calibration"


def _prompts(bundle: Bundle) -> str:
    """The first prompts, and whether --prompts can replace them."""
    model = bundle.model
    shown = [repr(text) for text in model.prompts[:4]]
    more = [f"... {len(model.prompts) - 4} more"] if len(model.prompts) > 4 else []
    other = "--prompts can replace them" if TEXT in bundle.files else "fixed, without a text encoder"
    return f"{len(model.prompts)}: {', '.join([*shown, *more])}; {other}"


def _cost(bundle: Bundle) -> str:
    """Size and cost of the network, and the share of operations that its parts save."""
    cost = bundle.manifest["cost"]
    text = f"{cost['parameters'] / 1e6:.4g} M parameters, {cost['flops'] / 1e9:.4g} GFLOP per evaluation"
    text += f", {bundle.manifest.get('precision', 'float32')}"
    if REST in bundle.files:
        text += f"; its parts save {100 * saved_by_parts(cost, 10):.1f} % with 10 classes"
    return text


def _choice(bundle: Bundle) -> str:
    """The backend, precision and batch that fastdc bench --write chose for this machine."""
    choice, ignored = find_choice(bundle)
    if choice is None:
        return ignored or "none: fastdc bench --write makes one"
    speed = choice.images_per_second
    rate = f"{speed:,.0f} images/s" if speed >= 1000 else f"{speed:.3g} images/s"
    rate += f", {choice.images} of {choice.images} answers as in float32"
    return f"{choice} ({choice.origin}: {rate})"


def _describe(bundle: Bundle) -> dict[str, Any]:
    model = bundle.model
    defaults = model.defaults
    curve = model.level_weights
    first = ", ".join(f"{ratio:g}" for ratio in defaults.first)
    names = list(model.class_names)
    shown = names if len(names) <= 20 else [*names[:20], f"... {len(names) - 20} more"]
    return {
        "name": model.name,
        "description": bundle.manifest.get("description", ""),
        "path": str(bundle.path),
        "sha256": model.identity,
        "image": f"{model.image_shape}, values in [{model.value_range[0]:g}, {model.value_range[1]:g}]",
        **({"window": "{:g} to {:g} for more than 8 bits".format(*model.window)} if model.window else {}),
        **({"fit": model.fit} if model.fit != "crop" else {}),
        **({"transform": json.dumps(model.transform.to_dict())} if model.transform else {}),
        **({"latent": f"{model.latent_shape}, made by encoder.onnx"} if model.latent_shape else {}),
        "classes": f"{len(names)}: {', '.join(shown)}",
        **({"prompts": _prompts(bundle)} if model.prompts else {}),
        **({"network": _cost(bundle)} if "cost" in bundle.manifest else {}),
        "schedule": json.dumps(model.schedule.to_dict()),
        "parameterization": json.dumps(model.parameterization.to_dict()),
        "defaults": (
            f"{defaults.draws} draws, levels {defaults.levels or 'all'}, weighting {defaults.weighting}, "
            f"loss {defaults.loss}, temperature {defaults.temperature:g}{first and f', first {first}'}"
        ),
        "calibration": "none" if model.calibration is None else model.calibration.to_dict(),
        "race": _race(model),
        "noisy images": _noised(model),
        "level weights": "none"
        if curve is None
        else f"{len(curve.ratio)} knots, {curve.ratio[0]:g} to {curve.ratio[-1]:g}",
        "choice": _choice(bundle),
        "files": [f"{name} ({entry['bytes']:,} bytes)" for name, entry in bundle.manifest["files"].items()],
        "provenance": json.dumps(bundle.manifest.get("provenance", {})),
        "verified": True,
    }
