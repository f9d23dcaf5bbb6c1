"""Jobs: what a user gives becomes a plan and a rule, candidates become lists, and a run tells how far it is."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fastdc import Defaults, InputError, Model, Progress
from fastdc.diffusion import DiscreteSchedule
from fastdc.diffusion.level_weights import LevelWeights
from fastdc.diffusion.parameterization import Parameterization
from fastdc.diffusion.plan import PlanConfig
from fastdc.engine import Finished
from fastdc.inference import Job, Options, PlanOptions, Settings, check_candidates, plan_config
from fastdc.inference.images import streams_of, to_model_range
from fastdc.rules.betting import Betting
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.calibration import Calibration, plan_without_draws
from fastdc.rules.full import Full
from fastdc.rules.paired import Paired
from fastdc.rules.staged import Staged, li_stages
from helpers.races import DRAWS, RULES, rule_of, slow_race
from helpers.worlds import SHAPE, Float32, ManySlots, denoiser, fails_with, gaussian, unit_images

WORLD = gaussian(3)
BAND = replace(
    WORLD.model,
    defaults=Defaults(draws=24, levels=(0.5, 2.0), weighting="vlb", loss="l1", first=(1.0, 0.7)),
)


def job_of(
    rule: Any = "race", options: PlanOptions | None = None, *, model: Model = WORLD.model, **changes: Any
) -> Job:
    network = changes.pop("network", None) or ManySlots(denoiser(WORLD))
    wanted = {"rule": rule, "rule_options": changes.pop("rule_options", None), "seed": changes.pop("seed", 0)}
    return Job.of(model, [network], Options().but(**wanted, **(options or {})))


def test_noisy_images_take_the_levels_that_they_are_calibrated_at() -> None:
    known = PlanConfig(16, (0.6, 2.0), "uniform", "l1", first=(0.9,), method="epndc", noise=0.5)
    made = calibration(known)
    model = replace(BAND, noised_calibrations=(made,))
    assert made.noised == ("epndc", 0.5)
    noisy: PlanOptions = {"method": "epndc", "sigma": 0.25}  # 0.5 on [-1, 1]
    assert plan_config(model, noisy) == replace(known, draws=24)
    assert job_of(options={**noisy, "draws": 16}, model=model).rule == made.rule
    assert isinstance(job_of(options={"method": "epndc", "sigma": 0.2}, model=model).rule, Paired)
    assert isinstance(job_of(options={"method": "apndc", "sigma": 0.25, "denoiser": "mean"}, model=model).rule, Paired)
    assert isinstance(job_of(options={**noisy, "levels": (0.6, 3.0)}, model=model).rule, Paired)


def test_without_a_calibration_the_band_is_above_the_noise() -> None:
    for method, sigma, levels in (
        ("epndc", 0.1, (0.5, 2.0)),
        ("epndc", 0.4, (0.84, 3.2)),
        ("dc", 0.4, (0.5, 3.2)),
        ("denoised", 0.4, (0.5, 3.2)),
    ):
        made = plan_config(BAND, {"method": method, "sigma": sigma})
        assert made.levels == pytest.approx(levels)
        assert (made.first, made.noise) == ((), 2 * sigma)
    assert plan_config(BAND, {"sigma": 0.4, "levels": (0.1, 0.2)}).levels == (0.1, 0.2)
    assert plan_config(BAND, {"sigma": 0.0}) == plan_config(BAND, {})


# --- plans -----------------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_the_models() -> None:
    model_plan = PlanConfig(24, (0.5, 2.0), "vlb", "l1", first=(1.0, 0.7))
    assert plan_config(BAND, {}) == model_plan
    none: PlanOptions = {"draws": None, "levels": None, "weighting": None, "loss": None, "first": None, "order": None}
    assert plan_config(BAND, none) == model_plan
    assert plan_config(BAND, {"draws": 3, "loss": "huber"}) == replace(model_plan, draws=3, loss="huber")
    assert plan_config(BAND, {"weighting": "exp"}) == replace(model_plan, weighting="exp")
    assert plan_config(BAND, {"first": [0.9]}) == replace(model_plan, first=(0.9,))
    curve = LevelWeights((0.1, 1.0), (1.0, 2.0))
    rest: PlanOptions = {"order": "random", "order_seed": 7, "antithetic": True, "level_weights": curve}
    assert plan_config(BAND, rest) == replace(
        model_plan, order="random", order_seed=7, antithetic=True, level_weights=curve
    )


def test_first_levels_belong_to_the_models_band() -> None:
    assert plan_config(BAND, {"levels": (0.1, 1.0)}) == PlanConfig(24, (0.1, 1.0), "vlb", "l1")
    assert plan_config(BAND, {"levels": "all"}) == PlanConfig(24, None, "vlb", "l1")
    assert plan_config(BAND, {"levels": "all", "first": (0.8,)}) == PlanConfig(24, None, "vlb", "l1", first=(0.8,))


def test_unknown_options_are_refused() -> None:
    unknown: Any = {"speed": 3, "draws": 2}
    fails_with(lambda: plan_config(BAND, unknown), "there is no option 'speed'", kind=InputError)
    fails_with(lambda: plan_config(BAND, {"levels": "some"}), 'levels must be (low, high) or "all"', kind=InputError)


# --- jobs ------------------------------------------------------------------------------------------------------------


def calibration(plan: PlanConfig) -> Calibration:
    return Calibration(1.5, 0.05, 0.04, 20, 100, 4, 2.5, plan_without_draws(plan))


def test_the_race_is_the_models_calibrated_one_for_the_plan_that_it_fits() -> None:
    model = replace(BAND, calibration=calibration(plan_config(BAND, {})))
    assert job_of(model=model, options={"draws": 16}).rule == Calibrated(1.5, draws=20)
    assert job_of(model=model, options={"draws": 16, "loss": "l2"}).rule == Paired(rivals=2)
    assert job_of(model=BAND).rule == Paired(rivals=2)
    assert job_of("betting", model=model).rule == Betting(bound=2.5, rivals=2)
    assert job_of("full", model=model).rule == Full()
    # What the calibration was made for is what a run has unless the user says otherwise, and the most it may have.
    assert job_of(model=model).plan.config.draws == 20
    fails_with(lambda: job_of(model=model, options={"draws": 21}), "up to 20 draws, got 21", kind=InputError)


def test_rules_bring_their_draws() -> None:
    staged = {"n_samples": (2, 5), "to_keep": (2, 1)}
    assert job_of("staged", rule_options=staged).plan.draws == 5
    fails_with(lambda: job_of("staged", {"draws": 6}, rule_options=staged), "needs draws=5, got 6", kind=InputError)
    assert job_of("full").plan.draws == WORLD.model.defaults.draws


def test_rules_bring_their_timesteps() -> None:
    model = Model(
        name="steps",
        image_shape=SHAPE,
        class_names=("a", "b", "c"),
        schedule=DiscreteSchedule(),
        parameterization=Parameterization("epsilon"),
        defaults=Defaults(draws=7, levels=(0.1, 5.0), first=(0.5,)),
    )
    rule = Staged((3, 10), (2, 1), compat="li")
    made = job_of(rule, model=model)
    assert made.plan.config.timesteps == tuple(step for stage in li_stages((3, 10)) for step in stage)
    assert (made.plan.draws, made.plan.config.levels, made.plan.config.first) == (10, None, ())
    clashes: list[PlanOptions] = [{"levels": (0.1, 1.0)}, {"levels": "all"}, {"first": (0.5,)}, {"order": "random"}]
    for options in clashes:
        (name,) = options
        fails_with(
            lambda options=options: job_of(rule, options, model=model),  # type: ignore[misc]
            "rule staged brings its own timesteps",
            name,
            kind=InputError,
        )
    fails_with(lambda: job_of(rule), "discrete schedule", kind=InputError)


def test_seeds_are_whole_numbers() -> None:
    for seed in (0, 2**64 - 1, np.uint64(7)):
        assert job_of(seed=seed).seed == int(seed)
    for wrong in (-1, 2**64, 1.0, "0", None, True):
        fails_with(lambda wrong=wrong: job_of(seed=wrong), "seed must be a whole number", kind=InputError)  # type: ignore[misc]


def test_settings_decide_and_say_what_reproduces_it() -> None:
    made = job_of("paired", {"draws": 4}, seed=3, rule_options={"alpha": 0.2})
    settings = Settings(made, "vote", 0.5)
    x = to_model_range(unit_images(2), made.model)
    streams = streams_of(x)
    finished = [one for batch in made.run(x, streams) for one in batch]
    rows = [(one.counts, one.values) for one in sorted(finished, key=lambda one: one.key)]
    result = settings.decide(made.table_of([*rows, None], streams), np.array([4, 9]), seconds=2.0)
    assert result.indices.tolist() == [4, 9]
    assert result.seconds == 2
    told = json.loads(json.dumps(result.provenance))
    assert told.pop("fastdc") == result.table.version
    assert told == {
        "method": "dc",
        "rule": {"name": "paired", "alpha": 0.2, "first": 3, "rivals": 2},
        "decision": "vote",
        "temperature": 0.5,
        "seed": 3,
        "plan": made.plan.config.to_dict(),
        "model": "gaussian",
        "sha256": "",
        "backend": "function",
        "device": "cpu",
        "batch": made.networks[0].batch,
        "precision": "float32",
    }
    assert result.table.rule == "paired"


# --- runs ------------------------------------------------------------------------------------------------------------


def run(made: Job, n: int, **options: Any) -> tuple[list[Finished], list[Progress]]:
    x = to_model_range(unit_images(n), made.model)
    calls: list[Progress] = []
    batches = made.run(x, streams_of(x), progress=calls.append, **options)
    return [one for batch in batches for one in batch], calls


@given(
    name=st.sampled_from(RULES),
    n=st.integers(1, 8),
    batch=st.sampled_from([1, 5, 64]),
    slots=st.integers(1, 3),
    masked=st.booleans(),
)
def test_progress_only_advances_and_ends_at_what_was_done(
    name: str, n: int, batch: int, slots: int, masked: bool
) -> None:
    network = ManySlots(denoiser(WORLD), batch=batch, slots=slots)
    made = job_of(rule_of(name, 3, scale=0.5), {"draws": DRAWS}, network=network)
    candidates = [np.arange(1 + i % 3, dtype=np.int32) for i in range(n)] if masked else None
    finished, calls = run(made, n, candidates=candidates)
    spent = sum(len(one.values) for one in finished)
    assert 0 < len(calls) <= len(network.recorded)
    assert all(call.images == n for call in calls)
    for values in ([call.finished for call in calls], [call.evaluations for call in calls]):
        assert values == sorted(values)
    bounds = [call.at_most for call in calls]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] <= n * 3 * DRAWS
    assert calls[-1] == Progress(n, n, spent, spent)


def test_images_are_keyed_by_their_index_and_race_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.stack(
        [one.values.reshape(3, DRAWS) for one in sorted(run(job_of("full", {"draws": DRAWS}), 9)[0], key=key)]
    )
    rule = rule_of("calibrated", 3)
    for capacity in (1, 2, 7):
        monkeypatch.setattr("fastdc.inference.job.IN_FLIGHT", capacity)
        finished, _ = run(job_of(rule, {"draws": DRAWS}), 9)
        assert {one.key: one.counts.tolist() for one in finished} == {i: slow_race(rule, whole[i]) for i in range(9)}


def key(one: Finished) -> int:
    return one.key


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_an_interrupt_hands_out_all_that_was_finished_before_it_goes_on(slots: int, at: int) -> None:
    """It strikes in the caller's own function, after a step that may have finished images."""
    network = ManySlots(denoiser(WORLD), batch=6, slots=slots)
    made = job_of("full", {"draws": 2}, network=network)
    x = to_model_range(unit_images(60), made.model)
    seen: list[Progress] = []

    def progress(now: Progress) -> None:
        seen.append(now)
        if len(seen) > at:
            raise KeyboardInterrupt

    given: list[Finished] = []
    batches = made.run(x, streams_of(x), progress=progress)

    def take() -> None:
        for batch in batches:
            given.extend(batch)

    with pytest.raises(KeyboardInterrupt):
        take()
    # A step is one image, and those in flight are finished as well.
    assert len(given) == len(network.recorded) >= seen[-1].finished > at
    assert len({one.key for one in given}) == len(given) < 60  # of three slots, at most two steps each in every round


