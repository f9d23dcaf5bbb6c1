"""The beginning of a training: what can be refused without torch is, before torch is imported, which takes seconds."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fastdc.bundle import shipped_models
from fastdc.data import check_class_folders
from fastdc.support import InputError, check_installed
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import load_training_data, validation_source
from fastdc.train.joining import joined
from fastdc.train.run import RunFolder, RunInfo, RunSummary

if TYPE_CHECKING:
    from fastdc.train.base import Base

_EXPECTED = {
    "from": "a bundle, a run, a diffusers folder (on the Hugging Face hub: hf://org/name), or an EDM .pkl",
    "vae": "a folder of diffusers with an AutoencoderKL (on the Hugging Face hub: hf://org/name)",
}


def run_training(
    config: TrainConfig,
    *,
    resume: bool,
    progress: bool | None,
    notify: Callable[[str], None] | None,
) -> RunSummary:
    """Runs or resumes one training; :func:`fastdc.train.train` describes arguments, result and errors."""
    folder = RunFolder(config.out)
    with ExitStack() as kept:
        processes = kept.enter_context(joined(config.device, foreign=config.base is not None))
        say = notify if notify is not None and processes.main else lambda line: None
        if resume:
            if config.minutes is not None:
                raise InputError("minutes is for a new run: give steps, the number at which this one is to end")
            config = config.as_in(folder.info().config)
            if processes.main:
                kept.enter_context(folder.kept())
        elif processes.main:
            folder.check_free()
        check_class_folders(config.data, split=config.split, natural="train", max_pixels=config.max_pixels)
        if (val := validation_source(config)) is not None:
            check_class_folders(val, natural="val", max_pixels=config.max_pixels)
        check_installed("torch", extra="train")  # after what is quick to refuse, before all images are read
        base = None
        if config.base is not None or config.vae is not None:
            config, base = _base_of(config, folder.info() if resume else None)
        elif resume and folder.info().base:
            raise InputError(f"{config.out} began with another model: name it (base, or vae)")
        data = load_training_data(config, say, None if base is None else base.image_shape)
        if not resume and processes.main:
            kept.enter_context(folder.kept())
        from fastdc.train.loop import run_steps

        return run_steps(config, data, base, folder, resume, progress if processes.main else False, say, processes)


def _base_of(config: TrainConfig, run: RunInfo | None) -> tuple[TrainConfig, "Base"]:
    """Opens the base of a recipe, which must be that of the run if there is one."""
    _check_base(config)
    from fastdc.train.base import open_base

    config, base = open_base(config)
    if run is not None:
        base.check_same(run)
    if base.encoder is not None:
        if config.augment not in ("none", "flip"):
            raise InputError(f"augment must be none or flip for a network on latents, got {config.augment}")
        config = dataclasses.replace(config, augment="none", flip=config.flip or config.augment == "flip")
    return config, base


def _check_base(config: TrainConfig) -> None:
    """Refuses, before anything is read, a base that does not exist, and packages that are missing.

    Raises:
        InputError: There is no such model or encoder.
        MissingDependencyError: A package is not installed.
    """
    for name, text in (("from", config.base), ("vae", config.vae)):
        if text is None:
            continue
        own = name == "from" and text in shipped_models()
        if not own and not text.startswith("hf://") and not Path(text).exists():
            raise InputError(f"--{name} {text} does not exist: expected {_EXPECTED[name]}")
        if not own:
            check_installed("diffusers", extra="export")
    check_installed("torch", extra="train")
