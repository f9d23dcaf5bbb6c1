"""Bundles: a model as a folder that can be verified and holds nothing executable.

A bundle holds the manifest ``fastdc.json`` and the files that it lists with size and sha256. ``denoiser.onnx``, the
network F(sample, timestep, class_labels), is required. Its parts, weights for the torch backend, an image encoder,
tables of conditions and a text encoder are optional; docs/bundle.md describes each. Nothing is unpickled. Sizes are
checked on loading; the hash of a file is checked before any of its bytes are used.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdc.bundle.format import FILES, FORMAT, MANIFEST, MAX_MANIFEST_BYTES, version_of_format
from fastdc.bundle.manifest import parse_manifest
from fastdc.bundle.model import Model
from fastdc.bundle.place import bundle_place, put_in_place, recover
from fastdc.bundle.seen import SeenImages
from fastdc.bundle.shipped import find_model, folder_of, place_of
from fastdc.diffusion import LevelWeights
from fastdc.rules import Calibration
from fastdc.support import BundleError, Float32, strict_json, write_whole


@dataclass(frozen=True)
class Bundle:
    """A verified manifest and the folder it describes.

    Attributes:
        path: The folder.
        model: The model that the manifest describes.
        manifest: The manifest as read.
        tables: Condition tables of other prompts, used instead of the bundle's own; None: the bundle's.
        digest: sha256 of the manifest as read.
    """

    path: Path
    model: Model
    manifest: dict[str, Any] = field(repr=False)
    tables: Mapping[str, Float32] | None = field(default=None, repr=False)
    digest: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_place", place_of(self.path))  # now: the working folder may change

    def __reduce__(self) -> Any:
        """The place and the digest: a pickle holds no file, and is read only where the bundle is still the same."""
        other = None if self.tables is None else (self.model, dict(self.tables))
        return _again, (vars(self)["_place"], self.digest, other)

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
        """Names of all files except the manifest."""
        return tuple(self.manifest["files"])

    @property
    def flops(self) -> float | None:
        """Floating-point operations per evaluation, as stated in the manifest; None if it does not state them."""
        cost = self.manifest.get("cost")
        return None if cost is None else float(cost["flops"])

    @property
    def seen(self) -> SeenImages:
        """The images that it was trained on, and those that chose its checkpoint or its plan, where they are known."""
        return SeenImages.from_dict((self.manifest.get("training") or {}).get("seen"))

    def read(self, name: str) -> bytes:
        """The content of a file, after checking its sha256.

        Args:
            name: Name of the file in the bundle.

        Raises:
            BundleError: The bundle does not list the file, or its content differs from the manifest's sha256.

        Example:
            >>> from fastdc.bundle import find_model
            >>> len(fastdc.load_bundle(find_model("digits-mlp")).read("weights.safetensors")) > 10_000
            True
        """
        digest = self._digest(name)
        try:
            with (self.path / name).open("rb") as stream:  # the file may have grown since it was checked
                content = stream.read(self.manifest["files"][name]["bytes"] + 1)
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error.strerror}") from None
        self._check(name, hashlib.sha256(content).hexdigest() == digest)
        return content

    def file(self, name: str) -> Path:
        """The path of a file, after checking its sha256. Use it for large files, which can be mapped instead of read.

        Args:
            name: Name of the file in the bundle.

        Raises:
            BundleError: The bundle does not list the file, or its content differs from the manifest's sha256.

        Example:
            >>> from fastdc.bundle import find_model
            >>> fastdc.load_bundle(find_model("digits-mlp")).file("denoiser.onnx").name
            'denoiser.onnx'
        """
        digest = self._digest(name)
        try:
            with (self.path / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error.strerror}") from None
        self._check(name, found == digest)
        return self.path / name

    def verify(self) -> None:
        """Reads every file and checks its sha256.

        Raises:
            BundleError: The content of a file differs from the manifest's sha256.

        Example:
            >>> from fastdc.bundle import find_model
            >>> fastdc.load_bundle(find_model("digits-mlp")).verify()
        """
        for name in self.files:
            self.file(name)

    def _digest(self, name: str) -> str:
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise BundleError(f"bundle {self.name!r} at {self.path} has no {name}: it holds {', '.join(self.files)}")
        return str(entry["sha256"])

    def _check(self, name: str, equal: bool) -> None:
        if not equal:
            raise BundleError(f"{self.path / name} is corrupt: its sha256 is not the one in {MANIFEST}")


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Reads and checks a bundle's manifest and the sizes of its files.

    Args:
        path: The bundle's folder.

    Raises:
        InputError: The path is none.
        BundleError: The folder is not a bundle; it is truncated, corrupt or hostile; or it needs a newer fastdc.

    Example:
        >>> from fastdc.bundle import find_model
        >>> fastdc.load_bundle(find_model("digits")).image_shape
        (1, 8, 8)
    """
    folder = folder_of(path)
    try:
        recover(folder)
        content = _read_manifest(folder)
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}") from None
    manifest = strict_json(content, folder / MANIFEST)
    digest = hashlib.sha256(content).hexdigest()
    bundle = Bundle(folder, parse_manifest(folder / MANIFEST, manifest, digest), manifest, digest=digest)
    for name, entry in manifest["files"].items():
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file} is missing or not a plain file")
        if file.stat().st_size != entry["bytes"]:
            raise BundleError(f"{file} is truncated or changed: {file.stat().st_size} bytes, expected {entry['bytes']}")
    return bundle


