"""One step of a training: a batch in parts, of which each gets its rows of what is drawn for the whole batch.

    loss = sum over parts of (rows of the part / rows of the batch) (mean of the losses of its rows)

Images, noise levels, noise and dropout are drawn for the whole batch and then cut. So the number of parts, and of the
processes that share them, changes no number but by rounding.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastdc.train.batches import Batches
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import TrainingData
from fastdc.train.loss import Terms, denoising_loss
from fastdc.train.processes import Processes
from fastdc.train.state import TrainState
from fastdc.train.trainee import Trainee


class Step:
    """Does the steps of a training, one per call.

    Args:
        config: The recipe.
        trainee: The network, with its loss.
        data: The data; the training images are used.
        device: Device of the weights and the images.
        processes: The processes of the training; each has a share of every batch.

    Attributes:
        state: What a step changes.
    """

    def __init__(
        self,
        config: TrainConfig,
        trainee: Trainee,
        data: TrainingData,
        device: torch.device,
        processes: Processes,
    ) -> None:
        assert config.batch is not None
        self.state = TrainState(config, trainee, device)
        self._processes, self._network = processes, processes.wrapped(self.state.network)
        self._batches, self._objective = Batches(config, data, device), trainee.objective
        self._batch, self._device = config.batch, device
        parts = parts_of(config.batch, processes.count * config.accumulate)
        self._parts = parts[processes.index * config.accumulate :][: config.accumulate]
        # A GPU's own dropout draws other numbers for a part than for its rows of the batch.
        drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.state.network.modules())
        self._shared_dropout = drops and (len(parts) > 1 or device.type == "cuda")

    def __call__(self) -> None:
        """Does the next step."""
        x0, labels = self._batches.draw(self.state.step)
        terms, eps = self._objective.noise(x0)
        self.state.update(self._losses(x0, labels, eps, terms), self._processes.mean)

    def _losses(self, x0: Tensor, labels: Tensor, eps: Tensor, terms: Terms) -> Iterator[Tensor]:
        """The losses of this process's parts, scalars, each computed when it is asked for.

        The mean over processes of their sums is the mean loss of the batch.
        """
        state = self.state
        generator = _generator_state(self._device) if self._shared_dropout else None
        for number, rows in enumerate(self._parts, 1):
            if generator is not None:
                _restore_generator(generator, self._device)
            with self._processes.gathering(self._network, last=number == len(self._parts)):
                with state.autocast(), nullcontext() if generator is None else _Dropout(rows, self._batch):
                    some = Terms(*(term[rows] for term in terms))
                    losses = denoising_loss(self._network, x0[rows], labels[rows], eps[rows], some)
                yield losses.mean() * (len(losses) * self._processes.count / self._batch)


def parts_of(batch: int, parts: int) -> list[slice]:
    """The rows of a batch in parts of about the same size."""
    return [slice(batch * part // parts, batch * (part + 1) // parts) for part in range(parts)]


class _Dropout(TorchFunctionMode):
    """Dropout of some rows, with the numbers that torch's dropout on the CPU draws for the whole batch.

    Args:
        rows: The rows.
        batch: Number of rows of the batch.
    """

    def __init__(self, rows: slice, batch: int) -> None:
        super().__init__()
        self._rows, self._batch = rows, batch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        # A network may hold several rows per image, one after the other.
        per_row = x.shape[0] // (self._rows.stop - self._rows.start)
        # In the order of x in memory, which convolutions may change, because numbers are drawn in that order.
        layout = (0, *sorted(range(1, x.ndim), key=lambda axis: -x.stride()[axis]))
        size = (self._batch * per_row, *x.shape[1:])
        whole = torch.empty_permuted(size, layout, dtype=x.dtype, device=x.device).bernoulli_(1 - p).div_(1 - p)
        return x * whole[self._rows.start * per_row : self._rows.stop * per_row].clone()


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore_generator(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
