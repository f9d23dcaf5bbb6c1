"""Where the classifier of an estimator comes from: a model that exists, or one that is trained here.

A classifier is pickled as the place of its bundle. A trained one is pickled as the bytes of its bundle instead, which
the estimator holds, so that it outlives the folder in which it was trained.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Bundle, find_model, load_bundle, write_bundle
from fastdc.calibration import check_level
from fastdc.classifier import DiffusionClassifier
from fastdc.estimator.pixels import Shape
from fastdc.inference import Options
from fastdc.loading import load
from fastdc.support import InputError, Int64, Interrupted, shown, temporary_folder
from fastdc.train import RunFolder, TrainConfig, content_digest, held_out, save_labelled, train

HELD_OUT = "0.2"
"""The fraction of the training data that temperature and race are fitted to, unless a recipe says otherwise."""

# What the estimator decides, and what X and y say.
_NOT_IN_RECIPE = ("data", "out", "seed", "size", "channels", "window", "fit", "split", "skip_bad")

# What changes no number of a training.
_HOW = ("data", "out", "max_pixels", "threads", "device", "accumulate", "checkpoint_every", "log_every")

_OF_FOLDERS = ("format", "version", "files")  # fields of a manifest that writing a bundle adds


def load_options(given: Any) -> dict[str, Any]:
    """Keywords of ``fastdc.load``.

    Raises:
        InputError: They are no mapping, or a name is not a keyword.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"load must be a mapping of keywords of fastdc.load, got {shown(given)}")
    options = dict(given or {})
    known = set(inspect.signature(load).parameters) - {"model"}
    if unknown := set(options) - known:
        raise InputError(f"load takes no {min(map(str, unknown))}: expected keywords of fastdc.load")
    return options


def opened(model: Any, loading: dict[str, Any]) -> tuple[DiffusionClassifier, Bundle | None]:
    """The classifier that a user names, and its bundle, if a bundle was named.

    Raises:
        BundleError: There is no such model.
        InputError: `model` is something else, or keywords of ``fastdc.load`` are given with an open classifier.
    """
    if isinstance(model, DiffusionClassifier):
        if loading:
            raise InputError(f"load has no effect on an open classifier, got {shown(loading)}")
        return model, None
    if not isinstance(model, (str, os.PathLike, Bundle)):
        raise InputError(f"model must be a name, a folder, a bundle, a classifier or None, got {shown(model)}")
    bundle = model if isinstance(model, Bundle) else load_bundle(find_model(model))
    return load(bundle, **loading), bundle


@dataclass(frozen=True)
class Trained:
    """A model that was trained here.

    Attributes:
        manifest: The manifest of its bundle.
        files: The files of its bundle.
        options: Keywords of ``fastdc.load``.
        folder: The folder with the run and the bundle; None if it was a temporary one.
    """

    manifest: dict[str, Any] = field(repr=False)
    files: dict[str, bytes] = field(repr=False)
    options: dict[str, Any]
    folder: Path | None

    def open(self) -> DiffusionClassifier:
        """The classifier."""
        with temporary_folder() as folder:
            bundle = write_bundle(folder / "bundle", {**self.manifest}, self.files)
            return load(bundle, **self.options)


