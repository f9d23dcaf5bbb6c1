"""The diffusion matcher gives every image the numbers of a run of its own, whatever it runs beside."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import DiffusionClassifier, InputError, Interrupted
from fastdc.bundle import find_model, load_bundle
from fastdc.matching import DiffusionMatcher, Matched, Trials, diffusion_matcher, evidence, last_best
from fastdc.rules import Paired
from helpers.matching_worlds import CLASSES, NAMES, WORLD, N, asked, with_null, with_prompts
from helpers.worlds import SHAPE, ManySlots, classifier, denoiser, unit_images


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "full", "draws": 8},
        {"rule": "staged", "rule_options": {"n_samples": (3, 9), "to_keep": (5, 1)}},
        {"rule": "calibrated", "rule_options": {"limit": 1.0}, "draws": 16},
        {"rule": "full", "draws": 9, "decision": "vote"},
    ],
    ids=str,
)
def test_each_image_gets_the_numbers_of_a_run_of_its_own(options: dict[str, Any]) -> None:
    trials, clf = asked(), with_prompts()
    matched = DiffusionMatcher(clf, **options).match(trials)
    assert matched.rows.tolist() == list(range(N))
    images = np.asarray(trials.images)
    for i in range(0, N, 7):
        texts = trials.texts_of(i)
        alone = clf.classify(images[i : i + 1], candidates=[list(texts)], **options)
        k = [NAMES.index(text) for text in texts]
        assert matched.scores[i].tolist() == (-alone.errors[0, k]).tolist()
        assert texts[matched.answers[i]] == alone.names[0]
        assert matched.evaluations[i] == alone.evaluations[0]


@pytest.mark.parametrize("rule", ["paired", "race", "betting", Paired(0.05)], ids=str)
def test_rules_divide_their_error_over_the_candidates_of_each_image(rule: str | Paired) -> None:
    """With hundreds of texts, an image with two candidates still has one rival; other images change nothing."""
    options: dict[str, Any] = {"rule": rule, "draws": 64}
    if rule == "betting":
        options["rule_options"] = {"bound": 0.5}
    trials, clf = asked(40), with_prompts()
    matched = DiffusionMatcher(clf, **options).match(trials)
    assert len(set(matched.evaluations.tolist())) > 5
    for i in range(0, 40, 3):
        k = [NAMES.index(text) for text in trials.texts_of(i)]
        rivals = max(len(k) - 1, 1)
        made = replace(rule, rivals=rivals) if isinstance(rule, Paired) else rule
        more = (
            {} if isinstance(rule, Paired) else {"rule_options": {**options.get("rule_options", {}), "rivals": rivals}}
        )
        alone = clf.classify(np.asarray(trials.images)[i : i + 1], candidates=[k], **{**options, **more, "rule": made})
        assert matched.evaluations[i] == alone.evaluations[0]
        assert matched.scores[i].tolist() == (-alone.errors[0, k]).tolist()


def test_of_several_prompts_of_a_class_each_is_a_text_of_its_own() -> None:
    """A classifier with prompts finds classes; its matcher compares prompts, also two of one class."""
    trials, plain, clf = asked(20), with_prompts(), classifier(WORLD)
    names = tuple(f"class {k}" for k in range(CLASSES // 2 + 1))
    several = replace(clf, model=replace(
        clf.model, class_names=names, prompts=NAMES, class_of=tuple(k // 2 for k in range(CLASSES))
    ))  # fmt: skip
    options: dict[str, Any] = {"rule": "full", "draws": 8}
    want, found = (DiffusionMatcher(one, **options).match(trials) for one in (plain, several))
    assert [one.tolist() for one in found.scores] == [one.tolist() for one in want.scores]
    assert found.answers.tolist() == want.answers.tolist()
    assert found.evaluations.tolist() == want.evaluations.tolist()
    tables = [DiffusionMatcher(one, draws=4).errors(trials) for one in (plain, several)]
    np.testing.assert_array_equal(tables[0].errors, tables[1].errors)


def test_a_name_of_two_classes_is_no_text() -> None:
    clf = classifier(WORLD)
    crane = replace(clf, model=replace(clf.model, class_names=("crane", *NAMES[1:-1], "crane")))
    with pytest.raises(InputError, match="has 2 classes with the name 'crane'"):
        DiffusionMatcher(crane).match(Trials.of(unit_images(1), [["crane", NAMES[1]]]))
    assert len(DiffusionMatcher(crane, draws=2).match(Trials.of(unit_images(1), [list(NAMES[1:3])]))) == 1


def test_a_calibration_of_all_classes_is_none_for_some_of_them() -> None:
    """Among some classes, two may be harder to tell apart than any were among all: the race is then paired tests."""
    pytest.importorskip("onnxruntime")
    clf = fastdc.load("digits", threads=1)
    images = fastdc.data.digits_test().images[:3]
    every = Trials.of(images, [[str(k) for k in range(10)]] * 3, truth=-1)
    some = Trials.of(images, [["3", "8"], ["1", "7", "4"], ["0", "6"]], truth=-1)
    matcher = DiffusionMatcher(clf)
    assert matcher.match(every).facts["rule"]["name"] == "calibrated"
    rule = matcher.match(some).facts["rule"]
    assert (rule["name"], rule["rivals"]) == ("paired", "own")
    with pytest.raises(InputError, match="is for images among all of its classes: calibrate the race"):
        DiffusionMatcher(clf, rule="calibrated").match(some)
    limit = DiffusionMatcher(clf, rule="calibrated", rule_options={"limit": 1.0}).match(some)
    assert limit.facts["rule"]["limit"] == 1.0


def test_the_rule_of_an_image_depends_on_no_other_image() -> None:
    """Images among all classes race by their calibration, also beside others, and so does what a resumed run asks."""
    pytest.importorskip("onnxruntime")
    every, some = [str(k) for k in range(10)], ["3", "8"]
    trials = Trials.of(fastdc.data.digits_test().images[:20], [every, some, some, every] * 5, truth=-1)
    matcher = DiffusionMatcher(fastdc.load("digits", threads=1))
    counts = list[tuple[int, int]]()
    both = matcher.match(trials, lambda *told: counts.append(told))
    assert both.rows.tolist() == list(range(20))
    assert counts[-1] == (20, 20)
    assert [rule["name"] for rule in both.facts["rule"]] == ["calibrated", "paired"]
    for rows in ([0, 3, 4], [1, 2, 5], [7, 9]):
        alone = matcher.match(trials.take(rows))
        assert alone.evaluations.tolist() == both.evaluations[rows].tolist()
        assert alone.answers.tolist() == both.answers[rows].tolist()


def test_a_level_is_stated_where_the_race_runs_as_calibrated() -> None:
    trials = asked(20)
    found = DiffusionMatcher(with_prompts(), draws=8, levels=(0.3, 3.0)).calibrated(trials, delta=0.1, seeds=1)
    known = found.calibration
    assert found.match(trials).facts["delta"] == 0.1
    other = DiffusionMatcher(with_prompts(), calibration=known, draws=8, levels=(0.5, 3.0)).match(trials).facts
    assert other["rule"]["name"] == "paired"
    assert "delta" not in other
    assert "delta" not in DiffusionMatcher(with_prompts(), calibration=known, rule="full", draws=8).match(trials).facts


def test_the_released_schedule_takes_candidates_of_each_image() -> None:
    """to_keep 5 1, n_samples 75 200 of the paper: 75 draws of every candidate, then 146 more of the best five."""
    schedule = fastdc.load_bundle(fastdc.bundle.find_model("shapes")).model.schedule
    clf = with_prompts()
    clf = replace(clf, model=replace(clf.model, schedule=schedule))  # of 1000 timesteps
    clf = replace(clf, network=ManySlots(lambda sample, _, labels: sample * labels[:, None, None, None], SHAPE))
    trials = asked(6, most=CLASSES)
    rule = {"n_samples": (75, 200), "to_keep": (5, 1), "compat": "li"}
    matched = DiffusionMatcher(clf, rule="staged", rule_options=rule).match(trials)
    counts = [len(own) for own in trials.candidates]
    first = 75 if max(counts) > 1 else 0
    want = [first if k == 1 else 75 * k + 125 * min(k, 5) for k in counts]
    staged = clf.settings(rule="staged", rule_options=rule).job.rule
    assert matched.evaluations.tolist() == [staged.evaluations(k) for k in counts] == want  # type: ignore[attr-defined]


def test_a_tie_goes_to_the_last_place() -> None:
    clf = with_prompts()
    clf = replace(clf, network=ManySlots(lambda sample, *_: np.zeros_like(sample), SHAPE))
    matched = DiffusionMatcher(clf, rule="full", draws=2).match(asked(5))
    assert matched.answers.tolist() == [len(scores) - 1 for scores in matched.scores]


def test_the_errors_of_a_full_run_are_in_the_order_of_the_trials() -> None:
    trials, clf = asked(70), with_null()
    table = DiffusionMatcher(clf, draws=5, seed=3).errors(trials, null=True)
    whole = clf.errors(np.asarray(trials.images), draws=5, seed=3)
    blank = DiffusionClassifier(replace(clf.model, class_names=(*NAMES, "none")), clf.network).errors(
        np.asarray(trials.images), draws=5, seed=3
    )
    width = max(map(len, trials.candidates))
    assert table.counts.shape == (70, width + 1)
    assert table.class_names[-1] == "(no text)"
    for i, own in enumerate(trials.candidates):
        k = [NAMES.index(text) for text in trials.texts_of(i)]
        found = table.errors[i]
        np.testing.assert_array_equal(found[: len(own)], whole.errors[i, k])
        np.testing.assert_array_equal(found[-1], blank.errors[i, -1])
        assert np.isnan(found[len(own) : width]).all()


def test_errors_without_a_text_need_a_null_class() -> None:
    with pytest.raises(InputError, match="no null class"):
        DiffusionMatcher(with_prompts()).errors(asked(2), null=True)


def test_a_race_calibrated_on_trials_keeps_its_promise_on_other_trials() -> None:
    """Simulation of the promise: images and lists are drawn alike, and some lists hold a rival that is hard for it.

    Each repetition calibrates on 60 trials and counts how often the answer of the full run is lost on 60 others. The
    share is at most delta on average; its mean over repetitions may exceed that by its standard error thrice.
    """
    delta, lost = 0.1, []
    near = WORLD.means.copy()
    near[1::2] = near[::2][:4] + 0.02  # hard rivals
    world = replace(WORLD, means=near)
    clf = with_prompts(world)
    for repetition in range(24):
        rng = np.random.default_rng(repetition)
        labels = rng.integers(0, CLASSES, 120)
        images = ((world.sample(labels, seed=repetition) + 1) / 2).astype(np.float32)
        lists = []
        for label in labels.tolist():
            others = rng.permutation([k for k in range(CLASSES) if k not in (label, label ^ 1)])[: rng.integers(1, 5)]
            hard = [label ^ 1] if rng.random() < 0.5 and label < 8 else []
            lists.append([NAMES[k] for k in (label, *hard, *others)])
        trials = Trials.of(images, lists)
        race = DiffusionMatcher(clf, draws=16, levels=(0.3, 3.0)).calibrated(
            trials.take(slice(60)), delta=delta, seeds=2
        )
        new = trials.take(slice(60, None))
        raced, full = race.match(new), DiffusionMatcher(clf, rule="full", draws=16, levels=(0.3, 3.0)).match(new)
        lost.append(float(np.mean(raced.answers != full.answers)))
        assert raced.evaluations.mean() < 0.8 * full.evaluations.mean()
    assert np.mean(lost) <= delta + 3 * np.std(lost) / np.sqrt(len(lost))
    assert np.mean(lost) > 0.02  # the limit is not merely large
    assert race.calibration is not None
    assert (race.calibration.images, race.calibration.seeds, race.calibration.draws) == (60, 2, 16)
    assert raced.facts["delta"] == delta


def test_a_calibration_refuses_what_it_cannot_promise() -> None:
    with pytest.raises(InputError, match=r"delta = 0.01 needs at least 99 validation images, got 20"):
        DiffusionMatcher(with_prompts()).calibrated(asked(20))
    with pytest.raises(InputError, match="expected decision mean, got vote"):
        DiffusionMatcher(with_prompts(), decision="vote").calibrated(asked(20), delta=0.1)


def test_ctrl_c_keeps_the_images_that_were_finished() -> None:
    clf, trials = with_prompts(), asked()
    options: dict[str, Any] = {"rule": "full", "draws": 64}
    whole = DiffusionMatcher(clf, **options).match(trials)

    def stop(done: int, _: int) -> None:
        if done >= 70:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        DiffusionMatcher(clf, **options).match(trials, stop)
    kept = caught.value.result
    assert 70 <= len(kept) < N
    assert [scores.tolist() for scores in kept.scores] == [whole.scores[i].tolist() for i in kept.rows]
    assert kept.answers.tolist() == whole.answers[kept.rows].tolist()
    with pytest.raises(Interrupted) as caught:
        DiffusionMatcher(clf, draws=64).errors(trials, progress=stop)
    first = caught.value.result
    np.testing.assert_array_equal(first.errors, DiffusionMatcher(clf, draws=64).errors(trials).errors[: len(first)])
    assert 64 <= len(first) < N


def test_answers_are_handed_out_as_they_become_known() -> None:
    parts = list[Matched]()
    matcher = DiffusionMatcher(with_prompts(), rule="full", draws=4)
    whole = matcher.match(asked(), keep=lambda known: parts.append(known()))
    assert [part.rows.tolist() for part in parts] == [list(range(n)) for n in (*range(16, N, 16), N)]
    assert parts[3].answers.tolist() == whole.answers[:64].tolist()


def test_ctrl_c_between_two_results_keeps_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def once(scores: Any) -> int:
        calls.append(scores)
        if len(calls) == 100:  # in the seventh chunk
            raise KeyboardInterrupt
        return last_best(scores)

    monkeypatch.setattr(diffusion_matcher, "last_best", once)
    with pytest.raises(Interrupted, match="96 of 150 images finished") as caught:
        DiffusionMatcher(with_prompts(), rule="full", draws=4).match(asked())
    assert caught.value.result.rows.tolist() == list(range(96))


def test_what_cannot_be_matched_is_refused_in_one_line() -> None:
    clf = with_prompts()
    trials = Trials.of(unit_images(1), [["a cat"]])
    with pytest.raises(InputError, match="has no text encoder: expected texts that are its prompts"):
        DiffusionMatcher(clf).match(trials)
    with pytest.raises(InputError, match="a prior weighs classes"):
        DiffusionMatcher(clf, prior="uniform")
    with pytest.raises(InputError, match="no image to match"):
        DiffusionMatcher(clf).match(Trials.of(unit_images(1)[:0], []))
    with pytest.raises(InputError, match="draws"):
        DiffusionMatcher(clf, draws=0)


def test_texts_that_are_the_same_tokens_are_one_condition_unless_they_compete() -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).integers(0, 255, (2, 3, 32, 32), dtype=np.uint8)
    lists = [["a photo of a red cube", "a photo of a blue cone"], ["a photo of a blue cone", "A photo of a  red cube"]]
    matcher = DiffusionMatcher("shapes", draws=2, threads=1)
    apart = matcher.match(Trials.of(images, lists))
    assert apart.facts["texts"] == 3
    known = load_bundle(find_model("shapes")).model.identity
    found = [one.facts for one in (apart, evidence(matcher, Trials.of(images[:1], lists[:1])))]
    assert [one["bundle"] for one in found] == [known, known]
    assert known not in [one["sha256"] for one in found]  # the model with these texts as prompts
    same = np.stack([images[0], images[0]])
    twice = matcher.match(Trials.of(same, lists))
    assert twice.scores[0].tolist() == twice.scores[1][::-1].tolist()
    with pytest.raises(InputError, match=r"image 1: the texts .* are the same to the text encoder"):
        matcher.match(Trials.of(images, [lists[0], ["a photo of a red cube", "a photo of a RED cube"]]))


def test_scores_without_a_race_rank_as_the_decision_does() -> None:
    matched = DiffusionMatcher(with_prompts(), rule="full", draws=4).match(asked(20))
    assert matched.answers.tolist() == [last_best(scores) for scores in matched.scores]


def test_no_plan_is_chosen_for_noisy_images_or_votes() -> None:
    for options, told in (({"sigma": 0.1}, "chosen on clean images"), ({"decision": "vote"}, "chosen by mean errors")):
        with pytest.raises(InputError, match=told):
            DiffusionMatcher(with_prompts(), **options).planned(asked(4))


def test_a_plan_is_chosen_from_candidates_of_each_image() -> None:
    """A network that tells texts apart in one band only: the choice finds it, and takes no network but its table's."""
    low, high = 1.0, 4.0
    right = denoiser(WORLD)

    def banded(sample: Any, timestep: Any, labels: Any) -> Any:
        sigma = np.exp(timestep.astype(np.float64) / WORLD.schedule.timestep_scale)
        told = np.where((sigma > low) & (sigma < high), labels, 0)  # elsewhere, all texts are denoised alike
        noise = 1 + 0.3 * np.sin(1e3 * sigma * (labels + 1))
        return right(sample, timestep, told) * np.where((sigma > low) & (sigma < high), 1, noise)[:, None, None, None]

    network = ManySlots(banded, SHAPE)
    clf = replace(with_prompts(), network=network)
    labels = np.random.default_rng(5).integers(0, CLASSES, 60)
    images = ((WORLD.sample(labels, seed=5) + 1) / 2).astype(np.float32)
    lists = [[NAMES[(k + step) % CLASSES] for step in range(2 + k % 3)] for k in labels.tolist()]
    trials = Trials.of(images, lists)
    matcher = DiffusionMatcher(clf, draws=16)
    chosen, choice = matcher.planned(trials, draws=256, seeds=1, searched=("levels", "first"))
    assert sum(network.recorded) == sum(map(len, lists)) * 256
    assert choice.chosen.levels is not None
    assert low <= choice.chosen.levels[0] < choice.chosen.levels[1] <= 1.26 * high
    before, after = (one.match(trials).right(trials).mean() for one in (matcher, chosen))
    assert after > before
    assert choice.chosen.accuracy == 1.0
    unknown = replace(trials, truth=np.full(60, -1))
    assert matcher.planned(unknown, draws=64, seeds=1)[1].searched == ("first",)
