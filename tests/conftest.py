"""Fixtures shared by all tests, and the settings that make the suite deterministic."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from fastdc.diffusion import kernels

# Subprocesses of tests run in the source folder; they, too, must import the installed package.
os.environ.setdefault("PYTHONSAFEPATH", "1")

# A choice that fastdc bench kept for the user must not decide what the tests run; engines stay away, too.
_cache = tempfile.TemporaryDirectory(prefix="fastdc-tests-")
os.environ["FASTDC_CACHE"] = _cache.name

# A shell that starts the suite in the background lets it ignore Ctrl-C, which its subprocesses would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Derandomised: a run finds what every run finds. No deadline: the machines that run this are busy.
settings.register_profile(
    "fastdc", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fastdc")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of the test's own: what one of a module's gives depends on which tests ran before."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _independent_of_other_tests() -> Iterator[None]:
    """Every test starts with the native module's own settings and torch's own random numbers, whatever ran before."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
    isa = kernels.cpu_isa()
    yield
    kernels.set_cpu_isa(isa)
    kernels.set_num_threads(0)
