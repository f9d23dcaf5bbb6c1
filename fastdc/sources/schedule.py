"""Noise schedules from diffusers' scheduler_config.json: the levels a model was trained at, and the target it learned.

A scheduler in diffusers is a sampler. Whatever its class, it describes the training by a few options:

* Schedulers over betas (DDPM, DDIM, PNDM, Euler, Heun, DPM-Solver, ...): alpha_bar_t = prod_{s <= t} (1 - beta_s), and
  the network's time input is t. Betas of the kinds ``linear``, ``scaled_linear`` and ``squaredcos_cap_v2`` give a
  ``DiscreteSchedule``. Listed betas, the kinds ``sigmoid``, ``exp`` and ``laplace``, and betas rescaled to end in pure
  noise (Lin et al., arXiv 2305.08891, algorithm 1) give a ``TableSchedule`` without the step at which nothing of the
  image is left (alpha_bar = 0). Some samplers divide x_t by alpha, but all networks see the same variance preserving
  x_t. With v-prediction and ``timestep_type`` "continuous", Euler's network is told ln(sigma / alpha) / 4 instead of t.
* Flow matching (``FlowMatch*``, and solvers over betas with ``use_flow_sigmas``): straight paths with shifted t; the
  network's time input is 1000 t.
* ``EDM*``: the preconditioning of Karras et al. (arXiv 2206.00364).

``prediction_type`` is the parameterisation: epsilon, v_prediction or sample; ``predict_epsilon`` is its old form. A
missing option has the default of the scheduler's own class; the defaults differ between classes. Options that concern
sampling alone are ignored. Any other option must have its usual value, because it may change what the levels mean.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastdc.diffusion import (
    BETA_SCHEDULES,
    MAX_TABLE,
    AbstractSchedule,
    ContinuousSchedule,
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Parameterization,
    SteppedSchedule,
    TableSchedule,
)
from fastdc.support import BundleError, Float64, InputError, checks, require, shown

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
    "RePaintScheduler": {},
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
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")

SCHEDULERS = (*_CLASSES, *_FLOW, *_EDM)
"""Names of the schedulers that :func:`schedule_of` knows."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# The classes that act on an option; diffusers ignores it in the configs of others.
_RESCALING = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "DPMSolverMultistep", "EulerDiscrete"),
        *("EulerAncestralDiscrete", "UniPCMultistep", "LCM", "TCD"),
    )
)
_FLOWING = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DEISMultistep", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep"),
        *("UniPCMultistep", "SASolver"),
    )
)

# Options that may change the meaning of levels, with the value that has no effect in any class.
_USUAL: dict[str, Any] = {
    "prediction_type": "epsilon",
    "predict_epsilon": True,
    "timestep_type": "discrete",
    "rescale_betas_zero_snr": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift": 1.0,
    "snr_shift_scale": 1.0,
}

# Options that choose the levels of a sampler, or what it makes of a prediction.
SAMPLING_ONLY = frozenset(
    (
        *("timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type", "lambda_min_clipped"),
        *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "sigma_schedule", "rho"),
        *("interpolation_type", "shift_terminal", "time_shift_type", "base_shift", "max_shift"),
        *("base_image_seq_len", "max_image_seq_len", "scale_factors", "upscale_mode"),
        *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
        *("variance_type", "eta", "tau_func", "noise_sampler_seed", "stochastic_sampling"),
        *("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "solver_p"),
        *("predictor_order", "corrector_order", "predict_x0", "disable_corrector", "skip_prk_steps"),
        *("original_inference_steps", "timestep_scaling"),
        *("tensor_format", "timestep_values"),  # of the first versions of diffusers
        *("flow_shift", "sigma_min", "sigma_max"),  # read where they describe the training
    )
)
"""Options of a scheduler that do not concern a diffusion classifier."""

_TABULATED = ("sigmoid", "exp", "laplace")


def schedule_of(config: Mapping[str, Any]) -> tuple[AbstractSchedule, Parameterization]:
    """Reads the schedule and the parameterisation of a model from its scheduler's config.

    Args:
        config: Content of a scheduler_config.json.

    Raises:
        BundleError: The scheduler does not say how the model was trained, has an unsupported option that may change the
            levels, or a value out of range.
    """
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise BundleError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {shown(name)}")
    try:
        if name in _FLOW:
            _check_options(name, config, {"num_train_timesteps", "shift"})
            return _flow(config, "shift"), Parameterization("flow")
        if name in _EDM:
            return _edm(name, config)
        return _over_betas(name, config)
    except InputError as error:
        raise BundleError(f"{name}: {error}") from None


def _check_options(name: str, config: Mapping[str, Any], read: set[str]) -> None:
    """Refuses options that may change the levels, unless they are `read` or have their usual value."""
    for key, value in config.items():
        if key.startswith("_") or value is None or key in read or key in SAMPLING_ONLY:
            continue
        usual = _USUAL[key] if key in _USUAL else _default(name, key)
        if usual is None or isinstance(value, bool) != isinstance(usual, bool) or value != usual:
            what = f"expected {usual!r}" if key in _USUAL else "it may change what the noise levels mean"
            raise InputError(f"option {key:.80} = {shown(value)} is not supported: {what}")


