"""What a user asks for and would not get, said before the work: a calibration that does not apply."""

from typing import Any

from fastdc.bundle import calibration_in
from fastdc.calibration import supported_delta
from fastdc.cli.noise import note
from fastdc.cli.runner import promise, rule_options
from fastdc.inference import Job
from fastdc.rules import Betting, Calibrated, Paired
from fastdc.support import InputError

# Numbers of images that a run may be advised to take in full: those that support 1, 2 and 5 %. They pay in runs of so
# many times as many images: at 128 draws, the shipped models need a tenth of the evaluations of a full run with paired
# tests, and a hundredth with a calibrated race.
_ADVISED, _TIMES = (99, 49, 19), 15

_OF_CALIBRATION = ("race", "calibrated", "betting")  # rules that take something from a calibration


def check_run(job: Job, options: dict[str, Any]) -> None:
    """As :func:`check_calibration`, and notes what the race does not promise in this run.

    Args:
        job: The run.
        options: Options of the command.

    Raises:
        InputError: A ``--calibration`` has no effect on this run.
    """
    check_calibration(job, options)
    for line in () if options["quiet"] else _notes(job, options):
        note(line)


def check_calibration(job: Job, options: dict[str, Any]) -> None:
    """Refuses a ``--calibration`` that the run would not use.

    Args:
        job: The run.
        options: Options of the command.

    Raises:
        InputError: The file has no effect on this run.
    """
    path = options["calibration"]
    if path is None:
        return
    found, rule, config = calibration_in(path), options["rule"], job.plan.config
    if rule not in _OF_CALIBRATION and not options.get("level_weights"):
        raise InputError(f"--calibration has no effect with --rule {rule}: it is for {', '.join(_OF_CALIBRATION)}")
    if "limit" in rule_options(options["rule_option"]):
        raise InputError("--calibration brings the race's limit: expected no -o limit=... beside it")
    if job.prior is not None and not isinstance(job.rule, Betting):
        raise InputError("--calibration promises nothing under --prior: expected one of them, or --self-calibrate")
    if options.get("self_calibrate") is not None:
        raise InputError("--calibration brings the race's limit: expected no --self-calibrate beside it")
    bound = isinstance(
        job.rule, Betting
    )  # takes the bound on differences only, which does not depend on all of the plan
    if bound and "bound" in rule_options(options["rule_option"]):
        raise InputError("--calibration brings the bound of --rule betting: expected no -o bound=... beside it")
    but = ("first", "order", "order_seed", "antithetic") if bound else ()
    if options.get("level_weights"):  # which the file brings; the race was calibrated without them, and a note says so
        but = (*but, "level_weights")
    misfit = found.misfit(config, but=but)
    if misfit is not None and rule in _OF_CALIBRATION:
        raise InputError(f"--calibration {path} is for {misfit}")
    if isinstance(job.rule, Calibrated) and found.draws != config.draws:
        raise InputError(f"--calibration {path} is for --draws {found.draws}, the run has {config.draws}")


def note_self_calibration(job: Job, options: dict[str, Any], images: int) -> None:
    """Notes, unless --quiet, where a run over `images` images could calibrate itself, or has no image left to race."""
    wanted = options["self_calibrate"]
    if options["quiet"]:
        return
    if wanted is not None:
        if wanted >= images:
            note(f"--self-calibrate {wanted} runs all {images} image{'s'[: images != 1]} in full: none is left to race")
        return
    advised = next((count for count in _ADVISED if images >= _TIMES * count), None)
    fallen_back = options["rule"] == "race" and isinstance(job.rule, Paired) and options["decision"] == "mean"
    if advised is not None and fallen_back and not rule_options(options["rule_option"]):
        why = "no calibration" if job.model.calibration is None else "no calibration for these options"
        note(
            f"the model has {why}, so that paired tests decide: --self-calibrate {advised} would run {advised} images "
            f"in full and race the others, usually with fewer evaluations; {promise(supported_delta(advised))}"
        )


def _notes(job: Job, options: dict[str, Any]) -> list[str]:
    """What the default race does not promise in this run, although the model has a calibration."""
    model, config = job.model, job.plan.config
    own = options.get("self_calibrate") is not None or "limit" in rule_options(options["rule_option"])
    if options["rule"] != "race" or own:
        return []
    if job.prior is not None:
        none = model.calibration is None
        cheaper = "; in runs over some hundred images, --self-calibrate N races under the prior for fewer evaluations"
        told = f"paired tests instead of the calibrated race, which was calibrated without a prior{cheaper}"
        return [] if none else [told]
    fitting = model.calibration_for(config)
    if fitting is not None and fitting.draws != config.draws:
        return [f"the race is calibrated for {fitting.draws} draws: with {config.draws} it makes no promise"]
    images = (config.method, config.noise) if config.noise else None
    known = [one for one in (model.calibration, *model.noised_calibrations) if one is not None and one.noised == images]
    if isinstance(job.rule, Paired) and known:
        return [f"paired tests instead of the calibrated race, which is for {known[0].misfit(config)}"]
    return []
