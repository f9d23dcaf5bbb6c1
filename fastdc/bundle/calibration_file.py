"""Calibrations in separate files, for models that must not change.

The JSON holds what the manifest would hold:

    {"format": "fastdc-calibration", "version": 3, "model": name, "network": sha256 of denoiser.onnx,
     "conditions": sha256 of the prompts or null, "calibration": {...}, "level_weights": {...} or null,
     "defaults": {...}}

docs/bundle.md describes the last three fields; null, and fields of the defaults that are not there, keep the model's
value. A limit is valid for one network and one set of prompts only, so their hashes are compared; version 1 did not
state that of the prompts, and versions 1 and 2 held no default but "first". Because a file may come from anywhere, it
is checked as strictly as a manifest.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdc.bundle.folder import Bundle
from fastdc.bundle.format import DENOISER, MAX_MANIFEST_BYTES
from fastdc.bundle.manifest import parse_defaults
from fastdc.diffusion import LevelWeights
from fastdc.rules import Calibration, calibration_from_dict
from fastdc.support import FastdcError, InputError, checks, shown, strict_json, write_whole

FORMAT = "fastdc-calibration"
VERSION = 3

_FIELDS = {"format", "version", "model", "network", "conditions", "calibration", "level_weights", "defaults"}


def write_calibration_file(
    path: str | os.PathLike[str],
    bundle: Bundle,
    calibration: Calibration,
    *,
    level_weights: LevelWeights | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Writes a calibration of a bundle's model to a file of its own. The complete file is written, or nothing.

    Args:
        path: The JSON file to write.
        bundle: The bundle that was calibrated.
        calibration: The calibration.
        level_weights: Fitted level weights; None: the file keeps the model's.
        defaults: Values of fields of the manifest's ``defaults``, such as {"first": [0.8]}, with which the calibrated
            plan is that of the model; others, and None: the file keeps the model's.

    Raises:
        InputError: The file cannot be written.

    Example:
        >>> from fastdc.bundle import find_model, with_calibration_file, write_calibration_file
        >>> digits = fastdc.load_bundle(find_model("digits"))
        >>> write_calibration_file(folder / "race.json", digits, digits.model.calibration)
        >>> with_calibration_file(digits, folder / "race.json") == digits
        True
    """
    entry = {
        "format": FORMAT,
        "version": VERSION,
        "model": bundle.name,
        "network": _network(bundle),
        "conditions": _conditions(bundle),
        "calibration": calibration.to_dict(),
        "level_weights": None if level_weights is None else level_weights.to_dict(),
        "defaults": dict(defaults or {}),
    }
    target = Path(path)
    try:
        write_whole(target, (json.dumps(entry, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from None


def with_calibration_file(bundle: Bundle, path: str | os.PathLike[str]) -> Bundle:
    """The bundle with the calibration of a file. The bundle's folder does not change.

    Args:
        bundle: The bundle to calibrate.
        path: A file that ``write_calibration_file`` or ``fastdc calibrate --out`` wrote.

    Raises:
        InputError: The file cannot be read, is not a calibration, has a newer format, or calibrates another network or
            other prompts.

    Example:
        >>> from fastdc.bundle import find_model, with_calibration_file, write_calibration_file
        >>> digits = fastdc.load_bundle(find_model("digits"))
        >>> write_calibration_file(folder / "race.json", digits, digits.model.calibration)
        >>> with_calibration_file(digits, folder / "race.json").model.calibration.draws
        128
    """
    entry = _entry(path)
    if entry["network"] != _network(bundle):
        raise InputError(
            f"{path} calibrates another network, of model {shown(entry['model'])}: calibrate {bundle.name} itself"
        )
    if entry["conditions"] != _conditions(bundle):
        raise InputError(f"{path} calibrates other prompts: calibrate {bundle.name} with the prompts of this run")
    model = bundle.model
    try:
        model = model.raced(calibration_from_dict(entry["calibration"]))
        changes: dict[str, Any] = {}
        if entry["level_weights"] is not None:
            changes["level_weights"] = LevelWeights.from_dict(entry["level_weights"])
        if entry["defaults"]:
            own = dataclasses.asdict(model.defaults)
            lists = {name: list(own[name]) for name in ("levels", "first") if own[name] is not None}
            changes["defaults"] = parse_defaults({**own, **lists, **entry["defaults"]})
    except FastdcError as error:
        raise InputError(f"{path}: {error}") from None
    return dataclasses.replace(bundle, model=dataclasses.replace(model, **changes))


def calibration_in(path: str | os.PathLike[str]) -> Calibration:
    """The calibration of a file, without a model that it fits.

    Args:
        path: A file that ``write_calibration_file`` or ``fastdc calibrate --out`` wrote.

    Raises:
        InputError: The file cannot be read, is not a calibration, or has a newer format.

    Example:
        >>> from fastdc.bundle import calibration_in, find_model, write_calibration_file
        >>> digits = fastdc.load_bundle(find_model("digits"))
        >>> write_calibration_file(folder / "race.json", digits, digits.model.calibration)
        >>> calibration_in(folder / "race.json") == digits.model.calibration
        True
    """
    return calibration_from_dict(_entry(path)["calibration"])


def _entry(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file, whose names and version are checked."""
    file = Path(path)
    try:
        if not file.is_file():  # neither a folder nor an endless device
            raise InputError(f"{path} is not a file: expected a calibration written by fastdc calibrate --out")
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise InputError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return _checked(strict_json(content, file), path)


def _network(bundle: Bundle) -> str:
    digest: str = bundle.manifest["files"][DENOISER]["sha256"]
    return digest


def _conditions(bundle: Bundle) -> str | None:
    """sha256 of the prompts and their classes; None if each condition is a class, which the network fixes."""
    model = bundle.model
    if not model.prompts:
        return None
    return hashlib.sha256(json.dumps([model.prompts, model.class_of]).encode()).hexdigest()


def _checked(entry: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    if not isinstance(entry, dict) or entry.get("format") != FORMAT:
        raise InputError(
            f'{path} is not a calibration: expected "format": "{FORMAT}", as fastdc calibrate --out writes'
        )
    version: Any = entry.get("version")
    if not checks.is_whole(version) or not 1 <= version <= VERSION:
        raise InputError(f"{path} has format version {shown(version)}, this fastdc reads {VERSION}")
    content = {"conditions": None, **entry} if version == 1 else dict(entry)
    if version < 3 and "first" in content:
        first = content.pop("first")
        content["defaults"] = {} if first is None else {"first": first}
    if set(content) != _FIELDS:
        odd = min(set(content) ^ _FIELDS)
        raise InputError(f"{path} {'lacks' if odd in _FIELDS else 'has an unknown'} field {shown(odd)}")
    if not isinstance(content["defaults"], dict):
        raise InputError(f"{path}: defaults must be an object, got {shown(content['defaults'])}")
    return content