def _again(place: str, digest: str, other: tuple[Model, dict[str, Float32]] | None) -> Bundle:
    """The bundle of a pickle.

    Args:
        place: Name of a shipped model, or a folder.
        digest: sha256 of its manifest, which has those of all files.
        other: Model and condition tables of other prompts, if there are any.

    Raises:
        BundleError: It is not there any more, or another one is.
    """
    bundle = load_bundle(find_model(place))
    if bundle.digest != digest:
        raise BundleError(
            f"{bundle.path} is not the bundle that was pickled: its sha256 is {bundle.digest[:12]}..., expected "
            f"{digest[:12]}...: load the model again"
        )
    return bundle if other is None else replace(bundle, model=other[0], tables=other[1])


def write_bundle(
    path: str | os.PathLike[str],
    manifest: dict[str, Any],
    files: Mapping[str, bytes | Path],
    *,
    overwrite: bool = False,
) -> Bundle:
    """Writes a complete bundle, or nothing if that fails. A kill at any moment leaves the old bundle or the new one.

    Args:
        path: The folder to make.
        manifest: The manifest without "format", "version" and "files"; docs/bundle.md describes its fields.
        files: Content of each file by name, or the path of a file to copy; ``denoiser.onnx`` is required.
        overwrite: Replace an existing bundle. A folder that is not a bundle is never touched.

    Returns:
        The bundle as read back.

    Raises:
        BundleError: The manifest is not valid, or the folder exists and may not be replaced.
        InputError: Another process is writing there.
        OSError: The folder cannot be written; an existing bundle is unchanged.

    Example:
        >>> from fastdc.bundle import find_model, write_bundle
        >>> old = fastdc.load_bundle(find_model("digits-mlp"))
        >>> write_bundle(folder / "mine", {**old.manifest, "name": "mine"}, {n: old.read(n) for n in old.files}).name
        'mine'
    """
    with bundle_place(path) as folder:
        if folder.exists():
            if not (folder / MANIFEST).is_file():
                raise BundleError(f"{path} exists and is not a bundle: choose another path")
            if not overwrite:
                raise BundleError(f"{path} exists: choose another path or allow overwriting it")
            _check_replaceable(folder)
        entries = {name: _entry(data) for name, data in files.items()}
        version = version_of_format({**manifest, "files": entries})
        content = _encode({"format": FORMAT, "version": version, **manifest, "files": entries}, Path(path))
        put_in_place(folder, {**files, MANIFEST: content})
        return load_bundle(path)