def _default(name: str, key: str) -> Any:
    """The default of an option that newer versions of diffusers have; None if the installed one does not know it."""
    kind = getattr(require("diffusers", extra="export"), name)
    found = inspect.signature(kind.__init__).parameters.get(key)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def _over_betas(name: str, config: Mapping[str, Any]) -> tuple[AbstractSchedule, Parameterization]:
    """The schedule and the parameterisation of a scheduler over betas."""
    given = {**_BETAS, **_CLASSES[name], **{key: value for key, value in config.items() if value is not None}}
    read = {*_BETAS, "trained_betas"}
    if name != "RePaintScheduler":
        read |= {"prediction_type", "predict_epsilon"}
    flow = given.get("use_flow_sigmas") is True
    if flow and name in _FLOWING:
        _check_options(name, config, {*read, "use_flow_sigmas"})
        if given.get("prediction_type") != "flow_prediction":
            raise InputError(
                f"use_flow_sigmas needs prediction_type flow_prediction, got {shown(given.get('prediction_type'))}"
            )
        return _flow({**given, "flow_shift": given.get("flow_shift", 1.0)}, "flow_shift"), Parameterization("flow")
    read |= {"rescale_betas_zero_snr"} if name in _RESCALING else set()
    read |= {"timestep_type"} if name == "EulerDiscreteScheduler" else set()
    _check_options(name, config, read)
    prediction = _prediction(given)
    schedule = _stepped(given)
    kind = given.get("timestep_type", "discrete")
    checks.one_of("timestep_type", kind, ("discrete", "continuous"))
    if kind == "continuous" and prediction == "v_prediction":  # with other predictions, diffusers keeps steps
        return _continuous(given, schedule), Parameterization("v_prediction")
    return schedule, Parameterization(prediction)


def _prediction(given: Mapping[str, Any]) -> str:
    """The kind of a network over betas, from prediction_type or from the older predict_epsilon."""
    kind, old = given.get("prediction_type"), given.get("predict_epsilon")
    if kind is not None and kind not in PREDICTION_TYPES:
        raise InputError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {shown(kind)}")
    if old is None:
        return str(kind or "epsilon")
    if not isinstance(old, bool):
        raise InputError(f"predict_epsilon must be true or false, got {shown(old)}")
    meant = "epsilon" if old else "sample"
    if kind not in (None, meant):
        raise InputError(f"predict_epsilon {str(old).lower()} means prediction_type {meant}, got {kind} as well")
    return meant


def _stepped(given: Mapping[str, Any]) -> DiscreteSchedule | TableSchedule:
    """The schedule of a scheduler over betas."""
    kind, rescaled = given["beta_schedule"], given.get("rescale_betas_zero_snr", False)
    if not isinstance(rescaled, bool):
        raise InputError(f"rescale_betas_zero_snr must be true or false, got {shown(rescaled)}")
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


def _continuous(given: Mapping[str, Any], schedule: SteppedSchedule) -> ContinuousSchedule:
    """The schedule of a network that is told ln(sigma / alpha) / 4, over the range of its sampler."""
    alpha_bar = schedule.alphas_cumprod
    low, high = (math.sqrt((1 - end) / end) for end in (alpha_bar[0], alpha_bar[-1]))
    if any(given.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta")):
        low, high = (_number({name: end, **given}, name) for name, end in (("sigma_min", low), ("sigma_max", high)))
    return ContinuousSchedule(low, high, 0.25)


def _edm(name: str, config: Mapping[str, Any]) -> tuple[AbstractSchedule, Parameterization]:
    """The schedule and the parameterisation of an EDM scheduler."""
    _check_options(name, config, {"num_train_timesteps", "sigma_data"})
    given = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, **config}
    low, high, data = (_number(given, key) for key in ("sigma_min", "sigma_max", "sigma_data"))
    return EDMSchedule(low, high, 0.25), Parameterization("edm", data)


def _betas(given: Mapping[str, Any]) -> Float64:
    """The betas of a table, float64 (T,)."""
    listed, kind = given.get("trained_betas"), given["beta_schedule"]
    if listed is not None:
        if not isinstance(listed, list) or not all(checks.is_number(beta) and 0 < beta < 1 for beta in listed):
            raise BundleError(f"trained_betas must be a list of numbers in (0, 1), got {shown(listed)}")
        if not 1 <= len(listed) <= MAX_TABLE:
            raise BundleError(f"trained_betas must be 1 to {MAX_TABLE} numbers, got {len(listed)}")
        if len(listed) != _count(given):
            raise InputError(f"trained_betas must be one number per step: {_count(given)}, got {len(listed)}")
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


def _flow(given: Mapping[str, Any], shift: str) -> FlowSchedule:
    """The schedule of a flow matching scheduler whose shift is the option `shift`."""
    given = {"num_train_timesteps": 1000, shift: 1.0, **given}
    return FlowSchedule(shift=_number(given, shift), timestep_scale=float(_count(given)))


def _number(given: Mapping[str, Any], name: str) -> float:
    value = given[name]
    if not checks.is_finite(value):
        raise BundleError(f"{name} must be a number, got {shown(value)}")
    return float(value)


def _count(given: Mapping[str, Any], *, most: int = 10**6) -> int:
    return checks.whole("num_train_timesteps", given["num_train_timesteps"], high=most)