def test_memory_is_that_of_the_errors_that_exist() -> None:
    """300 images that nearly all end after a few draws of a budget of 20,000: their whole table would be 96 MB."""
    world, draws = gaussian(4, scale=0.9), 20_000
    x = world.sample(np.arange(300) % 4).astype(np.float32)
    streams = streams_of(x)
    network = ManySlots(denoiser(world))
    made = job_of("calibrated", {"draws": draws}, model=world.model, network=network, rule_options={"limit": 2.0})
    tracemalloc.start()
    try:
        rows = [(one.counts, one.values) for batch in made.run(x, streams) for one in batch]
        values = made.table_of(list(rows), streams).values
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert values.nbytes < 300 * 4 * draws * 4 / 1000
    assert peak < 2 * values.nbytes + 2000 * len(x) + 100 * draws  # the draws are those of the plan


# --- candidates ------------------------------------------------------------------------------------------------------

IMAGES: Float32 = unit_images(3)


def model_of(n_classes: int) -> Model:
    return replace(WORLD.model, class_names=tuple(map(str, range(n_classes))))


@given(
    stn.arrays(np.bool_, st.tuples(st.just(3), st.integers(1, 6))).filter(lambda mask: bool(mask.any(axis=1).all())),
    st.randoms(use_true_random=False),
)
def test_masks_lists_and_prefilters_say_the_same(mask: Any, random: Any) -> None:
    expected = [np.flatnonzero(row).tolist() for row in mask]
    lists = [random.sample(row, len(row)) + row[:1] for row in expected]  # in any order, and one of them twice
    seen: list[Any] = []

    def prefilter(images: Float32) -> Any:
        seen.append(images)
        return lists

    forms: list[Any] = [mask, lists, tuple(map(tuple, lists)), [np.array(row, np.uint8) for row in lists]]
    for form in [*forms, prefilter, lambda _: mask, iter(lists)]:
        got = check_candidates(form, IMAGES, model_of(mask.shape[1]))
        assert [classes.tolist() for classes in got] == expected
        assert all(classes.dtype == np.int32 for classes in got)
    assert seen[0] is IMAGES


