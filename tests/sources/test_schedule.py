"""Schedules read from scheduler configs, against diffusers' scheduler objects: every class and option."""

import ast
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import torch  # noqa: E402

from fastdc import BundleError  # noqa: E402
from fastdc.diffusion import (  # noqa: E402
    DiscreteSchedule,
    FlowSchedule,
    SteppedSchedule,
    TableSchedule,
    schedule_from_dict,
)
from fastdc.sources.schedule import _BETAS, _CLASSES, SCHEDULERS, schedule_of  # noqa: E402
from helpers.worlds import assert_one_line  # noqa: E402

# diffusers replaces these classes by stand-ins unless an extra package is installed that nothing else needs.
NEEDS_MORE = {"DPMSolverSDEScheduler"}
MADE = [name for name in _CLASSES if name not in NEEDS_MORE]
RESCALING = [n for n in MADE if "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, n)).parameters]
SLOW = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")  # each takes a second to make

pytestmark = pytest.mark.filterwarnings("ignore:.*__array:DeprecationWarning")

CONFIGS: dict[str, dict[str, Any]] = {
    "nothing given": {},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.1, "num_train_timesteps": 100},
    "stable diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
    "listed": {"trained_betas": [0.01, 0.2, 0.1, 0.5], "num_train_timesteps": 4},
}


