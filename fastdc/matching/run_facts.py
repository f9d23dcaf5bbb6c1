"""What reproduces the answers of a diffusion model, by which kept answers are found again."""

import secrets
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastdc.bundle import Model
from fastdc.inference import Options
from fastdc.rules import Calibration
from fastdc.support import __version__, shown

_LONGEST = 100_000  # characters of an option


def run_facts(
    model: Model, options: Options, network: Mapping[str, Any], calibration: Calibration | None
) -> dict[str, Any]:
    """Model, options of the run, and what computes the network, as JSON values.

    A model that was made by hand has no identity. Its facts are new each time, so that it never takes the answers of
    another one of its name.

    Args:
        model: The model.
        options: The options of the run.
        network: The options of the network.
        calibration: The calibration that replaces the model's own, if any.
    """
    given = {one.name: getattr(options, one.name) for one in fields(options)}
    if not isinstance(given["denoiser"], str | None):
        given["denoiser"] = _identity(given["denoiser"].model)
    return {
        "kind": "diffusion",
        "model": model.name,
        "sha256": _identity(model),
        "options": {name: shown(value, _LONGEST) for name, value in given.items() if value is not None},
        "network": {name: network[name] for name in ("backend", "device", "precision")},
        **({} if calibration is None else {"calibration": calibration.to_dict()}),
        "fastdc": __version__,
    }


def _identity(model: Model) -> str:
    """What no other model has."""
    return model.identity or f"made by hand, {secrets.token_hex(16)}"
