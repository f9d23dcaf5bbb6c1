"""Bundles: a model as a folder that can be verified and holds nothing executable.

A bundle is ``fastdc.json`` (the manifest) beside the files it names with size and sha256: ``denoiser.onnx``, the
network F(sample, timestep, class_labels), and optionally ``weights.safetensors`` for the torch backend. docs/bundle.md
states every field. Nothing is unpickled. Sizes are checked on loading, hashes on every read, before a byte is used.
Names that leave the folder, absurd shapes and newer format versions are refused with one line.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdc.calibration import Calibration, calibration_from_dict
from fastdc.exceptions import BundleError, InputError
from fastdc.files import write_whole
from fastdc.level_weights import LevelWeights
from fastdc.model import Defaults, Model
from fastdc.ops import LOSSES
from fastdc.parameterization import parameterization_from_dict
from fastdc.plan import MAX_DRAWS
from fastdc.schedules import schedule_from_dict
from fastdc.weighting import WEIGHTINGS

FORMAT = "fastdc-bundle"
VERSION = 1
MANIFEST = "fastdc.json"
DENOISER = "denoiser.onnx"
WEIGHTS = "weights.safetensors"

MAX_MANIFEST_BYTES = 64 * 2**20
MAX_PIXELS = 2**28
MAX_CLASSES = 10_000_000
MAX_FIRST = 10_000
MAX_NOISED = 256

# Neither hidden nor a path, on any system: no separators, colons, control characters, nor names that are too long.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_INTEGER = 2**63  # no field needs more, and floats overflow on integers that Python alone can hold


@dataclass(frozen=True)
class Bundle:
    """A verified manifest and the folder it describes.

    Attributes:
        path: The folder.
        model: What the manifest says of the model.
        manifest: The manifest as read.
    """

    path: Path
    model: Model
    manifest: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The model's short name."""
        return self.model.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the model's images."""
        return self.model.image_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.model.class_names

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files beside the manifest."""
        return tuple(self.manifest["files"])

    def read(self, name: str) -> bytes:
        """The content of a file, after checking its sha256.

        Raises:
            BundleError: The bundle has no such file, or its content is not what the manifest says.
        """
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise BundleError(f"bundle {self.name!r} at {self.path} has no {name}: it holds {', '.join(self.files)}")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise BundleError(f"{self.path / name} is corrupt: its sha256 is not the one in {MANIFEST}")
        return content

    def verify(self) -> None:
        """Reads and checks every file.

        Raises:
            BundleError: A file is not what the manifest says.
        """
        for name in self.files:
            self.read(name)


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Reads and checks a bundle's manifest and the sizes of its files.

    Args:
        path: The bundle's folder.

    Raises:
        BundleError: The folder is not a bundle, is truncated or corrupt, hostile, or needs a newer fastdc.
    """
    folder = Path(path)
    try:
        content = _read_manifest(folder)
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}") from None
    manifest = strict_json(content, folder / MANIFEST)
    bundle = _parse(folder, manifest, hashlib.sha256(content).hexdigest())
    for name, entry in manifest["files"].items():
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file} is missing or not a plain file")
        if file.stat().st_size != entry["bytes"]:
            raise BundleError(f"{file} is truncated or changed: {file.stat().st_size} bytes, expected {entry['bytes']}")
    return bundle


def write_bundle(
    path: str | os.PathLike[str], manifest: dict[str, Any], files: dict[str, bytes], *, overwrite: bool = False
) -> Bundle:
    """Writes a bundle: all of it or nothing.

    Args:
        path: The folder to make.
        manifest: The manifest without "format", "version" and "files"; see docs/bundle.md.
        files: Content of each file by name, :data:`DENOISER` among them.
        overwrite: Replace an existing bundle. A folder that is not a bundle is never touched.

    Raises:
        BundleError: The manifest is not valid, or the folder exists.
    """
    folder = Path(path)
    if folder.exists():
        if not (folder / MANIFEST).is_file():
            raise BundleError(f"{folder} exists and is not a bundle: choose another path")
        if not overwrite:
            raise BundleError(f"{folder} exists: choose another path or allow overwriting it")
        _check_replaceable(folder)
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    whole = {"format": FORMAT, "version": VERSION, **manifest, "files": entries}
    content = _encode(whole, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, data in files.items():
            (staging / name).write_bytes(data)
        (staging / MANIFEST).write_bytes(content)
        staging.chmod(0o755)
        if folder.exists():
            _replace(folder, staging)
        else:
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return load_bundle(folder)


def with_calibration(
    bundle: Bundle | str | os.PathLike[str],
    calibration: Calibration,
    *,
    level_weights: LevelWeights | None = None,
    first: Sequence[float] | None = None,
) -> Bundle:
    """Stores a calibration in a bundle's manifest, in one step; the other files are not touched.

    The manifest's sha256, the model's identity, changes with it.

    Args:
        bundle: The bundle, or its folder.
        calibration: Takes the place of the one that is there; one for noisy images, of that for the same method and
            noise.
        level_weights: Likewise; None keeps what is there.
        first: New ``defaults.first``; None keeps what is there. A calibration whose plan differs from the defaults is
            used only where a run asks for that plan.

    Returns:
        The bundle as it is now.

    Raises:
        BundleError: It is not a valid bundle, was changed since it was loaded, or a value is out of range.
        OSError: The folder cannot be written to; the manifest is then the old one.
    """
    current = load_bundle(bundle.path if isinstance(bundle, Bundle) else bundle)
    if isinstance(bundle, Bundle) and current.model.identity != bundle.model.identity:
        raise BundleError(f"{bundle.path / MANIFEST} was changed since it was loaded: load the bundle again")
    changes: dict[str, Any] = {"calibration": calibration.to_dict()}
    if calibration.noised:
        kept = [other for other in current.model.noised_calibrations if other.noised != calibration.noised]
        together = sorted([*kept, calibration], key=lambda other: other.noised or ("", 0.0))
        changes = {"noised_calibrations": [other.to_dict() for other in together]}
    if level_weights is not None:
        changes["level_weights"] = level_weights.to_dict()
    if first is not None:
        changes["defaults"] = {**current.manifest["defaults"], "first": list(first)}
    content = _encode({**current.manifest, **changes}, current.path)
    write_whole(current.path / MANIFEST, content)
    return load_bundle(current.path)


def _encode(manifest: dict[str, Any], folder: Path) -> bytes:
    """The bytes of a manifest that was checked field by field, as a reader would."""
    try:
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        content = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"the manifest of {folder} cannot be written as JSON: {error}") from None
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"the manifest of {folder} is larger than {MAX_MANIFEST_BYTES} bytes")
    _parse(folder, strict_json(content, folder / MANIFEST), "")
    return content


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{folder} is not a bundle: expected a folder with {MANIFEST}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    return path.read_bytes()


