"""Several processes that train one model, through Hugging Face accelerate: gloo on CPUs, NCCL on GPUs.

Gradients are averaged by torch's DistributedDataParallel while they are computed. What the host must know, such as
whether to stop, goes through gloo, also beside GPUs, so that no step waits for a GPU. A process that fails says why in
the store, through which the processes have found each other, before it ends and its connections break: so the others
know whom to blame.
"""

import itertools
import os
import warnings
from contextlib import AbstractContextManager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import Tensor, distributed, nn

from fastdc.support import BackendError, FastdcError, InputError, one_line
from fastdc.train.processes import Processes
from fastdc.train.torch_state import torch_device

# Nobody is given up for being slow: the others wait while one encodes images or measures. One that dies is noticed.
_PATIENCE = timedelta(days=7)

_numbers = itertools.count()  # of the trainings of a program, the same in all processes

_GONE = (
    "another process of this training has ended (killed, or out of memory): the run goes on from its last checkpoint "
    "with resume"
)


class Together(Processes):
    """The processes of a training on several.

    Args:
        device: The recipe's device, cpu or cuda; with cuda, each process has its own.
        foreign: Whether the network is of another tool, and so may have weights that no loss depends on.
    """

    def __init__(self, device: str, *, foreign: bool) -> None:
        wanted = torch_device(device)
        number: int | None = wanted.index  # torch's stubs know no None
        if number is not None:
            raise InputError(f"device must be cuda or cpu for several processes, got {device}")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        if wanted.type == "cuda" and torch.cuda.device_count() < here:
            count = torch.cuda.device_count()
            raise InputError(f"each process needs a device of its own, got {here} processes and {count} CUDA devices")
        self._failed = f"fastdc/failed/{next(_numbers)}"
        self._accelerator = _connected(wanted.type == "cpu", foreign)
        if self._accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            kind = self._accelerator.distributed_type.value
            raise InputError(f"accelerate must be set up for several CPU or CUDA processes, got {kind}")
        # There is no way to know before the first step, and the search costs little.
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
        self.count, self.index = self._accelerator.num_processes, self._accelerator.process_index
        self.device = self._accelerator.device

    def wrapped(self, network: nn.Module) -> nn.Module:
        """As in the base, and so are the others."""
        found: nn.Module = self._accelerator.prepare_model(network, device_placement=False)
        return found

    def gathering(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Without an average but in the last part."""
        if last:
            return super().gathering(network, last=last)
        found: AbstractContextManager[None] = self._accelerator.no_sync(network)
        return found

    def mean(self, value: Tensor) -> Tensor:
        """Through NCCL or gloo, as the tensor lies."""
        value = value.clone()
        distributed.all_reduce(value)
        return value / self.count

    def largest(self, number: int) -> int:
        """Through gloo, from host to host."""
        value = torch.tensor(number, dtype=torch.int64)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return int(value)

    def failed(self, error: BaseException) -> FastdcError | None:
        """What to raise in place of an exception: None, or the failure of another process that it comes from.

        Args:
            error: What ends this process's training. Unless it comes from another process, the others will hear of it.
        """
        foreign = isinstance(error, RuntimeError) and not isinstance(error, FastdcError)
        broken = foreign and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
        try:
            store = distributed.distributed_c10d._get_default_store()
            if broken and store.check([self._failed]):
                return BackendError(store.get(self._failed).decode())
            if not broken:
                store.set(self._failed, f"process {self.index} of this training: {one_line(error, most=500)}")
        except (RuntimeError, ValueError):  # the main process has gone, and the store with it
            pass
        return BackendError(_GONE) if broken else None

    def leave(self) -> None:
        """Waits for the others. They stay connected, for another training or what else a program does with them."""
        self.largest(0)


def _connected(cpu: bool, foreign: bool) -> Accelerator:
    """Connects this process with the others.

    Raises:
        BackendError: They do not find each other.
    """
    try:
        found = Accelerator(
            cpu=cpu,
            mixed_precision="no",  # the recipe has a precision
            kwargs_handlers=[
                InitProcessGroupKwargs(backend="gloo" if cpu else "cpu:gloo,cuda:nccl", timeout=_PATIENCE),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=foreign),
            ],
        )
        distributed.all_reduce(torch.zeros(1))  # so that none fails before all are there, and can be told
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"the processes of this training do not find each other: {one_line(error)}") from None
    return found
