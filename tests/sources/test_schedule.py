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
    ContinuousSchedule,
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Parameterization,
    SteppedSchedule,
    TableSchedule,
    schedule_from_dict,
)
from fastdc.sources.schedule import (  # noqa: E402
    _BETAS,
    _CLASSES,
    _EDM,
    _FLOW,
    _FLOWING,
    _RESCALING,
    _USUAL,
    SAMPLING_ONLY,
    SCHEDULERS,
    schedule_of,
)
from helpers.worlds import assert_one_line  # noqa: E402

# diffusers replaces these classes by stand-ins unless an extra package is installed that nothing else needs.
NEEDS_MORE = {"DPMSolverSDEScheduler"}
MADE = [name for name in _CLASSES if name not in NEEDS_MORE]
RESCALING = sorted(_RESCALING)
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
    ("name", "options"),
    [
        (n, o)
        for n in MADE
        for o in CONFIGS
        if (n not in SLOW or o == "stable diffusion") and (n, o) != ("RePaintScheduler", "listed")  # fails in diffusers
    ],
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


def defaults_of(name: str) -> dict[str, Any]:
    """The options of a scheduler's class with their defaults, also of a class that cannot be made here."""
    if name not in NEEDS_MORE:
        options = inspect.signature(getattr(diffusers, name)).parameters.values()
        return {option.name: option.default for option in options if option.kind is not option.VAR_KEYWORD}
    file = Path(diffusers.__file__).parent / "schedulers" / "scheduling_dpmsolver_sde.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    named = [argument.arg for argument in init.args.args][-len(init.args.defaults) :]
    return {key: ast.literal_eval(value) for key, value in zip(named, init.args.defaults, strict=True)}


@pytest.mark.parametrize("name", [*sorted(NEEDS_MORE), *SLOW])
def test_defaults_of_classes_that_are_not_or_slowly_made(name: str) -> None:
    defaults = defaults_of(name)
    for option, value in {**_BETAS, **_CLASSES[name]}.items():
        assert defaults[option] == value, option


def test_every_option_of_every_scheduler_is_known() -> None:
    """And the options that only some classes act on are those in their signatures."""
    options = {name: set(defaults_of(name)) for name in SCHEDULERS}
    known = SAMPLING_ONLY | set(_USUAL) | set(_BETAS) | {"trained_betas", "sigma_data"}
    assert set().union(*options.values()) <= known
    assert {name for name in _CLASSES if "rescale_betas_zero_snr" in options[name]} == _RESCALING
    assert {name for name in _CLASSES if "use_flow_sigmas" in options[name]} == _FLOWING
    assert [name for name in SCHEDULERS if "timestep_type" in options[name]] == ["EulerDiscreteScheduler"]
    assert [name for name in _CLASSES if "prediction_type" not in options[name]] == ["RePaintScheduler"]
    assert {name for name in SCHEDULERS if "shift" in options[name]} == set(_FLOW)
    assert {name for name in SCHEDULERS if "sigma_data" in options[name]} == set(_EDM)
    for name in SCHEDULERS:  # so a config that states every default is read
        if name not in NEEDS_MORE:
            schedule_of({"_class_name": name, **defaults_of(name)})


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


@pytest.mark.parametrize("name", sorted(_FLOWING))
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_of_solvers_over_betas(name: str, shift: float) -> None:
    options = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    if name == "DPMSolverSinglestepScheduler":
        options["lower_order_final"] = True  # otherwise it warns
    config, scheduler = saved(name, options)
    schedule, parameterization = schedule_of(config)
    assert (parameterization.kind, schedule) == ("flow", FlowSchedule(shift=shift, timestep_scale=1000.0))
    scheduler.set_timesteps(12)
    sigmas = np.sort(scheduler.sigmas.double().numpy())
    sigmas = sigmas[(sigmas > 1e-3) & (sigmas < 0.999)]
    assert len(sigmas) >= 9
    levels = schedule.levels([schedule.position_of(sigma / (1 - sigma)) for sigma in sigmas])
    np.testing.assert_allclose(levels.sigma, sigmas, rtol=1e-6)
    for timestep in levels.timestep:  # theirs are cut to whole numbers
        assert np.abs(scheduler.timesteps.numpy() - timestep).min() < 1.001
    if name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[3])
        assert float(alpha + sigma) == pytest.approx(1)