def with_calibration(
    bundle: Bundle | str | os.PathLike[str],
    calibration: Calibration,
    *,
    level_weights: LevelWeights | None = None,
    defaults: Mapping[str, Any] | None = None,
    seen: SeenImages | None = None,
) -> Bundle:
    """Stores a calibration in a bundle's manifest. The manifest is replaced in one step; other files are unchanged.

    The model's identity, the manifest's sha256, changes.

    Args:
        bundle: The bundle, or its folder.
        calibration: The new calibration. It replaces the stored one; a calibration for noisy images replaces the one
            for the same method, noise and denoiser.
        level_weights: New level weights; None keeps the stored ones.
        defaults: New values of fields of ``defaults``, such as {"first": [0.8]}; the others keep the stored ones. A
            calibration whose plan differs from the defaults is used only if a classification asks for that plan.
        seen: Images that have chosen the new defaults; they are added to those that the model has seen.

    Returns:
        The bundle with its new manifest.

    Raises:
        BundleError: The folder is not a valid bundle, it changed after `bundle` was loaded, or a value is out of range.
        InputError: Another process is writing there.
        OSError: The folder cannot be written; the manifest is unchanged.

    Example:
        >>> import shutil
        >>> from fastdc.bundle import find_model, with_calibration
        >>> mine = shutil.copytree(find_model("digits-mlp"), folder / "mine")
        >>> with_calibration(mine, clf.model.calibration).model.calibration == clf.model.calibration
        True
    """
    path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    with bundle_place(path):
        current = load_bundle(path)
        if isinstance(bundle, Bundle) and current.model.identity != bundle.model.identity:
            raise BundleError(f"{bundle.path / MANIFEST} was changed since it was loaded: load the bundle again")
        changes: dict[str, Any] = {"calibration": calibration.to_dict()}
        if calibration.noised:
            known, denoiser = current.model.noised_calibrations, calibration.plan.get("denoiser")
            kept = [one for one in known if one.noised != calibration.noised or one.plan.get("denoiser") != denoiser]
            together = sorted([*kept, calibration], key=lambda other: other.noised or ("", 0.0))
            changes = {"noised_calibrations": [other.to_dict() for other in together]}
        if level_weights is not None:
            changes["level_weights"] = level_weights.to_dict()
        if defaults is not None:
            changes["defaults"] = {**current.manifest["defaults"], **defaults}
        if seen is not None:
            both = current.seen.also(seen).to_dict()
            changes["training"] = {**(current.manifest.get("training") or {}), "seen": both}
        content = _encode({**current.manifest, **changes}, current.path)
        write_whole(current.path / MANIFEST, content)
        return load_bundle(current.path)


def _entry(data: bytes | Path) -> dict[str, Any]:
    """The entry of a file in the manifest."""
    if isinstance(data, bytes):
        return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    with data.open("rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": data.stat().st_size}


def _encode(manifest: dict[str, Any], folder: Path) -> bytes:
    """The bytes of a manifest, after checking every field as a reader does."""
    try:
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        content = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"the manifest of {folder} cannot be written as JSON: {error}") from None
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"the manifest of {folder} is larger than {MAX_MANIFEST_BYTES} bytes")
    parse_manifest(folder / MANIFEST, strict_json(content, folder / MANIFEST), "")
    return content


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        found = path.lstat()  # is_file() hides other errors from Python 3.14 on
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{folder} is not a bundle: expected a folder with {MANIFEST}")
    if found.st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    return path.read_bytes()


def _check_replaceable(folder: Path) -> None:
    """Refuses to overwrite a folder that holds anything besides a bundle's files."""
    try:
        known = {MANIFEST, *FILES, *strict_json(_read_manifest(folder), folder / MANIFEST)["files"]}
    except (BundleError, OSError, KeyError, TypeError):  # a broken bundle may be replaced
        known = {MANIFEST, *FILES}
    for entry in folder.iterdir():
        if entry.name not in known or entry.is_dir():
            raise BundleError(f"{folder} also holds {entry.name!r}, which is not the bundle's: choose another path")
