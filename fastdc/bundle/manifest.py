"""The manifest of a bundle: JSON that says what a model is, checked field by field before it is used.

docs/bundle.md describes every field. Names that leave the folder, absurd shapes, unknown defaults and newer format
versions are refused with one line that names the field.
"""

import math
import re
from pathlib import Path
from typing import Any

from fastdc.bundle.format import (
    CLASSES,
    DENOISER,
    ENCODER,
    FORMAT,
    MANIFEST,
    MAX_CLASSES,
    MAX_FIRST,
    MAX_NOISED,
    MAX_PIXELS,
    PRECISIONS,
    PREFIX,
    REST,
    VERSION,
)
from fastdc.bundle.haar import transform_from_dict
from fastdc.bundle.model import Defaults, Model
from fastdc.bundle.seen import SeenImages
from fastdc.diffusion import LOSSES, MAX_DRAWS, WEIGHTINGS, LevelWeights, parameterization_from_dict, schedule_from_dict
from fastdc.rules import Calibration, calibration_from_dict
from fastdc.support import BundleError, InputError, checks, shown

# Neither hidden nor a path on any system: no separators, colons or control characters, and not too long.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def parse_manifest(where: Path, manifest: Any, digest: str) -> Model:
    """The model that a manifest describes, after checking every field.

    Args:
        where: The manifest's path, for messages.
        manifest: The manifest as read from JSON.
        digest: sha256 of the file, the model's identity.

    Raises:
        BundleError: A field is missing or has an invalid value; the message names it.

    Example:
        >>> from fastdc.bundle import find_model, load_bundle, parse_manifest
        >>> parse_manifest(folder, load_bundle(find_model("digits")).manifest, "").image_shape
        (1, 8, 8)
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f'{where} is not a bundle manifest: expected "format": "{FORMAT}"')
    version: Any = manifest.get("version")
    if not checks.is_whole(version) or version < 1:
        raise BundleError(f"{where}: version must be a positive whole number, got {shown(version)}")
    if version > VERSION:
        raise BundleError(f"{where} has format version {version}, this fastdc reads up to {VERSION}: upgrade fastdc")
    try:
        return _model(manifest, digest)
    except (BundleError, InputError) as error:
        raise BundleError(f"{where}: {error}") from None


def _model(manifest: dict[str, Any], digest: str) -> Model:
    image = _field(manifest, "image", dict)
    class_names = _class_names(manifest)
    null_class = manifest.get("null_class")
    if null_class is not None and (not checks.is_whole(null_class) or not 0 <= null_class <= MAX_CLASSES):
        raise BundleError(f"null_class must be a class index or null, got {shown(null_class)}")
    _check_files(manifest)
    prompts, class_of = _prompts(manifest, len(class_names))
    for optional, kind in (("description", str), ("network", dict), ("provenance", dict), ("cost", dict)):
        if manifest.get(optional) is not None:
            _field(manifest, optional, kind)
    name = _field(manifest, "name", str)
    if not _is_text(name):
        raise BundleError(f"name must be text without control characters, got {shown(name)}")
    return Model(
        name=name,
        image_shape=_shape("image.shape", _field(image, "shape", list, inside="image.")),
        value_range=_value_range("image.range", _field(image, "range", list, inside="image.")),
        window=None
        if image.get("window") is None
        else _value_range("image.window", _field(image, "window", list, inside="image.")),
        fit="crop" if image.get("fit") is None else _field(image, "fit", str, inside="image."),
        transform=None
        if manifest.get("transform") is None
        else transform_from_dict(_field(manifest, "transform", dict)),
        class_names=class_names,
        null_class=null_class,
        schedule=schedule_from_dict(_field(manifest, "schedule", dict)),
        parameterization=parameterization_from_dict(_field(manifest, "parameterization", dict)),
        defaults=parse_defaults(_field(manifest, "defaults", dict)),
        identity=digest,
        calibration=_calibration(manifest.get("calibration")),
        noised_calibrations=_noised_calibrations(manifest.get("noised_calibrations", [])),
        level_weights=_level_weights(manifest.get("level_weights")),
        latent_shape=_latent(manifest),
        prompts=prompts,
        class_of=class_of,
        class_counts=_class_counts(manifest.get("training"), len(class_names)),
    )


def _is_text(text: str) -> bool:
    """Whether a name can be printed on one line: it is encodable, without line ends and terminal controls."""
    return not any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in text)


def _field(entry: dict[str, Any], name: str, kind: type[Any], *, inside: str = "") -> Any:
    """The value of a field; `inside` is the path of the object that holds it, for the message."""
    value = entry.get(name)
    if not isinstance(value, kind):
        wanted = {"dict": "an object", "list": "a list", "str": "a string"}[kind.__name__]
        raise BundleError(f"{inside}{name} must be {wanted}, got {'nothing' if value is None else repr(value)[:60]}")
    return value


def _class_names(manifest: dict[str, Any]) -> tuple[str, ...]:
    names = _field(manifest, "classes", list)
    if not 1 <= len(names) <= MAX_CLASSES or not all(isinstance(name, str) for name in names):
        raise BundleError(f"classes must be 1 to {MAX_CLASSES} names, got {len(names)} entries")
    for name in names:
        if not _is_text(name):
            raise BundleError(f"classes must be text without control characters, got {shown(name)}")
    return tuple(names)


def _shape(name: str, shape: list[Any]) -> tuple[int, int, int]:
    if len(shape) != 3 or not all(checks.is_whole(extent) and extent > 0 for extent in shape):
        raise BundleError(f"{name} must be [channels, height, width], got {shown(shape)}")
    if math.prod(shape) > MAX_PIXELS:
        raise BundleError(f"{name} {shape} has more than {MAX_PIXELS} values")
    return (shape[0], shape[1], shape[2])


def _latent(manifest: dict[str, Any]) -> tuple[int, int, int] | None:
    """Shape of the latents; None if the network works on images. Latents need an encoder."""
    if manifest.get("latent") is None:
        return None
    shape = _shape("latent.shape", _field(_field(manifest, "latent", dict), "shape", list, inside="latent."))
    if ENCODER not in manifest["files"]:
        raise BundleError(f"latent.shape is given, but files has no {ENCODER} to make latents")
    return shape


def _prompts(manifest: dict[str, Any], n_classes: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The prompts and the class of each."""
    if manifest.get("prompts") is None:
        return (), ()
    prompts, class_of = _field(manifest, "prompts", list), _field(manifest, "class_of", list)
    if not 1 <= len(prompts) <= MAX_CLASSES or not all(isinstance(text, str) and _is_text(text) for text in prompts):
        raise BundleError(f"prompts must be 1 to {MAX_CLASSES} texts without control characters")
    if not all(checks.is_whole(k) and 0 <= k < n_classes for k in class_of):
        raise BundleError(f"class_of must hold class indices in [0, {n_classes})")
    return tuple(prompts), tuple(class_of)


