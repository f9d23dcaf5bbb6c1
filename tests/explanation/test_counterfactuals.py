"""Counterfactuals against closed forms of the Gaussian world, and as a result that a user handles."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import DiffusionClassifier, InputError, Interrupted, Progress
from fastdc.bundle import HaarTransform
from fastdc.diffusion import EDMSchedule, FlowSchedule, kernels
from fastdc.explanation import EDITS, Counterfactuals, Edit, counterfactuals
from fastdc.sampling import GuidedDenoiser, Space
from fastdc.support import Float64
from fastdc.testing import GaussianWorld, reference
from helpers.ode_worlds import SPREAD, WORLD, world_as
from helpers.parameterizations import VP
from helpers.worlds import SHAPE, ManySlots, classifier, denoiser, fails_with, refusing

EDM = EDMSchedule(0.002, 20.0)


def images_of(labels: list[int], *, seed: int = 0) -> Float64:
    """Images in [0, 1] near the means, none of whose pixels is near the ends of the range."""
    noise = np.random.default_rng(seed).uniform(-1, 1, (len(labels), *SHAPE))
    return np.asarray((WORLD.means[labels] + 0.1 * noise + 1) / 2)


def edited(clf: DiffusionClassifier, x: Float64, method: str, **options: Any) -> tuple[Float64, Float64]:
    """(factual, counterfactual) of images in [-1, 1] from class 0 to class 1, without the answers."""
    edit = Edit.of(clf.model, method, {"clip": False, **options})
    denoise = GuidedDenoiser(clf.network, clf.model, edit.trajectory(clf.model).levels, clip=False)
    own, other = np.zeros(len(x), np.int32), np.ones(len(x), np.int32)
    return edit.images(clf.model, denoise, x, np.arange(len(x)), own, other, seed=4)


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2), ("flowedit", 1)])
@pytest.mark.parametrize("schedule", [EDM, FlowSchedule()])
def test_deterministic_edits_tend_to_the_closed_form(
    method: str, order: int, schedule: EDMSchedule | FlowSchedule
) -> None:
    """Up under class 0 and down under class 1, x becomes x + (1 - k) (mu_1 - mu_0) with k = s / sqrt(s^2 + r^2).

    FlowEdit's direction does not depend on its noise here. In r = sigma / alpha its equation has the same solution; for
    flow models it is an equation in t, which :func:`test_flow_edit_is_the_papers_loop` follows.
    """
    if method == "flowedit" and isinstance(schedule, FlowSchedule):
        return
    clf = world_as("sample" if schedule is EDM else "flow", schedule)
    x = 2 * images_of([0, 0, 0]) - 1
    k = SPREAD / np.sqrt(SPREAD**2 + 1.5**2)
    expected = x + (1 - k) * (WORLD.means[1] - WORLD.means[0])
    worst = [np.abs(edited(clf, x, method, steps=n, ratio=1.5)[1] - expected).max() for n in (40, 80)]
    assert worst[1] < (0.03 if order == 1 else 0.002)
    assert worst[0] / worst[1] == pytest.approx(2**order, rel=0.3)


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2)])
def test_inversion_and_sampling_return_the_image(method: str, order: int) -> None:
    clf = world_as("sample", EDM)
    x = 2 * images_of([0, 0, 0]) - 1
    worst = [np.abs(edited(clf, x, method, steps=n, ratio=1.5)[0] - x).max() for n in (40, 80)]
    assert worst[1] < 0.02
    assert worst[0] / worst[1] > 0.9 * 2**order  # an inversion of the same order may cancel more


def test_flow_edit_from_a_class_to_itself_changes_nothing() -> None:
    for clf in (world_as("sample", EDM), world_as("flow", FlowSchedule())):
        x = 2 * images_of([0, 0]) - 1
        edit = Edit.of(clf.model, "flowedit", {"steps": 7, "averages": 2})
        denoise = GuidedDenoiser(clf.network, clf.model, edit.trajectory(clf.model).levels, clip=True)
        own = np.zeros(2, np.int32)
        _, same = edit.images(clf.model, denoise, x, np.arange(2), own, own, seed=4)
        np.testing.assert_allclose(same, x, atol=1e-12)


def test_flow_edit_is_the_papers_loop() -> None:
    """arXiv 2412.08629, algorithm 1, line by line in float64 for one image, with two noises per step."""
    clf = world_as("flow", FlowSchedule())
    x = 2 * images_of([0]) - 1
    made = edited(clf, x, "flowedit", steps=6, from_t=0.9, averages=2)[1]

    def velocity(z: Float64, t: float, label: int) -> Float64:
        mean, a = WORLD.means[label], 1 - t
        x0 = mean + a * SPREAD**2 * (z - a * mean) / ((a * SPREAD) ** 2 + t**2)
        return np.asarray((z - x0) / t)

    z = x
    times = 0.9 * (1 - np.arange(7) / 6)
    for i, (t, below) in enumerate(pairwise(times)):
        change = np.zeros_like(x)
        for k in range(2):
            n = reference.normal(4, 0, 2 * i + 1 + k, 16, kernels.PURPOSE_SAMPLING).reshape(x.shape)
            source = (1 - t) * x + t * n
            change += (velocity(z + source - x, t, 1) - velocity(source, t, 0)) / 2
        z = z + (below - t) * change
    np.testing.assert_allclose(made, z, atol=2e-5)


def test_the_published_edit_is_the_programs_loop() -> None:
    """The steps of the released sampler in terms of log SNR, in float64: noise to t, back, the last mean once more."""
    clf = world_as("v_prediction", VP)
    x = 2 * images_of([0]) - 1
    made = edited(clf, x, "sdedit", steps=5, from_t=0.5, compat="favero", clip=True)[1]
    levels = VP.levels(0.5 * (1 - np.arange(6) / 5))
    normal = partial(reference.normal, 4, 0, size=16, purpose=kernels.PURPOSE_SAMPLING)

    def mean_of(z: Float64, i: int) -> tuple[Float64, float]:
        alpha, sigma, lower = levels.alpha[i], levels.sigma[i], levels.alpha[i + 1]
        x0 = WORLD.means[1] + alpha * SPREAD**2 * (z - alpha * WORLD.means[1]) / ((alpha * SPREAD) ** 2 + sigma**2)
        logsnr = 2 * np.log(levels.alpha / levels.sigma)
        c = -np.expm1(logsnr[i] - logsnr[i + 1])
        return lower * (z * (1 - c) / alpha + c * x0), levels.sigma[i + 1] * np.sqrt(c)

    z = levels.alpha[0] * x + levels.sigma[0] * normal(0).reshape(x.shape)
    for i in range(5):
        mean, deviation = mean_of(z, i)
        z = mean + deviation * normal(i + 1).reshape(x.shape)
    np.testing.assert_allclose(made, mean_of(z, 4)[0] / levels.alpha[5], atol=2e-4)


def test_the_published_edit_clips_coefficients() -> None:
    """The released program clips what the network works on, halved Haar coefficients, to [-1, 1]."""
    transform = HaarTransform(factor=0.5)
    world = GaussianWorld(means=transform.forward(np.random.default_rng(0).uniform(-1.5, 1.5, (2, 1, 4, 4))))
    model = replace(world.model, image_shape=(1, 4, 4), transform=transform)
    clf = DiffusionClassifier(model, ManySlots(denoiser(world), model.sample_shape))
    options: dict[str, Any] = {"steps": 4, "from_t": 0.5, "compat": "favero"}
    images = np.random.default_rng(1).random((2, 1, 4, 4), dtype=np.float32)
    edit, streams = Edit.of(model, "sdedit", options), np.arange(2)
    made = counterfactuals(clf, images, from_=0, to=1, edit="sdedit", streams=streams, **options)
    space, own = Space(model), np.zeros(2, np.int32)
    for coefficients in (True, False):
        levels = edit.trajectory(model).levels
        denoise = GuidedDenoiser(clf.network, model, levels, clip=True, coefficients=coefficients)
        x = space.samples(2 * images - 1)
        expected = space.pictures(edit.images(model, denoise, x, streams, own, own + 1, seed=0)[1])
        far = np.abs(made.counterfactual - expected).max()
        assert far < 1e-6 if coefficients else far > 0.02
    outside = space.samples(np.array([[[[3.0, -3.0], [0.5, 0.0]]]], np.float32).repeat(2, 2).repeat(2, 3))
    assert np.abs(space.clipped(outside, coefficients=True)).max() == 1


def test_classes_answers_and_costs() -> None:
    clf = classifier(WORLD)
    images = images_of([0, 1, 2, 0])
    made = counterfactuals(clf, images, steps=12, ratio=3.0)
    assert made.own.tolist() == [0, 1, 2, 0] == made.before.labels.tolist()
    order = np.argsort(-made.before.probabilities, axis=1)
    assert made.target.tolist() == order[:, 1].tolist()
    assert made.flipped.all()
    assert made.kept.all()
    assert made.after.labels.tolist() == made.target.tolist()
    answers = made.before.evaluations + made.after.evaluations + made.of_factual.evaluations
    assert (made.evaluations == answers + 2 * 12).all()
    np.testing.assert_allclose(made.difference("input"), made.counterfactual - images, atol=1e-6)
    assert made.difference(absolute=True, grey=True).shape == (4, 4, 4)
    assert made.difference(absolute=True).min() >= 0
    named = counterfactuals(clf, images, to="class 2", from_=[0, 1, 2, 0], steps=4, ratio=3.0)
    assert named.target.tolist() == [2, 2, 2, 2]
    assert not named.flipped[2]
    assert named.same.tolist() == [False, False, True, False]
    assert named[2].to_dict()["same"] is True
    assert "of 3 flipped (1 was of the class to reach already)" in repr(named)
    np.testing.assert_array_equal(named.factual[2], named.counterfactual[2])


@pytest.mark.parametrize("method", EDITS)
def test_batches_and_order_change_no_bit(method: str) -> None:
    images = images_of([0, 1, 2, 0, 1])
    make = partial(counterfactuals, edit=method, steps=4, to=[1, 2, 0, 2, 0], seed=3)
    made = make(classifier(WORLD), images)
    for batch, slots in ((3, 1), (2, 2)):
        other = make(classifier(WORLD, batch=batch, slots=slots), images)
        np.testing.assert_array_equal(other.counterfactual, made.counterfactual)
        np.testing.assert_array_equal(other.factual, made.factual)
    one = counterfactuals(classifier(WORLD), images[3:4], edit=method, steps=4, to=2, seed=3)
    np.testing.assert_array_equal(one.counterfactual[0], made.counterfactual[3])
    if method == "sdedit":
        assert not np.array_equal(make(classifier(WORLD), images, seed=2).counterfactual, made.counterfactual)


def test_streams_are_the_noise_of_all_pictures_of_an_image() -> None:
    """Under one noise, answers differ by pixels alone, and FlowEdit's factual reconstruction has the image's answer."""
    clf, images, streams = classifier(WORLD), images_of([0, 1, 2, 0]), [5, 6, 7, 8]
    made = counterfactuals(clf, images, streams=streams, edit="flowedit", steps=3, draws=1, rule="full")
    for answers in (made.before, made.after, made.of_factual):
        assert answers.table.streams.tolist() == streams
    np.testing.assert_allclose(made.of_factual.errors, made.before.errors, rtol=1e-3)
    usual = counterfactuals(clf, images, edit="flowedit", steps=3, draws=1, rule="full")
    assert not np.isin(usual.after.table.streams, usual.before.table.streams).any()


def test_a_result_is_a_sequence_and_a_file(tmp_path: Path) -> None:
    made = counterfactuals(classifier(WORLD), images_of([0, 1, 2]), steps=3)
    assert [one.own for one in made] == ["class 0", "class 1", "class 2"]
    some = made[1:]
    assert isinstance(some, Counterfactuals)
    assert len(some) == 2
    np.testing.assert_array_equal(some.counterfactual, made.counterfactual[1:])
    whole = json.loads(json.dumps(made.to_dict()))
    assert whole["provenance"]["edit"]["name"] == "sdedit"
    assert whole["images"][1]["before"]["name"] == "class 1"
    for name in ("a.npz", "a.csv", "a.json", "a.jsonl"):
        made.save(tmp_path / name)
    with pytest.raises(InputError, match=r"ends in .*; fastdc.figures.counterfactual_sheet draws"):
        made.save(tmp_path / "a.png")
    stored = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(stored["counterfactual"], made.counterfactual)
    assert stored["class_names"].tolist() == list(made.class_names)
    assert "flipped" in repr(made)
    assert "<table>" in made._repr_html_()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"to": "cat"}, ("to", "cat")),
        ({"to": [0, 1, 2]}, ("to", "2 images")),
        ({"from_": 7}, ("from_",)),
        ({"edit": "plms"}, ("edit",)),
        ({"guidance": 2.0}, ("guidance", "no null class")),
        ({"own_guidance": 0.0}, ("own_guidance", "flowedit")),
        ({"averages": 2}, ("averages", "flowedit")),
        ({"compat": "favero", "edit": "ddim"}, ("compat", "sdedit")),
        ({"compat": "rdc"}, ("compat",)),
        ({"from_t": 2.0}, ("from_t",)),
        ({"from_t": 0.5, "ratio": 1.0}, ("from_t", "ratio")),
        ({"steps": 0}, ("steps",)),
        ({"clip": 1}, ("clip",)),
        ({"draws": 0}, ("draws",)),
        ({"stepz": 4}, ("stepz", "steps")),
        ({"decoder": abs}, ("decoder",)),
        ({"method": "epndc", "sigma": 0.5}, ("clean", "method dc, got epndc")),
    ],
)
def test_what_cannot_be_used_is_refused_before_work(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    clf = refusing(WORLD.model)
    fails_with(lambda: counterfactuals(clf, images_of([0, 1]), **options), *parts, kind=InputError)


def test_a_band_beyond_the_schedule_starts_at_its_highest_level() -> None:
    model = replace(WORLD.model, defaults=replace(WORLD.model.defaults, levels=(0.2, 1e6)))
    assert Edit.of(model, "sdedit", {}).ratio == pytest.approx(float(model.schedule.levels([1.0]).ratio[0]))
    with pytest.raises(InputError, match="ratio must be at most"):
        Edit.of(model, "sdedit", {"ratio": 1e6})


def test_ctrl_c_leaves_the_images_that_are_finished() -> None:
    clf = classifier(WORLD, batch=4)
    images = images_of([0, 1, 2, 0, 1, 2])
    whole = counterfactuals(clf, images, steps=3)

    def stop(progress: Progress) -> None:
        if progress.at_most == 6 * 2 * 3 and progress.finished == 4:  # of the edits
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="4 of 6 images finished") as caught:
        counterfactuals(clf, images, steps=3, progress=stop)
    np.testing.assert_array_equal(caught.value.result.counterfactual, whole.counterfactual[:4])

    def stop_early(progress: Progress) -> None:
        if progress.finished:  # the first answers
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        counterfactuals(clf, images, steps=3, progress=stop_early)
    assert caught.value.result is None
