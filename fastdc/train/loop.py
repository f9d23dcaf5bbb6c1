"""The training loop: AdamW on the EDM loss, with an average of the weights, checkpoints and exact resumption.

All randomness is a function of (seed, purpose, step): the generator is seeded before every step, and the order of the
images is drawn for every epoch. So a checkpoint holds no generator state, and the step after a resumption draws the
same numbers as without an interruption.
"""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.support import BackendError, InputError, Int64, one_line, require, shown
from fastdc.train.config import TrainConfig, network_config
from fastdc.train.dataset import TrainingData, save_labelled
from fastdc.train.run import Checkpoint, RunFolder, RunInfo, RunSummary

require("torch", extra="train")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from fastdc.bundle import build_network, parameter_count  # noqa: E402
from fastdc.train.loss import draw_sigmas, edm_loss  # noqa: E402

# Purposes keep the random streams of one seed apart; 1 is the validation split of dataset.py.
_WEIGHTS, _ORDER, _STEP, _EVALUATION = 2, 3, 4, 5

_EVALUATION_REPEATS = 4  # noise draws per validation image, which steady the validation loss
_EVALUATION_BATCH = 256


def run_steps(
    config: TrainConfig,
    data: TrainingData,
    folder: RunFolder,
    resume: bool,
    progress: bool | None,
    say: Callable[[str], None],
) -> RunSummary:
    """The run in a folder that is kept for this process; ``fastdc.train.start`` has read the data."""
    device = _device(config.device)
    info = _describe(config, data)
    if resume:
        folder.check_same(info)
    names = len(data.class_names)
    size = "x".join(map(str, data.shape))
    say(f"data: {len(data.images)} images {size} in {names} classes, {len(data.val_images)} for validation")
    if data.repeated:
        say(f"note: {data.repeated} validation images are training images too: the validation loss is too good")
    with _torch_state(config.threads, device):
        trainer = _Trainer(config, info, data, folder, device)
        if not resume:
            folder.create(info)
        if config.val_fraction is not None and not folder.val_file.exists():
            save_labelled(folder.val_file, data.val_images, data.val_labels, data.class_names)
        if resume:
            trainer.restore()
        say(f"model: {config.model}, {trainer.parameters:,} parameters; step {trainer.step} of {config.steps}")
        return trainer.run(progress, say)


def _describe(config: TrainConfig, data: TrainingData) -> RunInfo:
    kind, network = network_config(config, data.shape, len(data.class_names))
    return RunInfo(
        config=config,
        data_digest=data.digest,
        val_digest=data.val_digest,
        images=len(data.images),
        val_images=len(data.val_images),
        shape=data.shape,
        class_names=data.class_names,
        sigma_data=data.sigma_data if config.sigma_data is None else config.sigma_data,
        network={"kind": kind, "config": network},
        source_digest=data.source_digest,
    )


