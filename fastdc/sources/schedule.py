"""Noise schedules from diffusers' scheduler_config.json: the levels a model was trained at, and the target it learned.

A scheduler in diffusers is a sampler. Whatever its class, it describes the training by the same few options:

* Schedulers over betas (DDPM, DDIM, PNDM, Euler, Heun, DPM-Solver, ...): alpha_bar_t = prod_{s <= t} (1 - beta_s), and
  the network's time input is t. Betas of the kinds ``linear``, ``scaled_linear`` and ``squaredcos_cap_v2`` give a
  ``DiscreteSchedule``. Listed betas, the kinds ``sigmoid``, ``exp`` and ``laplace``, and betas rescaled to end in pure
  noise (Lin et al., arXiv 2305.08891, algorithm 1) give a ``TableSchedule`` without the step at which nothing of the
  image is left (alpha_bar = 0). Some samplers divide x_t by alpha, but all networks see the same variance preserving
  x_t.
* ``FlowMatchEulerDiscreteScheduler``: straight paths with shifted t; the network's time input is 1000 t.

``prediction_type`` is the parameterisation: epsilon, v_prediction or sample. A missing option has the default of the
scheduler's own class; the defaults differ between classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastdc.diffusion import (
    BETA_SCHEDULES,
    MAX_TABLE,
    AbstractSchedule,
    DiscreteSchedule,
    FlowSchedule,
    Parameterization,
    TableSchedule,
)
from fastdc.support import BundleError, Float64, InputError, checks, shown

_BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_SCALED = {"beta_start": 0.00085, "beta_end": 0.012}
_KARRAS = {**_SCALED, "beta_schedule": "linear"}

# The defaults of each class that differ from DDPM's.
_CLASSES: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {},
    "DDPMParallelScheduler": {},
    "DDIMScheduler": {},
    "DDIMParallelScheduler": {},
    "DDIMInverseScheduler": {},
    "PNDMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverMultistepInverseScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "UniPCMultistepScheduler": {},
    "SASolverScheduler": {},
    "HeunDiscreteScheduler": _KARRAS,
    "KDPM2DiscreteScheduler": _KARRAS,
    "KDPM2AncestralDiscreteScheduler": _KARRAS,
    "DPMSolverSDEScheduler": _KARRAS,
    "LCMScheduler": {**_SCALED, "beta_schedule": "scaled_linear"},
    "TCDScheduler": {**_SCALED, "beta_schedule": "scaled_linear"},
}
_FLOW = "FlowMatchEulerDiscreteScheduler"

SCHEDULERS = (*_CLASSES, _FLOW)
"""Names of the schedulers that :func:`schedule_of` knows."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

_TABULATED = ("sigmoid", "exp", "laplace")


def schedule_of(config: Mapping[str, Any]) -> tuple[AbstractSchedule, Parameterization]:
    """Reads the schedule and the parameterisation of a model from its scheduler's config.

    Args:
        config: Content of a scheduler_config.json.

    Raises:
        BundleError: The scheduler does not say how the model was trained, has an unsupported option that changes the
            levels, or a value out of range.
    """
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise BundleError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {shown(name)}")
    try:
        if name == _FLOW:
            return _flow(config), Parameterization("flow")
        given = {**_BETAS, **_CLASSES[name], **{key: value for key, value in config.items() if value is not None}}
        # Flow models that name a sampler of this family set these: alpha_bar does not describe their levels.
        if given.get("use_flow_sigmas") or given.get("prediction_type") == "flow_prediction":
            raise BundleError(f"{name} with flow sigmas is not supported: expected {_FLOW}")
        prediction = given.get("prediction_type", "epsilon")
        if prediction not in PREDICTION_TYPES:
            raise BundleError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {shown(prediction)}")
        return _stepped(given), Parameterization(str(prediction))
    except InputError as error:
        raise BundleError(f"{name}: {error}") from None


def _stepped(given: Mapping[str, Any]) -> AbstractSchedule:
    """The schedule of a scheduler over betas."""
    kind, rescaled = given["beta_schedule"], given.get("rescale_betas_zero_snr", False)
    if "trained_betas" not in given and kind in BETA_SCHEDULES and not rescaled:
        return DiscreteSchedule(kind, _number(given, "beta_start"), _number(given, "beta_end"), _count(given))
    betas = _betas(given)
    alpha_bar = np.cumprod(1 - betas)
    if rescaled:
        root = np.sqrt(alpha_bar)
        if root[0] == root[-1]:
            raise BundleError("betas of one step cannot be rescaled to end in pure noise")
        alpha_bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    kept = alpha_bar[alpha_bar > np.finfo(np.float64).tiny] if rescaled else alpha_bar
    return TableSchedule(tuple(kept.tolist()))


def _betas(given: Mapping[str, Any]) -> Float64:
    """The betas of a table, float64 (T,)."""
    listed, kind = given.get("trained_betas"), given["beta_schedule"]
    if listed is not None:
        if not isinstance(listed, list) or not all(checks.is_number(beta) and 0 < beta < 1 for beta in listed):
            raise BundleError(f"trained_betas must be a list of numbers in (0, 1), got {shown(listed)}")
        if not 1 <= len(listed) <= MAX_TABLE:
            raise BundleError(f"trained_betas must be 1 to {MAX_TABLE} numbers, got {len(listed)}")
        return np.array(listed, dtype=np.float64)
    steps = _count(given, most=MAX_TABLE)
    if kind in BETA_SCHEDULES:
        alpha_bar = DiscreteSchedule(
            kind, _number(given, "beta_start"), _number(given, "beta_end"), steps
        ).alphas_cumprod
        return np.asarray(1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]]))
    if kind == "sigmoid":
        start, end = _number(given, "beta_start"), _number(given, "beta_end")
        return np.asarray(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))))
    t = np.arange(steps + 1) / steps
    if kind == "exp":
        edges = np.exp(-12 * t)
    elif kind == "laplace":
        log_snr = -0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6)
        edges = np.sqrt(1 / (1 + np.exp(-log_snr)))
    else:
        raise BundleError(
            f"beta_schedule must be one of {', '.join((*BETA_SCHEDULES, *_TABULATED))}, got {shown(kind)}"
        )
    return np.asarray(np.minimum(1 - edges[1:] / edges[:-1], 0.999))


def _flow(config: Mapping[str, Any]) -> FlowSchedule:
    """The schedule of a flow matching scheduler."""
    if config.get("use_dynamic_shifting"):
        raise BundleError(
            "use_dynamic_shifting is not supported: the shift depends on the image's size; expected a fixed shift"
        )
    if config.get("invert_sigmas"):
        raise BundleError("invert_sigmas is not supported: expected noise at t = 1")
    given = {"shift": 1.0, "num_train_timesteps": 1000, **config}
    return FlowSchedule(shift=_number(given, "shift"), timestep_scale=float(_count(given)))


def _number(given: Mapping[str, Any], name: str) -> float:
    value = given[name]
    if not checks.is_finite(value):
        raise BundleError(f"{name} must be a number, got {shown(value)}")
    return float(value)


def _count(given: Mapping[str, Any], *, most: int = 10**6) -> int:
    return checks.whole("num_train_timesteps", given["num_train_timesteps"], high=most)
