"""The beginning of a training: what can be refused without torch is, before torch is imported, which takes seconds."""

from collections.abc import Callable
from contextlib import ExitStack

from fastdc.data import check_class_folders
from fastdc.support import InputError, check_installed
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import load_training_data, validation_source
from fastdc.train.run import RunFolder, RunSummary


def run_training(
    config: TrainConfig,
    *,
    resume: bool,
    progress: bool | None,
    notify: Callable[[str], None] | None,
) -> RunSummary:
    """Runs or resumes one training; :func:`fastdc.train.train` describes arguments, result and errors."""
    say = notify or (lambda line: None)
    folder = RunFolder(config.out)
    by_class = True
    with ExitStack() as kept:
        if resume:
            if config.minutes is not None:
                raise InputError("minutes is for a new run: give steps, the number at which this one is to end")
            found = folder.info()
            config, by_class = config.as_in(found.config), found.val_by_class
            kept.enter_context(folder.kept())
        else:
            folder.check_free()
        check_class_folders(config.data, split=config.split, natural="train")
        if (val := validation_source(config)) is not None:
            check_class_folders(val, natural="val")
        check_installed("torch", extra="train")  # after what is quick to refuse, before all images are read
        data = load_training_data(config, say, by_class=by_class)
        if not resume:
            kept.enter_context(folder.kept())
        from fastdc.train.loop import run_steps

        return run_steps(config, data, folder, resume, progress, say)
