"""The beginning of a training: what can be refused without torch is, before torch is imported, which takes seconds."""

from collections.abc import Callable
from contextlib import ExitStack

from fastdc.support import check_installed
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import load_training_data
from fastdc.train.run import RunFolder, RunSummary


def run_training(
    config: TrainConfig,
    *,
    resume: bool,
    progress: bool | None,
    notify: Callable[[str], None] | None,
) -> RunSummary:
    """Runs or resumes one training; :func:`fastdc.train.train` describes arguments, result and errors."""
    check_installed("torch", extra="train")
    say = notify or (lambda line: None)
    folder = RunFolder(config.out)
    with ExitStack() as kept:
        if resume:
            folder.info()
            kept.enter_context(folder.kept())
        else:
            folder.check_free()
        data = load_training_data(config, say)
        if not resume:
            kept.enter_context(folder.kept())
        from fastdc.train.loop import run_steps

        return run_steps(config, data, folder, resume, progress, say)
