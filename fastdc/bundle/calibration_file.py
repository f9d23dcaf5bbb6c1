"""Calibrations in files of their own, for models that are not to be changed: JSON with what the manifest would hold.

    {"format": "fastdc-calibration", "version": 1, "model": name, "network": sha256 of denoiser.onnx,
     "calibration": {...}, "level_weights": {...} or null, "first": [...] or null}

The last three are the fields of docs/bundle.md; null keeps the model's. A limit says nothing about another network, so
the network's sha256 is compared. The file's name is given by a user, its content may come from anywhere: it is checked
as strictly as a manifest.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from fastdc.bundle.folder import Bundle
from fastdc.bundle.manifest import DENOISER, MAX_MANIFEST_BYTES
from fastdc.diffusion import LevelWeights, PlanConfig
from fastdc.rules import Calibration, calibration_from_dict
from fastdc.support import FastdcError, InputError, strict_json, write_whole

FORMAT = "fastdc-calibration"
VERSION = 1

_FIELDS = {"format", "version", "model", "network", "calibration", "level_weights", "first"}


def write_calibration_file(
    path: str,
    bundle: Bundle,
    calibration: Calibration,
    *,
    level_weights: LevelWeights | None = None,
    first: tuple[float, ...] | None = None,
) -> None:
    """Writes a calibration of a bundle's model to a file, all of it or nothing.

    Raises:
        InputError: The file cannot be written.
    """
    entry = {
        "format": FORMAT,
        "version": VERSION,
        "model": bundle.name,
        "network": _network(bundle),
        "calibration": calibration.to_dict(),
        "level_weights": None if level_weights is None else level_weights.to_dict(),
        "first": None if first is None else list(first),
    }
    target = Path(path)
    try:
        write_whole(target, (json.dumps(entry, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from None


def with_calibration_file(bundle: Bundle, path: str) -> Bundle:
    """The bundle as if the calibration of a file were in its manifest; nothing is written.

    Raises:
        InputError: The file cannot be read, is not a calibration, is of a newer format or of another network.
    """
    file = Path(path)
    try:
        if not file.is_file():  # neither a folder nor a device without an end
            raise InputError(f"{path} is not a file: expected a calibration, as of fastdc calibrate --out")
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise InputError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    entry = _checked(strict_json(content, file), path)
    if entry["network"] != _network(bundle):
        raise InputError(
            f"{path} calibrates another network, of model {entry['model']!r:.80}: calibrate {bundle.name} itself"
        )
    model = bundle.model
    try:
        calibration = calibration_from_dict(entry["calibration"])
        changes: dict[str, Any] = {"calibration": calibration}
        if calibration.noised is not None:
            changes = {"noised_calibrations": (calibration, *model.noised_calibrations)}  # the first that fits is taken
        if entry["level_weights"] is not None:
            changes["level_weights"] = LevelWeights.from_dict(entry["level_weights"])
        if entry["first"] is not None:
            first = PlanConfig(draws=1, first=entry["first"]).first
            changes["defaults"] = dataclasses.replace(model.defaults, first=first)
    except FastdcError as error:
        raise InputError(f"{path}: {error}") from None
    return dataclasses.replace(bundle, model=dataclasses.replace(model, **changes))


def _network(bundle: Bundle) -> str:
    digest: str = bundle.manifest["files"][DENOISER]["sha256"]
    return digest


def _checked(entry: Any, path: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or entry.get("format") != FORMAT:
        raise InputError(f'{path} is not a calibration: expected "format": "{FORMAT}", as of fastdc calibrate --out')
    version = entry.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise InputError(f"{path} has format version {version!r:.80}, this fastdc reads {VERSION}")
    if set(entry) != _FIELDS:
        odd = min(set(entry) ^ _FIELDS)
        raise InputError(f"{path} {'lacks' if odd in _FIELDS else 'has an unknown'} field {odd!r:.80}")
    return entry
