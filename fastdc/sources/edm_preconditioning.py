"""The preconditioners of EDM files as schedules and parameterisations (Karras et al., arXiv 2206.00364, table 1).

A preconditioner makes the denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) of x = x0 + sigma e:

============  ===================  ===========================  ===================  ==================
class         c_skip, c_out        c_in                         c_noise              F predicts
============  ===================  ===========================  ===================  ==================
EDMPrecond    as in eq. 7          (sigma^2 + sigma_data^2)^-½  ln(sigma) / 4        "edm"
VPPrecond     1, -sigma            (sigma^2 + 1)^-½             (M - 1) t(sigma)     e: "epsilon"
VEPrecond     1, sigma             1                            ln(sigma / 2)        -e: "score"
iDDPMPrecond  1, -sigma            (sigma^2 + 1)^-½             M - 1 - j(sigma)     e: "epsilon"
============  ===================  ===========================  ===================  ==================

With c_in = (sigma^2 + 1)^-½, c_in x is a variance preserving x_t whose sigma / alpha is this sigma. In VP, t(sigma)
inverts sigma(t)^2 + 1 = exp(beta_d t^2 / 2 + beta_min t). In iDDPM, j counts the levels u_j from the largest; u_M = 0
and u_{j-1}^2 + 1 = (u_j^2 + 1) / max(abar_{j-1} / abar_j, C_1) with abar_j = sin^2(pi j / (2 M (C_2 + 1))). So c_noise
is the step of a DDPM. Its network has twice as many outputs, of which the first half is F (Nichol & Dhariwal, arXiv
2102.09672; the others are a variance).

If sigma is bounded by 0 and infinity, as training writes it, it gets [0.002, 80], the range of the paper's sampler.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdc.diffusion import MAX_TABLE, AbstractSchedule, EDMSchedule, Parameterization, TableSchedule, VPSchedule
from fastdc.sources.edm_pickle import PickledModule
from fastdc.support import BundleError, checks, shown

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0

Numbers = dict[str, float]

# The constants of each class; a file that states none has these. In EDM's file they are the sampler's.
_DEFAULTS: dict[str, Numbers] = {
    "EDMPrecond": {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}

# The levels in a file are float32, computed by a recursion of M steps from differences of nearly equal numbers.
_LEVEL_TOLERANCE = 0.05


def preconditioning(root: PickledModule) -> tuple[AbstractSchedule, Parameterization]:
    """The schedule and the parameterisation of a preconditioner.

    Args:
        root: The preconditioner as the file holds it.

    Raises:
        BundleError: It is of another class, or its constants cannot be used.
        InputError: The schedule or the parameterisation cannot have these constants.
    """
    if root.class_name not in _DEFAULTS:
        kinds = ", ".join(_DEFAULTS)
        raise BundleError(f"expected one of {kinds} around a SongUNet or DhariwalUNet, got {shown(root.class_name)}")
    numbers = {
        key: _number(key, root.attributes.get(key, root.init_kwargs.get(key, default)))
        for key, default in _DEFAULTS[root.class_name].items()
    }
    makers: dict[str, Callable[[Numbers], tuple[AbstractSchedule, Parameterization]]] = {
        "EDMPrecond": _edm,
        "VPPrecond": _vp,
        "VEPrecond": _ve,
        "iDDPMPrecond": _iddpm,
    }
    schedule, parameterization = makers[root.class_name](numbers)
    _check_tensors(root, schedule)
    return schedule, parameterization


def outputs_per_channel(root: PickledModule) -> int:
    """Number of outputs of a preconditioner's network per channel of an image; the first one is F."""
    return 2 if root.class_name == "iDDPMPrecond" else 1


def _edm(numbers: Numbers) -> tuple[AbstractSchedule, Parameterization]:
    schedule = EDMSchedule(
        sigma_min=numbers["sigma_min"] or SIGMA_MIN,
        sigma_max=numbers["sigma_max"] if math.isfinite(numbers["sigma_max"]) else SIGMA_MAX,
        timestep_scale=0.25,
    )
    return schedule, Parameterization("edm", sigma_data=numbers["sigma_data"])


def _vp(numbers: Numbers) -> tuple[AbstractSchedule, Parameterization]:
    steps = _steps(numbers)
    schedule = VPSchedule(numbers["beta_d"], numbers["beta_min"], numbers["epsilon_t"], timestep_scale=steps - 1.0)
    return schedule, Parameterization("epsilon")


def _ve(numbers: Numbers) -> tuple[AbstractSchedule, Parameterization]:
    schedule = EDMSchedule(
        numbers["sigma_min"], numbers["sigma_max"], timestep_scale=1.0, timestep_offset=-math.log(2.0)
    )
    return schedule, Parameterization("score")


def _iddpm(numbers: Numbers) -> tuple[AbstractSchedule, Parameterization]:
    steps = _steps(numbers)
    checks.fraction("C_1", numbers["C_1"])
    checks.number("C_2", numbers["C_2"], low=0.0, high=1.0)
    grid = np.sin(np.pi / 2 * np.arange(steps + 1) / steps / (numbers["C_2"] + 1)) ** 2
    falls = np.maximum(grid[:-1] / grid[1:], numbers["C_1"])  # alpha_bar at step M - 1 - j over that of the step before
    return TableSchedule(tuple(np.cumprod(falls[::-1]).tolist())), Parameterization("epsilon")


def _steps(numbers: Numbers) -> int:
    steps = numbers["M"]
    return checks.whole("M", int(steps) if steps.is_integer() else steps, high=MAX_TABLE)


def _check_tensors(root: PickledModule, schedule: AbstractSchedule) -> None:
    """Refuses a preconditioner's own tensors, except for iDDPM's levels u (M + 1,), which must be the schedule's."""
    tensors = dict(root.tensors)
    if isinstance(schedule, TableSchedule) and "u" in tensors:
        found = tensors.pop("u").double().numpy()
        wanted = np.append(np.sqrt(1 / schedule.alphas_cumprod - 1)[::-1], 0.0)
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=_LEVEL_TOLERANCE, atol=1e-6):
            raise BundleError(f"the levels u of an {root.class_name} must be those of its M, C_1 and C_2")
    if tensors:
        raise BundleError(f"a {root.class_name} must hold no tensor {shown(min(tensors))}")


def _number(name: str, value: Any) -> float:
    if not checks.is_number(value) or not value >= 0:
        raise BundleError(f"{name} must be a number of at least 0, got {shown(value)}")
    return float(value)