def test_a_table_of_equally_many_classes_is_taken() -> None:
    got = check_candidates(np.array([[2, 0], [1, 1], [0, 2]]), IMAGES, model_of(3))
    assert [classes.tolist() for classes in got] == [[0, 2], [1], [0, 2]]


@pytest.mark.parametrize(
    ("candidates", "says"),
    [
        (np.ones((3, 4), bool), "a mask of candidates must have shape (3, 5), got (3, 4)"),
        (np.ones((2, 5), bool), "a mask of candidates must have shape (3, 5), got (2, 5)"),
        (np.ones(5, bool), "must have shape (3, 5), got (5,)"),
        (np.eye(3, 5, dtype=bool) & False, "candidates of image 0 must be one class or more"),
        ([[0], [1]], "a list of classes for each of 3 images, got 2"),
        ([], "for each of 3 images, got 0"),
        (5, "candidates must be a mask or a list of classes, got 5"),
        (None, "candidates must be a mask or a list of classes, got None"),
        (lambda _: None, "candidates must be a mask or a list of classes, got None"),
        ([[0], [], [1]], "candidates of image 1 must be one class or more, got []"),
        ([[0], 1, [1]], "candidates of image 1 must be one class or more, got 1"),
        ([0, 1, 5], "candidates must be in [0, 5), got 5"),
        (["1", "cat"], "candidates must be classes of the model, got 'cat'"),
        ([0, "x"], "candidates must be classes of the model, got 'x': expected names such as '0', '1', '2', '3', '4'"),
        ([[0], ["1", 2.0], [1]], "candidates of image 1 must be class indices or class names, got 2.0"),
        ({"class 0": 1}, "candidates must be a mask or a list of classes, got {"),
        ([[0], [1.0], [1]], "candidates of image 1 must be class indices or class names, got 1.0"),
        ([[0], [True, False], [1]], "candidates of image 1 must be class indices or class names, got True"),
        ([[0], ["5"], [1]], "candidates of image 1 must be classes of the model, got '5'"),
        ("012", "candidates must be a mask or a list of classes, got '012'"),
        ([[0], [[1, 2], [3]], [1]], "candidates of image 1 must be class indices or class names, got [1, 2]"),
        (
            [[0], np.zeros((3, 3), int), [1]],
            "candidates of image 1 must be class indices or class names, got int64 of",
        ),
        ([[0], [2**70], [1]], "candidates of image 1"),
        ([[0], [1], [5]], "candidates of image 2 must be in [0, 5), got 5"),
        ([[0], [1], [-1, 2]], "candidates of image 2 must be in [0, 5), got -1"),
    ],
)
def test_what_are_no_candidates_is_refused(candidates: Any, says: str) -> None:
    fails_with(lambda: check_candidates(candidates, IMAGES, model_of(5)), says, kind=InputError)


