"""Trains small class-conditional denoisers on labelled images, ready for ``fastdc export``.

:func:`train` starts or resumes the training that a :class:`TrainConfig` describes, in a run folder:

    config.json              the recipe, and the hash of the data
    checkpoint.safetensors   weights, their moving average, the optimizer's state, and the step
    best.safetensors         the averaged weights of the best checkpoint, if there are validation images
    log.jsonl                one line every 50 steps: step, loss, learning rate; and one per validation: loss, accuracy
    val.npz                  the images kept aside, if ``val`` is a fraction
    latents.safetensors      the images as latents, if the network works on these
    lora.safetensors         the LoRA, if one is trained, as diffusers reads it

:func:`tune_image_text` fine-tunes a CLIP, to compare with.

torch is imported when a training starts, not with this package.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastdc.train.baselines import Baseline, check_baseline, train_baseline
from fastdc.train.best import Best
from fastdc.train.config import AUGMENTATIONS, TrainConfig
from fastdc.train.contrastive import (
    CaptionedImages,
    ContrastiveRecipe,
    ContrastiveTraining,
    DistinctBatches,
    contrastive_loss,
)
from fastdc.train.dataset import content_digest, held_out, kept_aside, save_labelled, validation_source
from fastdc.train.presets import RUN_DEFAULTS
from fastdc.train.processes import told
from fastdc.train.run import RunFolder, RunInfo, RunSummary, sample_shape
from fastdc.train.run_model import run_defaults, run_model
from fastdc.train.tuning import CLIP_TEMPLATE, Tuning, TuningSummary, is_image_text, tune_image_text
from fastdc.train.unseen import check_unseen, check_untrained

if TYPE_CHECKING:
    from fastdc.sources import Source

__all__ = [
    "AUGMENTATIONS",
    "CLIP_TEMPLATE",
    "RUN_DEFAULTS",
    "Baseline",
    "Best",
    "CaptionedImages",
    "ContrastiveRecipe",
    "ContrastiveTraining",
    "DistinctBatches",
    "RunFolder",
    "RunInfo",
    "RunSummary",
    "TrainConfig",
    "Tuning",
    "TuningSummary",
    "check_baseline",
    "check_unseen",
    "check_untrained",
    "content_digest",
    "contrastive_loss",
    "held_out",
    "is_image_text",
    "kept_aside",
    "run_defaults",
    "run_model",
    "run_source",
    "sample_shape",
    "save_labelled",
    "told",
    "train",
    "train_baseline",
    "tune_image_text",
    "validation_source",
]


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: bool | None = None,
    notify: Callable[[str], None] | None = None,
) -> RunSummary:
    """Trains a denoiser, or continues a run that was interrupted.

    On a CPU with a fixed number of threads, the result is a function of the recipe and the data alone: a run that was
    killed and resumed ends with the same bits as one that was not. Ctrl-C or SIGTERM finishes the current step, writes
    a checkpoint and returns, without a validation, which resuming makes up for. A second Ctrl-C stops at once, except
    while the checkpoint is written.

    In a program that torchrun or accelerate launch has started several times, the processes train one model together:
    each evaluates a share of every batch. The first one writes the run, and it alone is given lines to ``notify`` and
    the results of validations.

    Args:
        config: The recipe.
        resume: Whether to continue the run in ``config.out`` instead of starting one there.
        progress: Whether to show a progress bar on stderr; None: on a terminal only.
        notify: Called with single lines of text: a description of the data, the step at which the run stands, and the
            accuracy of each checkpoint on validation images.

    Returns:
        How the training ended: steps, losses, accuracy, time.

    Raises:
        InputError: The recipe or the data cannot be used, the folder is taken, another process trains there, or the
            folder holds a different run.
        MissingDependencyError: torch is not installed, or diffusers for the UNet, or accelerate for several processes.
        MemoryError: The memory of the device is too small; the message says which option needs less.
        BackendError: Another process of the training has failed.

    Example:
        >>> from fastdc.train import TrainConfig, train
        >>> np.savez(folder / "data.npz", images=images, labels=labels % 2)
        >>> recipe = TrainConfig(data=f"{folder}/data.npz", out=f"{folder}/run", model="mlp", width=16, steps=2)
        >>> train(recipe, progress=False).finished
        True
    """
    from fastdc.train.start import run_training

    return run_training(config, resume=resume, progress=progress, notify=notify)


def run_source(run: str | Path, checkpoint: str | None = None) -> "tuple[Source, int, str]":
    """The model of a run, with its averaged weights, as ``fastdc export`` reads models of other tools.

    If the run began with such a model, that is read again; a LoRA is merged into it.

    Args:
        run: The run folder.
        checkpoint: "best" or "last"; None: the best if one was measured.

    Returns:
        The model for ``fastdc.export.export_source``, its number of steps, and a description of the checkpoint.

    Raises:
        InputError: There is no such run or checkpoint, or the base has other weights than when the run began.
        BundleError: The base can no longer be read.
        MissingDependencyError: A package of the extra export is not installed.

    Example:
        >>> from fastdc import train
        >>> np.savez(folder / "data.npz", images=images, labels=labels % 2)
        >>> recipe = train.TrainConfig(data=f"{folder}/data.npz", out=f"{folder}/run", model="mlp", width=8, steps=2)
        >>> train.run_source(train.train(recipe, progress=False).path)[0].model.class_names
        ('0', '1')
    """
    from fastdc.train.tuned import trained_source

    folder = RunFolder(run)
    info = folder.info()
    source, step, chosen = trained_source(folder, info, checkpoint)
    model = dataclasses.replace(source.model, window=info.config.window, fit=info.config.fit or "crop")
    return dataclasses.replace(source, model=model), step, chosen