def _class_counts(training: Any, n_classes: int) -> tuple[int, ...] | None:
    """The number of training images of each class, where the manifest knows it."""
    if training is not None and not isinstance(training, dict):
        raise BundleError(f"training must be an object, got {shown(training)}")
    counts = None if training is None else training.get("class_counts")
    SeenImages.from_dict(None if training is None else training.get("seen"))  # checked here, read where it is needed
    if counts is None:
        return None
    if not isinstance(counts, list) or len(counts) != n_classes or not any(counts):
        raise BundleError(f"training.class_counts must be {n_classes} numbers of images, got {shown(counts)}")
    return tuple(checks.whole("training.class_counts", count, low=0) for count in counts)


def _value_range(name: str, bounds: list[Any]) -> tuple[float, float]:
    if len(bounds) != 2 or not all(map(checks.is_finite, bounds)) or not bounds[0] < bounds[1]:
        raise BundleError(f"{name} must be [low, high] with low < high, got {shown(bounds)}")
    return (float(bounds[0]), float(bounds[1]))


def parse_defaults(entry: dict[str, Any]) -> Defaults:
    """The defaults that a manifest, or a calibration file, describes.

    Raises:
        BundleError: A field is unknown or has an invalid value; the message names it.
        InputError: The same.
    """
    unknown = set(entry) - set(Defaults.__dataclass_fields__)
    if unknown:
        raise BundleError(f"defaults has no option {shown(sorted(unknown)[0])}")
    levels = entry.get("levels")
    if levels is not None:
        if not (isinstance(levels, list) and len(levels) == 2 and all(map(checks.is_finite, levels))):
            raise BundleError(f"defaults.levels must be [low, high] or null, got {shown(levels)}")
        if not 0 < levels[0] < levels[1]:
            raise BundleError(f"defaults.levels must satisfy 0 < low < high, got {levels[0]:g} and {levels[1]:g}")
    first = entry.get("first", [])
    if not isinstance(first, list) or not all(checks.is_finite(ratio) and ratio > 0 for ratio in first):
        raise BundleError(f"defaults.first must be a list of positive numbers, got {shown(first)}")
    if len(first) > MAX_FIRST:
        raise BundleError(f"defaults.first must hold at most {MAX_FIRST} numbers, got {len(first)}")
    band = None if levels is None else (float(levels[0]), float(levels[1]))
    defaults = Defaults(**{**entry, "levels": band, "first": tuple(map(float, first))})
    checks.whole("defaults.draws", defaults.draws, high=MAX_DRAWS)
    checks.one_of("defaults.weighting", defaults.weighting, WEIGHTINGS)
    checks.one_of("defaults.loss", defaults.loss, LOSSES)
    checks.positive("defaults.temperature", defaults.temperature)
    return defaults


