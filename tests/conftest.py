"""Fixtures shared by all tests, and the settings that make the suite deterministic."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from fastdc import ops

# Subprocesses of tests run in the source folder; they, too, must import the installed package.
os.environ.setdefault("PYTHONSAFEPATH", "1")

# Derandomised: a run finds what every run finds. No deadline: the machines that run this are busy.
settings.register_profile(
    "fastdc", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fastdc")


@pytest.fixture
def native_settings() -> Iterator[None]:
    """Gives back the CPU instruction set and the thread count that a test changes."""
    isa = ops.cpu_isa()
    yield
    ops.set_cpu_isa(isa)
    ops.set_num_threads(0)
