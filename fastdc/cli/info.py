"""``fastdc info``: what is installed and built in, or what a model is."""

import json
import platform
from typing import Any

import click

from fastdc.backends.onnx import usable_cpus
from fastdc.bundle import Bundle, load_bundle
from fastdc.classifier import find_model, shipped_models
from fastdc.extras import version_of
from fastdc.ops import build_config
from fastdc.version import __version__

# What a package brings -> (distributions that bring it, extra that installs it).
_PACKAGES = {
    "onnx backend": (("onnxruntime", "onnxruntime-gpu"), "cpu"),
    "torch backend": (("torch",), "cuda"),
    "tensorrt": (("tensorrt-cu13", "tensorrt"), "tensorrt"),
    "UNet training": (("diffusers",), "train"),
    "ONNX export": (("onnxscript",), "export"),
    "plots": (("matplotlib",), "plot"),
}

_EPILOG = """\b
Examples:
  fastdc info                this installation
  fastdc info digits         a shipped model
  fastdc info my-model       a bundle folder; every file is verified
  fastdc info --json         for scripts
"""


@click.command(name="info", epilog=_EPILOG)
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str | None, as_json: bool) -> None:
    """Show what is installed and built in; with MODEL, what that model is, after verifying its files."""
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
    return str(value)


def _installation() -> dict[str, Any]:
    build = build_config()
    facts: dict[str, Any] = {
        "fastdc": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": usable_cpus(),
        "compiler": f"{build['compiler']} ({build['build_type']})",
        "cpu kernels": f"{build['cpu_isa']} in use, {build['cpu_isas']} available",
        "cuda kernels": f"{build['cuda_compiler']}, sm {build['cuda_architectures']}"
        if build["cuda"]
        else "not built in",
        "cuda devices": build["cuda_devices"],
    }
    for what, (distributions, extra) in _PACKAGES.items():
        version = version_of(*distributions)
        facts[what] = f"{distributions[0]} {version}" if version else f"missing: pip install 'fastdc[{extra}]'"
    facts["models"] = list(shipped_models())
    return facts


def _describe(bundle: Bundle) -> dict[str, Any]:
    model = bundle.model
    defaults = model.defaults
    names = list(model.class_names)
    shown = names if len(names) <= 20 else [*names[:20], f"... {len(names) - 20} more"]
    return {
        "name": model.name,
        "description": bundle.manifest.get("description", ""),
        "path": str(bundle.path),
        "sha256": model.identity,
        "image": f"{model.image_shape}, values in [{model.value_range[0]:g}, {model.value_range[1]:g}]",
        "classes": f"{len(names)}: {', '.join(shown)}",
        "schedule": json.dumps(model.schedule.to_dict()),
        "parameterization": json.dumps(model.parameterization.to_dict()),
        "defaults": (
            f"{defaults.draws} draws, levels {defaults.levels or 'all'}, weighting {defaults.weighting}, "
            f"loss {defaults.loss}, temperature {defaults.temperature:g}"
        ),
        "files": [f"{name} ({entry['bytes']:,} bytes)" for name, entry in bundle.manifest["files"].items()],
        "provenance": json.dumps(bundle.manifest.get("provenance", {})),
        "verified": True,
    }