@pytest.mark.parametrize("name", _FLOW)
def test_levels_of_flow_matching(name: str) -> None:
    config, scheduler = saved(name, {"shift": 3.0})
    schedule, parameterization = schedule_of(config)
    assert (parameterization.kind, schedule) == ("flow", FlowSchedule(shift=3.0, timestep_scale=1000.0))
    levels = schedule.levels(np.arange(1, 1000) / 1000)
    np.testing.assert_allclose(levels.sigma, scheduler.sigmas.numpy()[::-1][:-1], rtol=2.0**-21)
    np.testing.assert_allclose(levels.timestep, scheduler.timesteps.numpy()[::-1][:-1], rtol=2.0**-21)


@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}])
def test_a_continuous_network_is_told_the_logarithm(options: dict[str, Any]) -> None:
    """Noise range, time input, network input and clean image of Euler's scheduler with v-prediction."""
    config, scheduler = saved(
        "EulerDiscreteScheduler",
        {**CONFIGS["stable diffusion"], "prediction_type": "v_prediction", "timestep_type": "continuous", **options},
    )
    schedule, parameterization = schedule_of(config)
    assert isinstance(schedule, ContinuousSchedule)
    assert schedule_from_dict(schedule.to_dict()) == schedule
    scheduler.set_timesteps(7)
    ratios = scheduler.sigmas[:-1].double().numpy()
    assert schedule.sigma_max == pytest.approx(ratios[0], rel=1e-4)
    assert schedule.sigma_min == pytest.approx(ratios[-1], rel=1e-4)
    levels = schedule.levels([schedule.position_of(ratio) for ratio in ratios])
    np.testing.assert_allclose(levels.timestep, scheduler.timesteps.numpy(), atol=2e-5)
    rows = parameterization.rows(levels, 1.0)
    _, p, q = parameterization.denoiser(levels)
    x, e, f = 0.3, -1.7, 0.9
    for step, ratio in enumerate(ratios):
        sample, timestep = torch.tensor([x + ratio * e]), scheduler.timesteps[step]
        inputs = float(scheduler.scale_model_input(sample, timestep))
        assert rows[step, 0] * x + rows[step, 1] * e == pytest.approx(inputs, rel=1e-4, abs=1e-5)
        clean = float(scheduler.step(torch.tensor([f]), timestep, sample).pred_original_sample)
        assert p[step] * f + q[step] * inputs == pytest.approx(clean, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_with_other_predictions_continuous_time_has_steps(kind: str) -> None:
    """As in diffusers, which tells ln(sigma) / 4 to networks of v-prediction alone."""
    config, scheduler = saved("EulerDiscreteScheduler", {"prediction_type": kind, "timestep_type": "continuous"})
    schedule, parameterization = schedule_of(config)
    assert parameterization.kind == kind
    assert_levels_of(schedule, scheduler)
    assert scheduler.timesteps[0] == 999


@pytest.mark.parametrize("name", _EDM)
def test_edm_schedulers_are_edm(name: str) -> None:
    config, scheduler = saved(name, {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.6})
    schedule, parameterization = schedule_of(config)
    assert (schedule, parameterization) == (EDMSchedule(0.01, 50.0, 0.25), Parameterization("edm", 0.6))
    levels = schedule.levels([0.1, 0.5, 0.9])
    rows = parameterization.rows(levels, 1.0)
    _, p, q = parameterization.denoiser(levels)
    x, e, f = 0.3, -1.7, 0.9
    for j, sigma in enumerate(torch.tensor(levels.sigma)):
        sample = x + sigma * e
        inputs = float(scheduler.precondition_inputs(sample, sigma))
        assert rows[j, 0] * x + rows[j, 1] * e == pytest.approx(inputs, rel=1e-5)
        assert levels.timestep[j] == pytest.approx(float(scheduler.precondition_noise(sigma)))
        clean = float(scheduler.precondition_outputs(sample, torch.tensor(f), sigma))
        assert p[j] * f + q[j] * sample == pytest.approx(clean, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"predict_epsilon": True}, "epsilon"),
        ({"predict_epsilon": False}, "sample"),
        ({"predict_epsilon": False, "prediction_type": "sample"}, "sample"),
    ],
)
def test_the_old_form_of_the_prediction_type(options: dict[str, Any], kind: str) -> None:
    assert schedule_of({"_class_name": "DDPMScheduler", **options})[1].kind == kind


