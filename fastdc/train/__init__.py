"""Training of small class-conditional denoisers from labelled images, ready for ``fastdc export``.

:func:`train` runs or resumes one training, described by a :class:`TrainConfig`, in a run folder:

    config.json              what was asked for, and the hash of the data
    checkpoint.safetensors   weights, their moving average, the optimizer's state, and the step
    log.jsonl                one line every so often: step, loss, learning rate, validation loss
    val.npz                  the images kept aside, when ``val`` is a fraction

torch is imported when a training starts, not with this package.
"""

from collections.abc import Callable

from fastdc.train.config import TrainConfig
from fastdc.train.dataset import content_digest
from fastdc.train.run import RunFolder, RunInfo, RunSummary

__all__ = ["RunFolder", "RunInfo", "RunSummary", "TrainConfig", "content_digest", "train"]


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: bool | None = None,
    notify: Callable[[str], None] | None = None,
) -> RunSummary:
    """Trains a denoiser, or continues a run that was interrupted.

    On one CPU and one number of threads the result is a function of the config and the data alone: a run that was
    killed and resumed ends with the same bits as one that was not. Ctrl-C or SIGTERM finishes the current step, writes
    a checkpoint and returns; a second Ctrl-C stops at once.

    Args:
        config: The recipe; see :class:`TrainConfig`.
        resume: Continue the run in ``config.out`` instead of starting one there.
        progress: Show a progress bar on stderr; None shows it on a terminal only.
        notify: Called with one line of text now and then (what the data are, where the run stands).

    Raises:
        InputError: The recipe or the data cannot be used, the folder is taken, or the run there is another one.
        MissingDependencyError: torch (or diffusers, for the UNet) is not installed.
    """
    from fastdc.train.loop import run_training

    return run_training(config, resume=resume, progress=progress, notify=notify)