def strict_json(content: bytes, path: Path) -> Any:
    """JSON as it is defined: no NaN or Infinity, which Python's reader lets through, and no integers beyond floats.

    Args:
        content: Of a file.
        path: Its name, for the message.

    Raises:
        BundleError: It is not.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    def integer(digits: str) -> int:
        value = int(digits) if len(digits) < 32 else _MAX_INTEGER + 1
        if abs(value) > _MAX_INTEGER:
            raise ValueError(f"the number {digits[:20]}... is too large")
        return value

    try:
        return json.loads(content, parse_constant=constant, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}") from None


def _check_replaceable(folder: Path) -> None:
    """Refuses to overwrite a folder in which anything but a bundle would be lost."""
    try:
        known = {MANIFEST, DENOISER, WEIGHTS, *strict_json(_read_manifest(folder), folder / MANIFEST)["files"]}
    except (BundleError, OSError, KeyError, TypeError):  # a bundle that is itself broken may be replaced
        known = {MANIFEST, DENOISER, WEIGHTS}
    for entry in folder.iterdir():
        if entry.name not in known or entry.is_dir():
            raise BundleError(f"{folder} also holds {entry.name!r}, which is not the bundle's: choose another path")


def _replace(folder: Path, staging: Path) -> None:
    """Puts a complete bundle where the old one stands; the old one returns if that fails."""
    retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    old = retired / folder.name
    try:
        folder.rename(old)
        staging.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        retired.rmdir()
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _parse(folder: Path, manifest: Any, digest: str) -> Bundle:
    """Checks every field of a manifest; the errors name the field."""
    where = folder / MANIFEST
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f'{where} is not a bundle manifest: expected "format": "{FORMAT}"')
    version = manifest.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{where}: version must be a positive whole number, got {version!r:.80}")
    if version > VERSION:
        raise BundleError(f"{where} has format version {version}, this fastdc reads up to {VERSION}: upgrade fastdc")
    try:
        image = _field(manifest, "image", dict)
        class_names = _class_names(manifest)
        null_class = manifest.get("null_class")
        if null_class is not None and (not _is_int(null_class) or not 0 <= null_class <= MAX_CLASSES):
            raise BundleError(f"null_class must be a class index or null, got {null_class!r:.80}")
        _check_files(_field(manifest, "files", dict))
        for optional, kind in (("description", str), ("network", dict), ("provenance", dict)):
            if manifest.get(optional) is not None:
                _field(manifest, optional, kind)
        name = _field(manifest, "name", str)
        if not _is_text(name):
            raise BundleError(f"name must be text without control characters, got {name!r:.80}")
        model = Model(
            name=name,
            image_shape=_image_shape(_field(image, "shape", list)),
            value_range=_value_range(_field(image, "range", list)),
            class_names=class_names,
            null_class=null_class,
            schedule=schedule_from_dict(_field(manifest, "schedule", dict)),
            parameterization=parameterization_from_dict(_field(manifest, "parameterization", dict)),
            defaults=_defaults(_field(manifest, "defaults", dict)),
            identity=digest,
            calibration=_calibration(manifest.get("calibration")),
            noised_calibrations=_noised_calibrations(manifest.get("noised_calibrations", [])),
            level_weights=_level_weights(manifest.get("level_weights")),
        )
        return Bundle(path=folder, model=model, manifest=manifest)
    except (BundleError, InputError) as error:
        raise BundleError(f"{where}: {error}") from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(text: str) -> bool:
    """Whether a name can be printed in a line: it is encodable, and can neither end the line nor steer a terminal."""
    return not any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in text)


def _field(entry: dict[str, Any], name: str, kind: type[Any]) -> Any:
    value = entry.get(name)
    if not isinstance(value, kind):
        wanted = {"dict": "an object", "list": "a list", "str": "a string"}[kind.__name__]
        raise BundleError(f"{name} must be {wanted}, got {'nothing' if value is None else repr(value)[:60]}")
    return value


def _class_names(manifest: dict[str, Any]) -> tuple[str, ...]:
    names = _field(manifest, "classes", list)
    if not 1 <= len(names) <= MAX_CLASSES or not all(isinstance(name, str) for name in names):
        raise BundleError(f"classes must be 1 to {MAX_CLASSES} names, got {len(names)} entries")
    for name in names:
        if not _is_text(name):
            raise BundleError(f"classes must be text without control characters, got {name!r:.80}")
    return tuple(names)


def _image_shape(shape: list[Any]) -> tuple[int, int, int]:
    if len(shape) != 3 or not all(_is_int(extent) and extent > 0 for extent in shape):
        raise BundleError(f"image.shape must be [channels, height, width], got {shape!r:.80}")
    if math.prod(shape) > MAX_PIXELS:
        raise BundleError(f"image.shape {shape} has more than {MAX_PIXELS} values")
    return (shape[0], shape[1], shape[2])


def _value_range(bounds: list[Any]) -> tuple[float, float]:
    if len(bounds) != 2 or not all(_is_number(bound) for bound in bounds) or not bounds[0] < bounds[1]:
        raise BundleError(f"image.range must be [low, high] with low < high, got {bounds!r:.80}")
    return (float(bounds[0]), float(bounds[1]))


def _defaults(entry: dict[str, Any]) -> Defaults:
    unknown = set(entry) - set(Defaults.__dataclass_fields__)
    if unknown:
        raise BundleError(f"defaults has no option {sorted(unknown)[0]!r}")
    levels = entry.get("levels")
    if levels is not None:
        if not (isinstance(levels, list) and len(levels) == 2 and all(map(_is_number, levels))):
            raise BundleError(f"defaults.levels must be [low, high] or null, got {levels!r:.80}")
        if not 0 < levels[0] < levels[1]:
            raise BundleError(f"defaults.levels must satisfy 0 < low < high, got {levels}")
    first = entry.get("first", [])
    if not isinstance(first, list) or not all(_is_number(ratio) and ratio > 0 for ratio in first):
        raise BundleError(f"defaults.first must be a list of positive numbers, got {first!r:.80}")
    if len(first) > MAX_FIRST:
        raise BundleError(f"defaults.first must hold at most {MAX_FIRST} numbers, got {len(first)}")
    band = None if levels is None else (float(levels[0]), float(levels[1]))
    defaults = Defaults(**{**entry, "levels": band, "first": tuple(map(float, first))})
    if not _is_int(defaults.draws) or not 1 <= defaults.draws <= MAX_DRAWS:
        raise BundleError(f"defaults.draws must be a whole number from 1 to {MAX_DRAWS}, got {defaults.draws!r:.80}")
    if defaults.weighting not in WEIGHTINGS or defaults.loss not in LOSSES:
        raise BundleError(
            f"defaults name an unknown weighting or loss: {defaults.weighting!r:.60}, {defaults.loss!r:.60}"
        )
    if not _is_number(defaults.temperature) or not defaults.temperature > 0:
        raise BundleError(f"defaults.temperature must be positive, got {defaults.temperature!r:.80}")
    return defaults


def _calibration(entry: Any) -> Calibration | None:
    """Of the race. Its plan may name options that this version does not know: then it fits no run."""
    return None if entry is None else calibration_from_dict(entry)


def _noised_calibrations(entries: Any) -> tuple[Calibration, ...]:
    """Of the race on noisy images, one for each method and noise."""
    if not isinstance(entries, list) or len(entries) > MAX_NOISED:
        raise BundleError(f"noised_calibrations must be a list of at most {MAX_NOISED}, got {entries!r:.80}")
    found = tuple(filter(None, map(_calibration, entries)))
    if len(found) < len(entries) or any(calibration.noised is None for calibration in found):
        raise BundleError("each calibration in noised_calibrations must name the method and noise of its plan")
    return found


def _level_weights(entry: Any) -> LevelWeights | None:
    try:
        return None if entry is None else LevelWeights.from_dict(entry)
    except InputError as error:
        raise BundleError(f"level_weights: {error}") from None


def _check_files(files: dict[str, Any]) -> None:
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(f"files: {name!r:.140} is not a plain file name inside the bundle")
        if not isinstance(entry, dict) or not _is_int(entry.get("bytes")) or entry["bytes"] < 0:
            raise BundleError(f"files: {name} needs its size in bytes")
        digest = entry.get("sha256")
        if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise BundleError(f"files: {name} needs its sha256")
    if DENOISER not in files:
        raise BundleError(f"files: {DENOISER} is missing")
