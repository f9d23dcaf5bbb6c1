"""The training loop: AdamW on the loss, with an average of the weights, checkpoints and exact resumption.

``step`` does one step, ``state`` holds what a step changes, and ``validation`` measures the result.
"""

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from fastdc.bundle import SeenImages
from fastdc.support import InputError, one_line, require, write_whole
from fastdc.train.best import Best, Measurements
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import TrainingData, save_labelled
from fastdc.train.duration import Estimate, in_words, steps_within
from fastdc.train.networks import network_config
from fastdc.train.presets import HAAR_FACTOR
from fastdc.train.remarks import remarks
from fastdc.train.run import PATIENCE, RunFolder, RunInfo, RunSummary
from fastdc.train.run_model import run_levels, transform_of

require("torch", extra="train")

import torch  # noqa: E402

from fastdc.train.base import Base  # noqa: E402
from fastdc.train.latents import latents_of  # noqa: E402
from fastdc.train.processes import Processes  # noqa: E402
from fastdc.train.step import Step  # noqa: E402
from fastdc.train.stop_signals import StopSignals  # noqa: E402
from fastdc.train.torch_state import enough_memory, torch_device, torch_state  # noqa: E402
from fastdc.train.trainee import Trainee, make_trainee, network_of  # noqa: E402
from fastdc.train.validation import Validation  # noqa: E402

_FEW = 100  # steps from which no network has learned anything


def run_steps(
    config: TrainConfig,
    data: TrainingData,
    base: Base | None,
    folder: RunFolder,
    resume: bool,
    progress: bool | None,
    say: Callable[[str], None],
    processes: Processes,
) -> RunSummary:
    """The run in a folder that is kept for the main process; ``fastdc.train.start`` has read the data and the base."""
    device = processes.device or torch_device(config.device)
    said = list(remarks(config, data))
    samples = data
    if base is not None and base.encoder is not None:
        samples = _latents_of(data, base, config, folder, device, say, processes)
    config = dataclasses.replace(config.for_shape(samples.shape), val=data.val)
    _check_shares(config, processes)
    info, anew = _describe(config, data, samples, base), False
    if resume:
        info = folder.continued(info, data.val_digest_as_given)
        anew = folder.info().val_digest != info.val_digest
    if anew:
        said.append("note: the run is of an earlier version, whose best checkpoint was chosen on images that an export "
                    "calibrates on: it is forgotten, and the next ones are compared on the other half")  # fmt: skip
    for line in said:
        say(line)
    with torch_state(config.threads, device), enough_memory(config):
        if config.minutes is not None:
            say(f"measuring how many steps {in_words(60 * config.minutes)} have")
            config = _timed(config, info, base, samples, device, processes)
            info = dataclasses.replace(info, config=config)
            if config.steps is not None and config.steps < _FEW:
                say(f"note: there is time for {config.steps} steps, too few to learn from: more --minutes, or --steps")
        trainee = make_trainee(config, info, base, samples.shape)
        trainer = _Trainer(config, trainee, samples, folder, device, say, processes)
        if processes.main:
            _begin(trainer, info, data, resume=resume, anew=anew)
        elif resume:
            trainer.restore(anew=anew)
        state = trainer.state
        say(f"model: {_name(config)}, {state.parameters:,} parameters; step {state.step} of {config.steps}")
        summary = trainer.run(progress)
    if processes.main and base is not None and base.kind == "prompts" and folder.checkpoint_file.exists():
        from fastdc.train.tuned import lora_content

        write_whole(folder.lora_file, lora_content(base.source, folder.averaged()[0]))
    return summary


def _begin(trainer: "_Trainer", info: RunInfo, data: TrainingData, *, resume: bool, anew: bool) -> None:
    """Writes what a new run keeps, or takes over what a run has done, in the main process.

    Args:
        trainer: The training.
        info: The run as it goes on.
        data: The images.
        resume: Whether there is a run.
        anew: Whether to discard what it has measured so far, see :meth:`RunFolder.forget_choices`.
    """
    config, folder = info.config, trainer.folder
    folder.check_space(trainer.state.trained)
    if resume:
        before = folder.info()
        trainer.restore(anew=anew)
        trainer.check_goes_on(before.config)
        if anew:
            folder.forget_choices(trainer.state.step)
        if trainer.state.step and before.config.steps not in (None, config.steps):
            change = (trainer.state.step, before.config.steps)
            info = dataclasses.replace(info, extended=(*info.extended, change))
        folder.write_info(info)
    else:
        folder.create(info)
    if config.val_fraction is not None and (anew or not folder.val_file.exists()):
        save_labelled(folder.val_file, data.val_images, data.val_labels, data.class_names)


def _check_shares(config: TrainConfig, processes: Processes) -> None:
    """Refuses a batch that has less images than parts.

    Raises:
        InputError: See above.
    """
    assert config.batch is not None
    parts = processes.count * config.accumulate
    if config.batch < parts:
        raise InputError(
            f"batch must be at least {parts}, an image for each of {config.accumulate} parts (accumulate) in "
            f"{processes.count} processes, got {config.batch}"
        )