def saved(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The config that save_config writes, and the scheduler itself."""
    scheduler = getattr(diffusers, name)(**options)
    config = {"_class_name": name, **dict(scheduler.config)}
    return config, scheduler


def assert_levels_of(schedule: Any, scheduler: Any, *, dropped: int = 0) -> None:
    theirs = scheduler.alphas_cumprod.numpy().astype(np.float64)
    theirs = theirs[: len(theirs) - dropped]
    ours = schedule.alphas_cumprod
    assert ours.shape == theirs.shape
    # Theirs are float32: 1 - beta is off by 2^-25 and each product by 2^-24, both relative to 1 - beta.
    factors = ours / np.concatenate([[1.0], ours[:-1]])
    tolerance = np.cumsum(2.0**-25 / factors + 2.0**-24) + 2.0**-20
    assert (np.abs(theirs / ours - 1) <= tolerance).all()


@pytest.mark.parametrize(
    ("name", "options"), [(n, o) for n in MADE for o in CONFIGS if n not in SLOW or o == "stable diffusion"]
)
def test_levels_are_those_of_the_scheduler(name: str, options: str) -> None:
    config, scheduler = saved(name, CONFIGS[options])
    schedule, parameterization = schedule_of(config)
    assert isinstance(schedule, TableSchedule if options == "listed" else DiscreteSchedule)
    assert_levels_of(schedule, scheduler)
    assert parameterization.kind == "epsilon"
    assert schedule_from_dict(schedule.to_dict()) == schedule


@pytest.mark.parametrize("name", [name for name in MADE if name not in SLOW])
def test_an_option_not_given_has_the_default_of_the_class(name: str) -> None:
    assert_levels_of(schedule_of({"_class_name": name})[0], getattr(diffusers, name)())


@pytest.mark.parametrize("name", sorted(NEEDS_MORE))
def test_defaults_of_classes_that_cannot_be_made_here(name: str) -> None:
    file = Path(diffusers.__file__).parent / "schedulers" / "scheduling_dpmsolver_sde.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    named = [argument.arg for argument in init.args.args][-len(init.args.defaults) :]
    defaults = {key: ast.literal_eval(value) for key, value in zip(named, init.args.defaults, strict=True)}
    for option, value in {**_BETAS, **_CLASSES[name]}.items():
        assert defaults[option] == value, option


@pytest.mark.parametrize("name", SLOW)
def test_defaults_of_classes_that_are_slow_to_make(name: str) -> None:
    signature = inspect.signature(getattr(diffusers, name)).parameters
    for option, value in {**_BETAS, **_CLASSES[name]}.items():
        assert signature[option].default == value, option


@pytest.mark.parametrize("name", RESCALING)
@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
def test_rescaled_betas_end_before_pure_noise(name: str, kind: str) -> None:
    """The last level, which holds nothing of the image (or 2^-24 of it, to guard a sampler), is left out."""
    options = {**CONFIGS["stable diffusion"], "beta_schedule": kind, "rescale_betas_zero_snr": True}
    if name == "TCDScheduler":
        options["timestep_spacing"] = "leading"
    config, scheduler = saved(name, options)
    schedule, _ = schedule_of(config)
    assert isinstance(schedule, TableSchedule)
    theirs = scheduler.alphas_cumprod.numpy().astype(np.float64)
    assert theirs[-1] <= 2.0**-24
    # Their rescaling subtracts the last root, about 0.07, in float32. That is off by 2^-25, and the second cumulative
    # product adds up a thousand such errors. Ours stays in float64.
    np.testing.assert_allclose(np.sqrt(schedule.alphas_cumprod), np.sqrt(theirs[:-1]), atol=2e-4)
    assert schedule.alphas_cumprod[0] == pytest.approx(theirs[0], rel=1e-6)
    plain = schedule_of({**config, "rescale_betas_zero_snr": False})[0]
    assert isinstance(plain, SteppedSchedule)
    assert (schedule.alphas_cumprod[1:] < plain.alphas_cumprod[1:-1]).all()


@pytest.mark.parametrize("kind", ["sigmoid", "laplace"])
def test_betas_of_ddpm_alone(kind: str) -> None:
    config, scheduler = saved("DDPMScheduler", {"beta_schedule": kind, "num_train_timesteps": 200})
    assert_levels_of(schedule_of(config)[0], scheduler)


def test_exponential_betas() -> None:
    config, scheduler = saved("HeunDiscreteScheduler", {"beta_schedule": "exp", "num_train_timesteps": 200})
    assert_levels_of(schedule_of(config)[0], scheduler)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_prediction_type_is_the_parameterisation(kind: str) -> None:
    config, scheduler = saved("DDPMScheduler", {"prediction_type": kind})
    schedule, parameterization = schedule_of(config)
    assert parameterization.kind == kind
    assert_levels_of(schedule, scheduler)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_are_those_of_the_scheduler(shift: float) -> None:
    config, scheduler = saved("FlowMatchEulerDiscreteScheduler", {"shift": shift})
    schedule, parameterization = schedule_of(config)
    assert (parameterization.kind, schedule) == ("flow", FlowSchedule(shift=shift, timestep_scale=1000.0))
    levels = schedule.levels(np.arange(1, 1000) / 1000)  # our schedule leaves out the last, pure noise
    # Theirs are float32 quotients of at most 1.
    np.testing.assert_allclose(levels.sigma, scheduler.sigmas.numpy()[::-1][:-1], rtol=2.0**-21)
    np.testing.assert_allclose(levels.timestep, scheduler.timesteps.numpy()[::-1][:-1], rtol=2.0**-21)
    x, e = torch.tensor([[0.5]]), torch.tensor([[-2.0]])
    at = scheduler.timesteps[[300]]
    noisy = float(scheduler.scale_noise(x, at, e))
    u = (999 - 300 + 1) / 1000
    there = schedule.levels([u])
    assert noisy == pytest.approx(float(there.alpha[0] * 0.5 - there.sigma[0] * 2), rel=1e-5)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no class": ({}, "scheduler must be one of"),
    "no text": ({"_class_name": ["DDPMScheduler"]}, "got ['DDPMScheduler']"),
    "other levels": ({"_class_name": "ScoreSdeVeScheduler"}, "got 'ScoreSdeVeScheduler'"),
    "prediction": ({"prediction_type": "velocity"}, "prediction_type must be one of epsilon"),
    "flow sigmas": ({"use_flow_sigmas": True}, "flow sigmas is not supported"),
    "flow prediction": ({"prediction_type": "flow_prediction"}, "flow sigmas is not supported"),
    "unknown betas": ({"beta_schedule": "magic"}, "beta_schedule must be one of linear"),
    "betas of text": ({"beta_start": "0.1"}, "beta_start must be a number, got '0.1'"),
    "betas swapped": ({"beta_start": 0.2, "beta_end": 0.1}, "betas must satisfy"),
    "steps": ({"num_train_timesteps": 0}, "num_train_timesteps must be a whole number from 1 to 1000000, got 0"),
    "steps of a table": ({"beta_schedule": "sigmoid", "num_train_timesteps": 10**6}, "from 1 to 10000, got 1000000"),
    "true steps": ({"num_train_timesteps": True}, "got True"),
    "listed no list": ({"trained_betas": "0.1"}, "trained_betas must be a list"),
    "listed 1": ({"trained_betas": [0.1, 1.0]}, "numbers in (0, 1)"),
    "listed none": ({"trained_betas": []}, "must be 1 to 10000 numbers, got 0"),
    "nothing to rescale": ({"trained_betas": [0.1], "rescale_betas_zero_snr": True}, "cannot be rescaled"),
    "vanishing": ({"beta_schedule": "sigmoid", "beta_end": 0.99, "num_train_timesteps": 5000}, "fall and stay inside"),
    "dynamic": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "depends on the"),
    "inverted": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
    "shift": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": None}, "shift must be a number, got None"),
}


@pytest.mark.parametrize("name", BAD)
def test_configs_that_do_not_say_how_a_model_was_trained_are_refused(name: str) -> None:
    config, message = BAD[name]
    with pytest.raises(BundleError) as caught:
        schedule_of({"_class_name": "DDPMScheduler", **config} if name != "no class" else config)
    assert_one_line(caught.value, message)


def test_every_scheduler_named_exists() -> None:
    for name in SCHEDULERS:
        assert hasattr(diffusers, name)
