"""Several devices of one machine: the same network on each."""

import re
from collections.abc import Sequence
from typing import Any

from fastdc.backends import AbstractNetwork
from fastdc.engine.requests import IN_FLIGHT
from fastdc.support import InputError, checks, shown

_TURNS = 4  # a device holds at most this part of its even share of a run at once, if that fills its steps


def devices_of(device: Any) -> tuple[str, ...]:
    """The devices that a user names: "cuda:0,1" is ("cuda:0", "cuda:1"), any other name, or torch.device, is itself.

    Example:
        >>> from fastdc.engine import devices_of
        >>> devices_of("cuda:0,1")
        ('cuda:0', 'cuda:1')

    Raises:
        InputError: The list of devices is malformed, or names one twice.
    """
    device = checks.device_text(device)
    if not isinstance(device, str) or "," not in device:
        return (device,)
    if not re.fullmatch(r"cuda:[0-9]{1,3}(,[0-9]{1,3})+", device):
        raise InputError(f"several devices must be given as cuda:N,M,..., got {shown(device)}")
    numbers = [int(number) for number in device.removeprefix("cuda:").split(",")]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"devices must be named once each, got {device!r}")
    return tuple(f"cuda:{number}" for number in numbers)


def device_name(networks: Sequence[AbstractNetwork]) -> str:
    """One name for the devices of several networks, such as "cuda:0,1".

    Example:
        >>> from fastdc.engine import device_name
        >>> device_name(clf.networks)
        'cpu'
    """
    names = [network.device for network in networks]
    if len(names) > 1 and all(re.fullmatch("cuda:[0-9]+", name) for name in names):
        return "cuda:" + ",".join(name.removeprefix("cuda:") for name in names)
    return ",".join(names)


def check_replicas(networks: Sequence[AbstractNetwork]) -> None:
    """Refuses networks that do not compute the same, or of which one is there twice.

    Example:
        >>> from fastdc.engine import check_replicas
        >>> check_replicas(clf.networks)

    Raises:
        InputError: See above.
    """
    if len(set(map(id, networks))) < len(networks):
        raise InputError(f"expected different networks for different devices, got one of {len(networks)} twice")
    kinds = sorted({f"{network.backend} in {network.precision}" for network in networks})
    if len(kinds) > 1:
        raise InputError(f"networks on several devices must be of one backend and precision, got {', '.join(kinds)}")


def room_of(network: AbstractNetwork, devices: int, requests: int) -> int:
    """The number of requests that one of several devices may hold at once, in a run of `requests`.

    A request in flight has two cells or more to evaluate, so that as many requests as the slots have rows fill the
    steps in flight and the next ones. Beyond that a device holds a part of its even share, so that faster devices find
    requests left to take.

    Example:
        >>> from fastdc.engine import room_of
        >>> room_of(clf.networks[0], devices=2, requests=6)
        3
    """
    fills = network.batch * len(network.slots)
    return max(1, min(IN_FLIGHT, -(-requests // devices), max(fills, -(-requests // (_TURNS * devices)))))