def _latents_of(
    data: TrainingData,
    base: Base,
    config: TrainConfig,
    folder: RunFolder,
    device: torch.device,
    say: Callable[[str], None],
    processes: Processes,
) -> TrainingData:
    """The data as latents, which the main process makes, and the others read."""
    if not processes.main:
        processes.largest(0)
    found = latents_of(data, base, flip=config.flip, folder=folder, device=device, say=say)
    if processes.main:
        processes.largest(0)
    return found


def _timed(
    config: TrainConfig,
    info: RunInfo,
    base: Base | None,
    data: TrainingData,
    device: torch.device,
    processes: Processes,
) -> TrainConfig:
    """The recipe with the number of steps that its minutes have, measured on a training that is thrown away."""
    assert config.minutes is not None
    minutes, config = config.minutes, dataclasses.replace(config, minutes=None, steps=1)
    trainee = make_trainee(config, info, copy.deepcopy(base), data.shape)
    do = Step(config, trainee, data, device, processes)
    do.state.network.train()

    def step() -> None:
        do()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return dataclasses.replace(config, steps=steps_within(minutes, step, processes.of_main))


def _name(config: TrainConfig) -> str:
    return str(config.model) if config.base is None else Path(config.base).name


def _describe(config: TrainConfig, data: TrainingData, samples: TrainingData, base: Base | None) -> RunInfo:
    """The run of a recipe.

    Args:
        config: The recipe.
        data: The images.
        samples: What the network works on: the images, or their latents.
        base: What the run begins with.
    """
    classes, levels = len(data.class_names), None if base is None else base.levels
    if base is None or base.source is None:
        transform = transform_of(config)
        seen = samples.shape if transform is None else transform.shape(samples.shape)
        kind, options = network_config(config, seen, classes)
        network = {"kind": kind, "config": options}
        levels = run_levels(config, samples.shape)
    else:
        network = network_of(base, classes)
    return RunInfo(
        config=config,
        data_digest=data.digest,
        val_digest=data.val_digest,
        images=len(data.images),
        val_images=len(data.val_images),
        shape=data.shape,
        class_names=data.class_names,
        sigma_data=_sigma_data(config, samples),
        network=network,
        source_digest=data.source_digest,
        class_counts=data.class_counts,
        seen=data.seen,
        base_seen=SeenImages() if base is None else base.seen,
        val_by_class=True,
        levels=levels or RunInfo.levels,
        base={} if base is None else base.describe(),
    )


def _sigma_data(config: TrainConfig, samples: TrainingData) -> float:
    """Scale of what the network works on: the pixels' deviation, times the factor of an orthonormal transform."""
    if config.sigma_data is not None:
        return config.sigma_data
    return samples.sigma_data if config.transform is None else HAAR_FACTOR * samples.sigma_data


_STOPS = (None, "SIGINT", "SIGTERM", PATIENCE)
"""What may end a training early, the strongest last."""