PUBLISHED: dict[str, dict[str, Any]] = {
    "the first DDPMs": {
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
        "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "tensor_format": "pt",
        "timestep_values": None, "trained_betas": None, "variance_type": "fixed_large",
    },
    "Stable Diffusion 1": {
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "clip_sample": False,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
    },
    "Stable Diffusion XL": {
        "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear",
        "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
        "use_karras_sigmas": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_like_those_of_published_models_are_read(name: str) -> None:
    """They hold options of other classes, and of old versions of diffusers."""
    schedule, parameterization = schedule_of(PUBLISHED[name])
    assert (type(schedule), parameterization.kind) == (DiscreteSchedule, "epsilon")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no class": ({}, "scheduler must be one of"),
    "no text": ({"_class_name": ["DDPMScheduler"]}, "got ['DDPMScheduler']"),
    "other levels": ({"_class_name": "ScoreSdeVeScheduler"}, "got 'ScoreSdeVeScheduler'"),
    "prediction": ({"prediction_type": "velocity"}, "prediction_type must be one of epsilon"),
    "prediction of EDM": (
        {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
        "option prediction_type = 'v_prediction' is not supported: expected 'epsilon'",
    ),
    "flow sigmas": ({"use_flow_sigmas": True}, "option use_flow_sigmas = True is not supported: expected False"),
    "flow prediction": ({"prediction_type": "flow_prediction"}, "prediction_type must be one of epsilon"),
    "half a flow": (
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
        "use_flow_sigmas needs prediction_type flow_prediction, got None",
    ),
    "another half": (
        {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
        "prediction_type must be one of epsilon",
    ),
    "two shifts": (
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction",
         "shift": 3.0},
        "option shift = 3.0 is not supported",
    ),
    "rescaled by another class": (
        {"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True},
        "PNDMScheduler: option rescale_betas_zero_snr = True is not supported: expected False",
    ),
    "rescaled by text": ({"rescale_betas_zero_snr": "no"}, "rescale_betas_zero_snr must be true or false"),
    "continuous in another class": ({"timestep_type": "continuous"}, "option timestep_type = 'continuous' is not"),
    "unknown time": (
        {"_class_name": "EulerDiscreteScheduler", "timestep_type": "log"}, "timestep_type must be one of discrete",
    ),
    "unknown option": ({"snr_gamma": 5.0}, "DDPMScheduler: option snr_gamma = 5.0 is not supported: it may change"),
    "shifted SNR": ({"snr_shift_scale": 3.0}, "option snr_shift_scale = 3.0 is not supported"),
    "two predictions": (
        {"prediction_type": "v_prediction", "predict_epsilon": False},
        "predict_epsilon false means prediction_type sample, got v_prediction as well",
    ),
    "two other predictions": (
        {"prediction_type": "sample", "predict_epsilon": True}, "means prediction_type epsilon, got sample as well",
    ),
    "old prediction": ({"predict_epsilon": 0}, "predict_epsilon must be true or false, got 0"),
    "unknown betas": ({"beta_schedule": "magic"}, "beta_schedule must be one of linear"),
    "betas of text": ({"beta_start": "0.1"}, "beta_start must be a number, got '0.1'"),
    "betas swapped": ({"beta_start": 0.2, "beta_end": 0.1}, "betas must satisfy"),
    "steps": ({"num_train_timesteps": 0}, "num_train_timesteps must be a whole number from 1 to 1000000, got 0"),
    "steps of a table": ({"beta_schedule": "sigmoid", "num_train_timesteps": 10**6}, "from 1 to 10000, got 1000000"),
    "true steps": ({"num_train_timesteps": True}, "got True"),
    "listed no list": ({"trained_betas": "0.1"}, "trained_betas must be a list"),
    "listed 1": ({"trained_betas": [0.1, 1.0]}, "numbers in (0, 1)"),
    "listed none": ({"trained_betas": []}, "must be 1 to 10000 numbers, got 0"),
    "listed few": ({"trained_betas": [0.1, 0.2]}, "trained_betas must be one number per step: 1000, got 2"),
    "nothing to rescale": (
        {"trained_betas": [0.1], "num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "cannot be rescaled",
    ),
    "vanishing": ({"beta_schedule": "sigmoid", "beta_end": 0.99, "num_train_timesteps": 5000}, "fall and stay inside"),
    "dynamic": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "dynamic_shifting"),
    "inverted": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
    "shift": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": None}, "shift must be a number, got None"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_configs_that_do_not_say_how_a_model_was_trained_are_refused(name: str) -> None:
    config, message = BAD[name]
    with pytest.raises(BundleError) as caught:
        schedule_of({"_class_name": "DDPMScheduler", **config} if name != "no class" else config)
    assert_one_line(caught.value, message)


def test_every_scheduler_named_exists() -> None:
    for name in SCHEDULERS:
        assert hasattr(diffusers, name)