def test_what_a_prefilter_raises_comes_out() -> None:
    def prefilter(_: Float32) -> Any:
        raise ZeroDivisionError("mine")

    call: Callable[[], Any] = lambda: check_candidates(prefilter, IMAGES, model_of(5))  # noqa: E731
    with pytest.raises(ZeroDivisionError, match="mine"):
        call()


# --- options without effect ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"first": (0.8, 0.9), "draws": 1}, ["first", "at most", "1, got 2"]),
        ({"first": (0.8, 0.9), "draws": 3, "antithetic": True, "levels": (0.5, 2.0)}, ["levels has no effect"]),
        ({"first": (0.8,), "draws": 1, "order": "random"}, ["order has no effect"]),
        ({"draws": 1, "antithetic": True, "first": ()}, ["antithetic", "pairs"]),
        ({"levels": (0.5, 1e6)}, ["levels must lie in the schedule's"]),
        ({"levels": (1e-9, 1.0)}, ["levels must lie in the schedule's"]),
    ],
)
def test_an_option_of_the_plan_without_effect_is_refused(options: PlanOptions, parts: list[str]) -> None:
    fails_with(lambda: job_of("full", options, model=BAND), *parts, kind=InputError)


def test_a_default_that_is_cut_off_is_none_of_the_users_options() -> None:
    assert job_of("full", {"draws": 1}, model=BAND).plan.draws == 1  # with two first levels by default
    assert job_of("full", {"draws": 2, "levels": "all", "first": (0.8, 0.9)}, model=BAND).plan.draws == 2


