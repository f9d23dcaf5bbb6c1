"""The state of a training: weights, their average, the optimizer, the step; as a checkpoint and back."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastdc.bundle import parameter_count
from fastdc.support import InputError
from fastdc.train.config import TrainConfig
from fastdc.train.run import Checkpoint
from fastdc.train.trainee import Trainee


class TrainState:
    """What a step changes.

    Args:
        config: The recipe.
        trainee: The network; its parameters that require gradients are trained.
        device: Device of the weights.

    Attributes:
        network: The network that is trained.
        average: The moving average of its weights, in evaluation mode; it shares what is not trained.
        optimizer: AdamW.
        step: Number of steps done.
        seconds: Seconds of training, over all resumptions.
        loss: Mean loss in the last line of the log.
    """

    def __init__(self, config: TrainConfig, trainee: Trainee, device: torch.device) -> None:
        assert config.steps is not None
        assert config.lr is not None
        self._config, self._steps, self._lr = config, config.steps, config.lr
        self.network = trainee.network.to(device)
        shared = {id(kept): kept for kept in self.network.parameters() if not kept.requires_grad}
        self.average = copy.deepcopy(self.network, shared).eval().requires_grad_(False)
        trained = {name: one for name, one in self.network.named_parameters() if one.requires_grad}
        plain = {name: one for name, one in trained.items() if name not in trainee.rates}
        self._trained = plain | trained  # in the order of the optimizer's groups
        # Weight decay is a share of the rate, which would be too large for parameters of a large one.
        own = [
            {"params": [trained[name]], "peak": rate, "weight_decay": 0.0}
            for name, rate in trainee.rates.items()
            if name in trained
        ]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(plain.values()), "peak": config.lr}, *own],
            lr=config.lr,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        # Autocast keeps weights, optimizer and average in float32; gradients in float16 also need a scale.
        self._autocast = config.precision != "float32", getattr(torch, config.precision)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self._device = device
        self._means = tuple(self.averaged.values())
        self.step = 0
        self.seconds = 0.0
        # Sum of the losses since the last line of the log, on the device, so that no step waits for a GPU.
        self.window_sum, self._window_steps = torch.zeros((), dtype=torch.float64, device=device), 0
        self.loss: float | None = None

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights by name, those alone that are trained."""
        means = dict(self.average.named_parameters())
        return {name: means[name] for name in self._trained}

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return parameter_count(self.network)

    @property
    def trained(self) -> int:
        """Number of weights that are trained."""
        return sum(one.numel() for one in self._trained.values())

    def autocast(self) -> torch.autocast:
        """The context in which a loss is computed in the recipe's precision."""
        enabled, dtype = self._autocast
        return torch.autocast(self._device.type, dtype=dtype if enabled else None, enabled=enabled)

    def update(self, losses: Iterable[Tensor], averaged: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        """Does a step down the gradient of the mean loss of a batch.

        Args:
            losses: The shares of this process's parts in the mean loss, scalars, whose sum it is. A part is taken when
                the one before has been differentiated, and its activations are gone.
            averaged: Makes of the sum its mean over processes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros_like(self.window_sum)
        for loss in losses:
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double()
        self._scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self._trained.values(), self._config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(self.step, self._steps, self._config.warmup)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        every = min(self._config.ema_every, self._steps)  # a shorter run would be exported without any average
        number, rest = divmod(self.step + 1, every)
        if rest == 0:
            decay = min(self._config.ema, number / (9 + number))
            with torch.no_grad():
                for mean, now in zip(self._means, self._trained.values(), strict=True):
                    mean.lerp_(now, 1 - decay)
        self.window_sum += averaged(total)
        self._window_steps += 1
        self.step += 1

    def take_loss(self) -> float:
        """The mean loss since the last call."""
        self.loss = float(self.window_sum) / self._window_steps
        self.window_sum, self._window_steps = torch.zeros_like(self.window_sum), 0
        self.check_finite(self.loss)
        return self.loss

    def check_finite(self, loss: float) -> None:
        """Refuses to go on with weights that are lost.

        Raises:
            InputError: The loss is not finite.
        """
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is no longer finite at step {self.step}: resume is of no use, start again with an lr below "
                f"{self._lr:g}"
            )

    def checkpoint(self) -> Checkpoint:
        """Everything that the next step depends on, with tensors on the CPU.

        Raises:
            InputError: The loss is not finite.
        """
        self.check_finite(float(self.window_sum))
        tensors: dict[str, Tensor] = {}
        updates = 0  # those of the optimizer: less than the steps if gradients were too large for float16
        for name, parameter in self._trained.items():
            state = self.optimizer.state[parameter]
            updates = int(state.get("step", 0))
            tensors[f"model.{name}"] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(parameter))
        tensors |= {f"ema.{name}": parameter for name, parameter in self.averaged.items()}
        progress = {
            "step": self.step,
            "updates": updates,
            "scaler": self._scaler.state_dict(),
            "seconds": self.seconds,
            "window_sum": float(self.window_sum),
            "window_steps": self._window_steps,
            "loss": self.loss,
        }
        return Checkpoint({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, progress)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over a checkpoint of the same network.

        Raises:
            KeyError, RuntimeError: It is of another network.
        """
        tensors, progress = checkpoint.tensors, checkpoint.progress
        state: dict[int, dict[str, Any]] = {}
        with torch.no_grad():
            for number, (name, parameter) in enumerate(self._trained.items()):
                parameter.copy_(tensors[f"model.{name}"])
                moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                # Checkpoints of earlier versions have neither updates nor a scaler.
                updates = torch.tensor(float(progress.get("updates", progress["step"])))
                state[number] = {"step": updates, **moments}
            for name, mean in self.averaged.items():
                mean.copy_(tensors[f"ema.{name}"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._scaler.load_state_dict(progress.get("scaler", {}))
        self.step = int(progress["step"])
        self.seconds = float(progress["seconds"])
        self.window_sum = torch.full_like(self.window_sum, float(progress["window_sum"]))
        self._window_steps = int(progress["window_steps"])
        self.loss = progress["loss"]


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up (over at most half the run), then a cosine down to zero."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
