"""From a user's options to the configuration of a plan."""

import math
from dataclasses import replace
from typing import Any

from fastdc.bundle import Model
from fastdc.diffusion import PlanConfig, method_of
from fastdc.inference.denoisers import check_denoiser, denoiser_name
from fastdc.inference.options import PlanOptions
from fastdc.rules import AbstractRule
from fastdc.support import InputError, checks, did_you_mean, shown

# The band of levels above an image's noise if the model says nothing better, as multiples of that noise.
_ABOVE_NOISE, _FAR_ABOVE_NOISE = 1.05, 4.0


def plan_config(model: Model, options: PlanOptions) -> PlanConfig:
    """The configuration of a plan: the model's defaults, with a user's options in their place.

    Example:
        >>> from fastdc.inference import plan_config
        >>> plan_config(clf.model, {"draws": 8, "loss": "l1"}).draws
        8

    Raises:
        InputError: An option is unknown or out of range.
    """
    defaults = model.defaults
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    unknown = min(set(given) - set(PlanOptions.__annotations__), default=None)
    if unknown is not None:
        meant = did_you_mean(unknown, PlanOptions.__annotations__)
        raise InputError(f"there is no option {shown(unknown)}{meant}")
    sigma = given.pop("sigma", 0.0)
    if not checks.is_number(sigma) or not 0 <= sigma < math.inf:
        raise InputError(f"sigma must be a standard deviation in pixels in [0, 1], from 0, got {shown(sigma)}")
    given["noise"] = model.noise_ratio(sigma)
    if model.latent_shape is not None and given.get("method", "dc") != "dc":
        raise InputError(f"method {given['method']} needs a model of images: noise is not Gaussian in latents, use dc")
    if "denoiser" in given:
        check_denoiser(given["denoiser"], model)
        given["denoiser"] = denoiser_name(given["denoiser"])
    if "levels" in given:
        given["levels"] = _band(model, given["levels"])
        given.setdefault("first", ())  # chosen for the default band
    elif given["noise"] or given.get("method", "dc") != "dc":
        _noisy_band(model, given)
    elif defaults.levels is not None:
        given["levels"] = defaults.levels
    for name in ("draws", "weighting", "loss", "first"):
        given.setdefault(name, getattr(defaults, name))
    return PlanConfig(**given)


def _noisy_band(model: Model, given: dict[str, Any]) -> None:
    """Levels for noisy images: those that the model was calibrated at, else a band above the noise."""
    noise = given["noise"]
    method = given.setdefault("method", "dc")
    for calibration in model.noised_calibrations:
        if calibration.noised == (method, noise) and calibration.plan.get("denoiser") == given.get("denoiser"):
            for name in ("levels", "first", "weighting", "loss"):
                if calibration.plan.get(name) is not None:
                    given.setdefault(name, calibration.plan[name])
            return
    low, high = model.defaults.levels or (0.0, 0.0)
    if isinstance(method, str) and method_of(method).above:
        low = max(low, _ABOVE_NOISE * noise)
    if low:
        given["levels"] = (low, max(high, _FAR_ABOVE_NOISE * noise))
    given.setdefault("first", ())


def as_the_rule_needs(config: PlanConfig, rule: AbstractRule, options: PlanOptions) -> PlanConfig:
    """The plan with the draws that the rule asks for, unless the user gave another number."""
    timesteps = rule.timesteps
    if timesteps is not None:
        given = [name for name in ("levels", "first", "order") if options.get(name) is not None]
        if given:
            raise InputError(f"rule {rule.name} brings its own timesteps: expected no {given[0]} beside it")
        config = replace(config, levels=None, first=(), timesteps=timesteps, draws=len(timesteps))
    wanted = rule.draws
    if wanted is not None and options.get("draws") is None:
        config = replace(config, draws=wanted)
    return config


def check_used(config: PlanConfig, options: PlanOptions) -> None:
    """Refuses options of the draws that a user gave and that the plan has no use for.

    Raises:
        InputError: An option has no effect.
    """
    different = -(-config.draws // 2) if config.antithetic else config.draws
    if len(options.get("first") or ()) > different:
        raise InputError(
            f"first must be at most as many levels as the draws have, {different}, got {len(config.first)}"
        )
    if len(config.first) >= different:
        unused = [name for name in ("levels", "order") if options.get(name) not in (None, "all")]
        if unused:
            raise InputError(
                f"{unused[0]} has no effect: all {config.draws} draws lie at the {len(config.first)} levels of first"
            )
    if config.antithetic and config.draws < 2:
        raise InputError("antithetic draws come in pairs: expected draws of at least 2, got 1")


def _band(model: Model, levels: tuple[float, float] | str) -> tuple[float, float] | None:
    """The band of a plan: a pair inside the model's schedule, or None for "all".

    Raises:
        InputError: The band is something else, or ends outside the schedule, which would cut it off.
    """
    if isinstance(levels, str):
        if levels != "all":
            raise InputError(f'levels must be (low, high) or "all", got {shown(levels)}')
        return None
    if isinstance(levels, (tuple, list)) and len(levels) == 2 and all(map(checks.is_finite, levels)):
        lowest, highest = model.schedule.levels([0.0, 1.0]).ratio.tolist()
        if not (lowest * (1 - 1e-9) <= min(levels) and max(levels) <= highest * (1 + 1e-9)) and min(levels) > 0:
            ends = "{:g} and {:g}".format(*levels)
            raise InputError(f"levels must lie in the schedule's {lowest:.4g} to {highest:.4g}, got {ends}")
    return levels