class _Trainer:
    """The state of one run: weights, their average, the optimizer, the step."""

    def __init__(
        self, config: TrainConfig, info: RunInfo, data: TrainingData, folder: RunFolder, device: torch.device
    ) -> None:
        assert config.steps is not None
        assert config.batch is not None
        assert config.p_mean is not None
        assert config.p_std is not None
        self.config, self.info, self.folder, self.device = config, info, folder, device
        self.steps, self.batch = config.steps, config.batch
        self.p_mean, self.p_std = config.p_mean, config.p_std
        self.null_class = len(data.class_names)
        self.images, self.labels = _tensor(data.images, device), _tensor(data.labels, device)
        self.val_images, self.val_labels = _tensor(data.val_images, device), _tensor(data.val_labels, device)
        _seed(config.seed, _WEIGHTS, 0)
        self.network = build_network(info.network["kind"], info.network["config"]).to(device)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.parameters = parameter_count(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.lr,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.step, self.saved = 0, -1  # steps done, and steps in the checkpoint on disk
        self.seconds = 0.0
        # Sum of the losses since the last line of the log, on the device, so that no step waits for a GPU.
        self.window_sum, self.window_steps = torch.zeros((), dtype=torch.float64, device=device), 0
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.validated = 0  # the last step with a validation loss in the log
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def run(self, progress: bool | None, say: Callable[[str], None]) -> RunSummary:
        """Trains until the last step or a signal, and writes a checkpoint, after a signal before anything else."""
        from tqdm import tqdm

        self.network.train()
        began, before = time.monotonic(), self.seconds
        hidden = None if progress is None else not progress
        with (
            _StopSignals() as signals,
            tqdm(total=self.steps, initial=self.step, desc="train", unit="step", disable=hidden) as bar,
        ):
            self._validate(signals)  # the last run may have been stopped before it did
            while self.step < self.steps and not signals.received:
                self.window_sum += self._train_step().double()
                self.window_steps += 1
                self.step += 1
                bar.update()
                self.seconds = before + time.monotonic() - began
                if self.step % self.config.log_every == 0 or self.step == self.steps:
                    self._write_log()
                    bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
                if self._is_milestone() and not signals.received:
                    self._save(signals)
                    self._validate(signals)
            if signals.received and self.saved != self.step:
                with tqdm.external_write_mode():
                    say(f"{signals.received[0]}: saving step {self.step}")
                self._save(signals)
            stopped = signals.received[0] if signals.received else None
        return RunSummary(
            path=self.folder.path,
            step=self.step,
            steps=self.steps,
            stopped_by=None if self.step == self.steps else stopped,
            loss=self.loss,
            val_loss=self.val_loss,
            parameters=self.parameters,
            seconds=self.seconds,
        )

    def _train_step(self) -> Tensor:
        config = self.config
        index = torch.from_numpy(self._batch_index()).to(self.device)
        _seed(config.seed, _STEP, self.step)
        x0 = _to_model(self.images[index])
        labels = self.labels[index]
        if config.flip:
            mirrored = torch.rand(self.batch, device=self.device) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(3), x0)
        if config.label_dropout > 0:
            dropped = torch.rand(self.batch, device=self.device) < config.label_dropout
            labels = torch.where(dropped, self.null_class, labels)
        sigma = draw_sigmas(self.batch, self.p_mean, self.p_std, self.device)
        loss = self._loss(self.network, x0, labels, sigma, torch.randn_like(x0)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * schedule(self.step, self.steps, config.warmup)
        self.optimizer.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        return loss.detach()

    def _loss(self, network: nn.Module, x0: Tensor, labels: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
        scale = self.config.timestep_scale
        return edm_loss(network, x0, labels, sigma, eps, sigma_data=self.info.sigma_data, timestep_scale=scale)

    def _batch_index(self) -> Int64:
        """Indices of the images of this step; epochs are shuffled one by one and laid end to end."""
        count = len(self.images)
        positions = np.arange(self.step * self.batch, (self.step + 1) * self.batch)
        index = np.empty(self.batch, dtype=np.int64)
        for epoch in range(positions[0] // count, positions[-1] // count + 1):
            if epoch != self._epoch:
                order = np.random.default_rng([self.config.seed, _ORDER, epoch]).permutation(count)
                self._epoch, self._order = epoch, order
            here = positions // count == epoch
            index[here] = self._order[positions[here] % count]
        return index

    def _is_milestone(self) -> bool:
        """Whether a checkpoint and a validation are due after this step."""
        return self.step > 0 and (self.step % self.config.checkpoint_every == 0 or self.step == self.steps)

    def _validate(self, signals: "_StopSignals") -> None:
        """Logs the validation loss of a milestone once. A signal ends it without a result; resuming makes up for it."""
        if not len(self.val_images) or self.validated == self.step or not self._is_milestone():
            return
        loss = self._evaluate(signals)
        if loss is not None:
            self.val_loss, self.validated = loss, self.step
            self.folder.log({"step": self.step, "val_loss": loss, "seconds": round(self.seconds, 3)})

    @torch.no_grad()
    def _evaluate(self, signals: "_StopSignals") -> float | None:
        """Mean loss of the averaged weights on the validation images, at the same noise every time; None if stopped."""
        _seed(self.config.seed, _EVALUATION, 0)
        total, count = 0.0, 0
        for _ in range(_EVALUATION_REPEATS):
            for start in range(0, len(self.val_images), _EVALUATION_BATCH):
                if signals.received:
                    return None
                x0 = _to_model(self.val_images[start : start + _EVALUATION_BATCH])
                labels = self.val_labels[start : start + _EVALUATION_BATCH]
                sigma = draw_sigmas(len(x0), self.p_mean, self.p_std, self.device)
                total += float(self._loss(self.average, x0, labels, sigma, torch.randn_like(x0)).sum())
                count += len(x0)
        return total / count

    def _write_log(self) -> None:
        self.loss = float(self.window_sum) / self.window_steps
        self.window_sum, self.window_steps = torch.zeros_like(self.window_sum), 0
        lr = self.config.lr * schedule(self.step - 1, self.steps, self.config.warmup)
        self._check_finite(self.loss)
        self.folder.log({"step": self.step, "loss": self.loss, "lr": lr, "seconds": round(self.seconds, 3)})

    def _save(self, signals: "_StopSignals") -> None:
        self._check_finite(float(self.window_sum))
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            state = self.optimizer.state[parameter]
            tensors[f"model.{name}"] = parameter.detach()
            tensors[f"exp_avg.{name}"] = state["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = state["exp_avg_sq"]
        tensors |= {f"ema.{name}": parameter for name, parameter in self.average.named_parameters()}
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "window_sum": float(self.window_sum),
            "window_steps": self.window_steps,
            "loss": self.loss,
            "val_loss": self.val_loss,
        }
        with signals.held():
            self.folder.save_checkpoint(Checkpoint({k: v.cpu().contiguous() for k, v in tensors.items()}, progress))
        self.saved = self.step

    def restore(self) -> None:
        """Continues from the last checkpoint, if there is one."""
        checkpoint = self.folder.load_checkpoint()
        self.folder.rewind_log(0 if checkpoint is None else int(checkpoint.progress["step"]))
        if checkpoint is None:
            return
        tensors, progress = checkpoint.tensors, checkpoint.progress
        state: dict[int, dict[str, Any]] = {}
        try:
            with torch.no_grad():
                for number, (name, parameter) in enumerate(self.network.named_parameters()):
                    parameter.copy_(tensors[f"model.{name}"])
                    moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                    state[number] = {"step": torch.tensor(float(progress["step"])), **moments}
                for name, mean in self.average.named_parameters():
                    mean.copy_(tensors[f"ema.{name}"])
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.folder.checkpoint_file} does not fit the run's network: {one_line(error)}"
            ) from error
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step = self.saved = int(progress["step"])
        self.seconds = float(progress["seconds"])
        self.window_sum = torch.full_like(self.window_sum, float(progress["window_sum"]))
        self.window_steps = int(progress["window_steps"])
        self.loss, self.val_loss = progress["loss"], progress["val_loss"]
        if losses := self.folder.val_losses():
            self.validated = max(losses)
            self.val_loss = losses[self.validated]

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is no longer finite at step {self.step}: resume is of no use, start again with an lr below "
                f"{self.config.lr:g}"
            )


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up (over at most half the run), then a cosine down to zero."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device; copied only if torch cannot share its memory."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)


def _to_model(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def _seed(seed: int, purpose: int, step: int) -> None:
    state = np.random.SeedSequence([seed, purpose, step]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device must be a torch device such as cpu or cuda:0, got {shown(name)}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("device cuda was asked for, but this torch sees no CUDA device")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu or cuda, got {shown(name)}")
    return device


@contextmanager
def _torch_state(threads: int | None, device: torch.device) -> Iterator[None]:
    """Sets the number of threads; restores it, and the states of torch's generators, afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


class _StopSignals:
    """Collects the names of SIGINT and SIGTERM instead of stopping. A second signal acts as usual, unless it is held.

    Attributes:
        received: Names of the signals so far.
    """

    def __init__(self) -> None:
        self.received: list[str] = []
        self._held = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_StopSignals":
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number).name)
        if len(self.received) > 1 and not self._held:
            self.__exit__()
            signal.raise_signal(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds all signals back while a checkpoint is written: it takes moments, and losing it costs more."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