class _Trainer:
    """One run: the order of steps, lines of the log, checkpoints and validations."""

    def __init__(
        self,
        config: TrainConfig,
        trainee: Trainee,
        data: TrainingData,
        folder: RunFolder,
        device: torch.device,
        say: Callable[[str], None],
        processes: Processes,
    ) -> None:
        assert config.steps is not None
        self.config, self.folder, self.steps, self.say = config, folder, config.steps, say
        self.processes = processes
        self.step = Step(config, trainee, data, device, processes)
        self.state = self.step.state
        self.validation = Validation(config, trainee, data, self.state.average, device) if processes.main else None
        self.saved = -1  # steps in the checkpoint on disk
        self.measured = Measurements()

    def run(self, progress: bool | None) -> RunSummary:
        """Trains until the last step or a signal, and writes a checkpoint, after a signal before anything else."""
        from tqdm import tqdm

        state = self.state
        state.network.train()
        began, before = time.monotonic(), state.seconds
        estimate = Estimate(self.steps - state.step)
        hidden = None if progress is None else not progress
        stopped: str | None = None
        with (
            StopSignals() as signals,
            tqdm(total=self.steps, initial=state.step, desc="train", unit="step", disable=hidden) as bar,
        ):
            self._validate(signals)  # the last run may have been stopped before it did
            while state.step < self.steps and (stopped := self._stopped(signals)) is None:
                self._train_step()
                bar.update()
                state.seconds = before + time.monotonic() - began
                if (line := estimate.after_step()) is not None:
                    self._say(line)
                if state.step % self.config.log_every == 0 or state.step == self.steps:
                    self._write_log()
                    bar.set_postfix(loss=f"{state.loss:.4f}", refresh=False)
                if self._is_milestone() and not signals.received:
                    self._save(signals)
                    self._validate(signals)
            signal = signals.received[0] if signals.received else stopped
            if signal not in (None, PATIENCE) and self.saved != state.step:
                self._say(f"{signal}: saving step {state.step}")
                self._save(signals)
        return RunSummary(
            path=self.folder.path,
            step=state.step,
            steps=self.steps,
            stopped_by=None if state.step == self.steps else stopped,
            loss=state.loss,
            val_loss=self.measured.val_loss,
            parameters=state.parameters,
            seconds=state.seconds,
            val_accuracy=self.measured.val_accuracy,
            best=self.measured.best,
        )

    def _stopped(self, signals: StopSignals) -> str | None:
        """What ends the training before its next step, the same in all processes; None: nothing."""
        own = PATIENCE if self._out_of_patience() else signals.received[0] if signals.received else None
        return _STOPS[self.processes.largest(_STOPS.index(own))]

    def _say(self, line: str) -> None:
        """Says a line without tearing the progress bar apart."""
        from tqdm import tqdm

        with tqdm.external_write_mode():
            self.say(line)

    def _train_step(self) -> None:
        self.step()

    def _is_milestone(self) -> bool:
        """Whether a checkpoint and a validation are due after this step."""
        step = self.state.step
        return step > 0 and (step % self.config.checkpoint_every == 0 or step == self.steps)

    def _out_of_patience(self) -> bool:
        return bool(self.config.patience) and self.measured.since_best >= (self.config.patience or 0)

    def check_goes_on(self, before: TrainConfig) -> None:
        """Refuses another number of steps for a run that has run out of patience, which would do none of them.

        Args:
            before: The recipe so far.

        Raises:
            InputError: See above.
        """
        if before.steps not in (None, self.steps) and self._out_of_patience():
            since = self.measured.since_best
            raise InputError(
                f"{self.folder.path} has ended at step {self.state.step}: the last {since} measured checkpoints were "
                f"no better; to train it longer, give a patience above {since}, or 0 (--patience)"
            )

    def _validate(self, signals: StopSignals) -> None:
        """Logs what a milestone is worth, once. A signal ends it without a result; resuming makes up for it.

        The best checkpoint is written before the line that says so: after a kill in between, the milestone is measured
        again, to the same effect.
        """
        state, step = self.state, self.state.step
        if self.validation is None or not self.validation or self.measured.step == step or not self._is_milestone():
            return
        record = self.validation.results(state.average, step, signals.stopped, last=step == self.steps)
        if record is None:
            return
        best = self.measured.better(record)
        if best is not None:
            with signals.held():
                self.folder.save_best(best, state.averaged)
        self.folder.log({**record, "seconds": round(state.seconds, 3)})
        self.measured.add(record)
        if "val_accuracy" in record:
            self._say(f"{Best.of(record)}{', the best so far' if best is not None else ''}")

    def _write_log(self) -> None:
        state = self.state
        loss, lr = state.take_loss(), state.optimizer.param_groups[0]["lr"]
        if self.processes.main:
            self.folder.log({"step": state.step, "loss": loss, "lr": lr, "seconds": round(state.seconds, 3)})

    def _save(self, signals: StopSignals) -> None:
        if self.processes.main:
            checkpoint = self.state.checkpoint()
            with signals.held():
                self.folder.save_checkpoint(checkpoint)
        else:
            self.state.check_finite(float(self.state.window_sum))  # so that all stop, and not one
        self.saved = self.state.step

    def restore(self, *, anew: bool) -> None:
        """Continues from the last checkpoint, if there is one.

        Args:
            anew: Whether to discard what the run has measured so far, see :meth:`RunFolder.forget_choices`.

        Raises:
            InputError: The checkpoint is damaged, of another network, or of a later step than the last one.
        """
        checkpoint = self.folder.load_checkpoint()
        done = 0 if checkpoint is None else int(checkpoint.progress["step"])
        if done > self.steps:
            raise InputError(f"{self.folder.path} has done {done} steps: steps must be at least that, got {self.steps}")
        if self.processes.main:
            self.folder.rewind(done)
            if not anew:
                self._measured_so_far()
        if checkpoint is None:
            return
        try:
            self.state.restore(checkpoint)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.folder.checkpoint_file} does not fit the run's network: {one_line(error)}"
            ) from error
        self.saved = done

    def _measured_so_far(self) -> None:
        """Takes over the measurements in the log, and goes on with the images that the best checkpoint was measured on.

        The recipe may ask for another number of images now (checkpoint_every decides about it). Shares of other images
        do not compare; nor do those before, if an earlier version measured some checkpoints on other images.
        """
        best = self.folder.load_best()
        scored = None if best is None else best[0].val_scored  # if there is no file, nothing is the best but what comes
        for record in self.folder.measurements():
            if record.get("val_scored") != scored:
                record.pop("val_accuracy", None)
            self.measured.add(record)
        if best is not None and self.validation is not None:
            self.measured.best = best[0]
            self.validation.keep(best[0].val_scored)