def _calibration(entry: Any) -> Calibration | None:
    """A calibration of the race. If its plan names options that this version does not know, it fits no run."""
    return None if entry is None else calibration_from_dict(entry)


def _noised_calibrations(entries: Any) -> tuple[Calibration, ...]:
    """Calibrations of the race on noisy images, one per method and noise."""
    if not isinstance(entries, list) or len(entries) > MAX_NOISED:
        raise BundleError(f"noised_calibrations must be a list of at most {MAX_NOISED}, got {shown(entries)}")
    found = tuple(filter(None, map(_calibration, entries)))
    if len(found) < len(entries) or any(calibration.noised is None for calibration in found):
        raise BundleError("each calibration in noised_calibrations must name the method and noise of its plan")
    return found


def _level_weights(entry: Any) -> LevelWeights | None:
    try:
        return None if entry is None else LevelWeights.from_dict(entry)
    except InputError as error:
        raise BundleError(f"level_weights: {error}") from None


def _check_files(manifest: dict[str, Any]) -> None:
    files = _field(manifest, "files", dict)
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(f"files: {shown(name, 140)} is not a plain file name inside the bundle")
        if not isinstance(entry, dict) or not checks.is_whole(entry.get("bytes")) or entry["bytes"] < 0:
            raise BundleError(f"files: {name} needs its size in bytes")
        digest = entry.get("sha256")
        if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise BundleError(f"files: {name} needs its sha256")
    if DENOISER not in files:
        raise BundleError(f"files: {DENOISER} is missing")
    if (PREFIX in files or CLASSES in files) and REST not in files:
        raise BundleError(f"files: {REST} is missing, and the other parts of the denoiser are useless without it")
    _check_cost(manifest.get("cost"), parts=REST in files)
    checks.one_of("precision", manifest.get("precision", "float32"), PRECISIONS)


def _check_cost(cost: Any, *, parts: bool) -> None:
    """Checks the numbers of operations and weights, if there are any; with `parts`, those of the parts too."""
    if cost is None:
        return
    needed = ("parameters", "flops", *(("pair_flops", "class_flops", "cell_flops") if parts else ()))
    for name in needed:
        value = cost.get(name) if isinstance(cost, dict) else None
        if not checks.is_finite(value) or value < (name == "flops"):
            raise BundleError(f"cost.{name} must be a number of operations or weights, got {shown(value, 60)}")