def test_rule_calibrated_is_for_the_draws_that_it_was_calibrated_for() -> None:
    model = replace(BAND, calibration=calibration(plan_config(BAND, {"draws": 16})))
    assert job_of("calibrated", model=model).plan.draws == 20
    for more in ({}, {"draws": 8}):  # an option of the rule is no other calibration
        given = {"rule_options": more, "model": model}
        fails_with(lambda given=given: job_of("calibrated", {"draws": 8}, **given), "20 draws", "8", kind=InputError)  # type: ignore[misc]
    assert job_of("race", {"draws": 8}, model=model).plan.draws == 8
    assert job_of("calibrated", {"draws": 8}, model=model, rule_options={"limit": 2.0}).plan.draws == 8
    fails_with(lambda: job_of("calibrated", {"loss": "l2"}, model=model), "loss l1, the run has l2", kind=InputError)


def test_a_bound_on_differences_is_of_one_loss_and_weighting() -> None:
    made = calibration(plan_config(BAND, {"draws": 16}))
    model = replace(BAND, calibration=made)
    assert job_of("betting", {"order": "random", "first": ()}, model=model).rule.bound == made.bound  # type: ignore[attr-defined]
    for other in ({"loss": "l2"}, {"weighting": "edm"}, {"levels": (0.6, 2.0)}):
        fails_with(lambda other=other: job_of("betting", other, model=model), "bound=...", kind=InputError)  # type: ignore[misc]
