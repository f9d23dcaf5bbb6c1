"""How a training begins and ends with the other processes of it, if there are any: torch is imported only then."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastdc.support import check_installed
from fastdc.train.processes import Processes, told


@contextmanager
def joined(device: str, *, foreign: bool) -> Iterator[Processes]:
    """The processes of this training, which end together.

    Args:
        device: The recipe's device.
        foreign: Whether the network is of another tool.

    Raises:
        InputError: There are not as many devices as processes.
        MissingDependencyError: There are several, and accelerate is not installed.
        BackendError: Another process failed; in the main process, the message is that process's.
    """
    if told()[0] == 1:
        yield Processes()
        return
    check_installed("torch", extra="train")
    check_installed("accelerate", extra="train")
    from fastdc.train.together import Together

    processes = Together(device, foreign=foreign)
    try:
        yield processes
        processes.leave()
    except BaseException as error:
        if (cause := processes.failed(error)) is not None:
            raise cause from None
        raise
