"""Options of a network: each is checked when it is given, in one line that names it."""

from typing import Any

import pytest

from fastdc import InputError
from fastdc.backends import NetworkOptions
from helpers.worlds import fails_with


@pytest.mark.parametrize("name", ["compile", "graphs", "tf32"])
def test_flags_must_be_flags(name: str) -> None:
    fails_with(lambda: NetworkOptions(**{name: 1}), name, "True or False", kind=InputError)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, {1: "a"}])
def test_provider_options_are_strings(value: Any) -> None:
    fails_with(lambda: NetworkOptions(provider_options=value), "provider_options", kind=InputError)


def test_defaults_leave_the_choice_to_the_backend() -> None:
    options = NetworkOptions()
    assert (options.device, options.precision, options.batch, options.threads) == ("auto", "auto", None, None)
    assert (options.compile, options.graphs, options.tf32) == (False, True, False)


def test_options_are_hashable_with_any_provider_options() -> None:
    one, other = (NetworkOptions(batch=8, provider_options={"device_id": value}) for value in "01")
    assert len({one, other}) == 2


@pytest.mark.parametrize(("name", "most"), [("batch", 65_536), ("threads", 1024)])
def test_counts_have_a_range(name: str, most: int) -> None:
    for good in (1, most, None):
        NetworkOptions(**{name: good})  # type: ignore[arg-type]
    for bad in (0, most + 1, 1.5, True, "8"):
        fails_with(lambda v=bad: NetworkOptions(**{name: v}), name, f"from 1 to {most}", kind=InputError)  # type: ignore[misc]


def test_devices_and_precisions_have_names() -> None:
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:999"):
        assert NetworkOptions(device=device).device == device
    for bad in ("gpu", "cuda:", "cuda:-1", "cuda:1000", "CPU", "cpu\n", 0):
        fails_with(lambda v=bad: NetworkOptions(device=v), "device must be", "cuda:N", kind=InputError)  # type: ignore[misc]
    for precision in ("half", "int8", None):
        options: dict[str, Any] = {"precision": precision}
        fails_with(lambda o=options: NetworkOptions(**o), "precision", "bfloat16", kind=InputError)  # type: ignore[misc]