@dataclass(frozen=True)
class Training:
    """A training that a user describes.

    Attributes:
        recipe: Fields of ``TrainConfig``.
        seed: Seed of everything random.
        calibrate: Whether temperature and race are fitted to the images kept aside; a number is the race's level.
        work_dir: Folder in which runs are kept, each in one of its own; None: a temporary one.
        verbose: Whether to show a progress bar.
    """

    recipe: dict[str, Any]
    seed: int
    calibrate: bool | float
    work_dir: str | os.PathLike[str] | None
    verbose: bool

    @classmethod
    def of(
        cls,
        train: Any,
        *,
        seed: int,
        calibrate: bool | float,
        work_dir: str | os.PathLike[str] | None,
        verbose: bool,
    ) -> "Training":
        """The training of a recipe: a preset, or fields of ``TrainConfig``.

        Raises:
            InputError: The recipe is something else, or has a field that the data or the estimator decide.
        """
        if not isinstance(train, (str, Mapping)):
            raise InputError(f"train must be mlp, unet or a mapping of fields of TrainConfig, got {shown(train)}")
        recipe = {"model": train} if isinstance(train, str) else {"model": "mlp", **train}
        for name in _NOT_IN_RECIPE:
            if name in recipe:
                instead = "give random_state" if name == "seed" else "X and y decide it"
                raise InputError(f"train takes no {name}: {instead}")
        recipe = {"val": None if calibrate is False else HELD_OUT, **recipe}
        made = cls(recipe, seed, calibrate, work_dir, verbose)
        if made.fraction is None and (calibrate is not False or recipe.get("val") is not None):
            what = "" if calibrate is False else ", which calibrate needs"
            raise InputError(f"val must be a fraction of the training data{what}, got {shown(recipe['val'])}")
        return made

    @property
    def fraction(self) -> float | None:
        """The fraction of the data that is kept aside."""
        return self.config().val_fraction

    def config(self, data: str = "data", out: str = "out", shape: tuple[int, ...] = ()) -> TrainConfig:
        """The recipe for data in a folder.

        Args:
            data: File of the data.
            out: Run folder.
            shape: (c, h, w) of the images. Of a square it is stated, as a file can be read in several ways.

        Raises:
            InputError: A field is unknown or out of range.
        """
        square = {"channels": shape[0], "size": shape[1]} if shape and shape[1] == shape[2] else {}
        return TrainConfig.from_dict({**self.recipe, **square, "seed": self.seed, "data": data, "out": out})

    def check(
        self, shape: Shape, labels: Int64, names: tuple[str, ...], loading: dict[str, Any], options: Options
    ) -> None:
        """Refuses before the work what would be refused in it or after it.

        Args:
            shape: (c, h, w) of the images.
            labels: Their classes, int64 (n,).
            names: One name per class.
            loading: Keywords of ``fastdc.load``.
            options: Options of the runs to come.

        Raises:
            InputError: The images cannot be told from others in a file, too few are kept aside for the level, or an
                option cannot be used.
        """
        channels, height, width = shape
        if height != width and width in (1, 3):  # as many channels, it may seem
            size = f"{channels}x{height}x{width}"
            raise InputError(f"images to train on must be square, or have a width that is not 1 or 3, got {size}")
        if self.fraction is not None and not isinstance(self.calibrate, bool):
            aside = int(held_out(labels, self.fraction, self.seed).sum())
            check_level(self.calibrate, aside // 2 if self.config().patience else aside)
        alike = load("digits-mlp", **loading)  # a training makes such a model, of other images and classes
        counts = tuple(np.bincount(labels, minlength=len(names)).tolist())
        model = replace(alike.model, image_shape=shape, class_names=names, null_class=len(names), class_counts=counts)
        replace(alike, model=model).settings(options)

    def run(
        self, images: npt.NDArray[np.uint8], labels: Int64, names: tuple[str, ...], loading: dict[str, Any]
    ) -> Trained:
        """Trains a model and exports it.

        Args:
            images: Training images, uint8 (n, c, h, w).
            labels: Their classes, int64 (n,).
            names: One name per class.
            loading: Keywords of ``fastdc.load``, with which the model will be opened.

        Raises:
            InputError: No model can be trained on the data, or the work folder cannot be made.
            Interrupted: Ctrl-C or SIGTERM. With a folder, fitting again goes on.
            MissingDependencyError: torch or onnx is not installed.
        """
        from fastdc.export import export_run

        with ExitStack() as stack:
            if self.work_dir is None:
                folder = stack.enter_context(temporary_folder())
            else:
                folder = Path(self.work_dir) / f"fit-{self._digest(images, labels, names)}"
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise InputError(f"work_dir {shown(self.work_dir)} cannot be used: {error.strerror}") from None
            data, run = folder / "data.npz", folder / "run"
            if not data.exists():
                save_labelled(data, images, labels, names)
            config = self.config(str(data), str(run), images.shape[1:])
            try:
                summary = train(config, resume=RunFolder(run).config_file.exists(), progress=self.verbose)
            except InputError as error:
                raise InputError(str(error).replace(str(data), "X")) from None
            if not summary.finished:
                again = "" if self.work_dir is None else ": fit again to go on"
                raise Interrupted(f"training stopped at step {summary.step} of {summary.steps}{again}", None)
            level = None if isinstance(self.calibrate, bool) else self.calibrate
            held = None if self.calibrate is False else run / "val.npz"
            # The last checkpoint: nothing has chosen it but patience, so that all images kept aside may calibrate.
            how: dict[str, Any] = {"checkpoint": "last", "delta": level, "overwrite": True}
            bundle = export_run(run, folder / "bundle", name="estimator", calibrate=held, **how)
            manifest = {
                name: value for name, value in bundle.manifest.items() if name not in ("format", "version", "files")
            }
            files = {name: bundle.read(name) for name in bundle.files}
        return Trained(manifest, files, loading, None if self.work_dir is None else folder)

    def _digest(self, images: npt.NDArray[np.uint8], labels: Int64, names: tuple[str, ...]) -> str:
        """Names the run of a recipe and data in a work folder."""
        recipe = {name: value for name, value in self.config().to_dict().items() if name not in _HOW}
        text = json.dumps([content_digest(images, labels, names), recipe])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
