"""Certification against loops written by hand, a classifier with a known boundary, and itself cut up differently."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fastdc import InputError
from fastdc.certification.base_classifiers import AbstractBase, Copy, DiffusionBase, Feed, FunctionBase, Vote
from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.estimation import AbstractEstimation, Anytime, Fixed, Pilot, Predict, Target
from fastdc.certification.smoothing import CertifyProgress, Smoothing, certify_images
from fastdc.diffusion.kernels import PURPOSE_ESTIMATION, PURPOSE_SELECTION
from fastdc.diffusion.noisy_copies import noisy_copies
from fastdc.inference import Job
from fastdc.inference.images import streams_of, to_model_range
from helpers.worlds import Float32, classifier, fails_with, gaussian, unit_images

SIGMA = 0.25
WORLD = gaussian(3)


def linear(images: Float32) -> Float32:
    """Two classes, told apart by the mean pixel: the boundary is a plane at a known distance."""
    score = images.mean(axis=(1, 2, 3)) - 0.5
    answer: Float32 = np.stack([-score, score], axis=1)
    return answer


LINEAR = FunctionBase(linear, 2, batch=100)


def at_distances(distances: Float32, shape: tuple[int, int, int] = (1, 4, 4)) -> Float32:
    """Images whose L2 distances to the plane of `linear` are these, on the side of class 1 where positive."""
    size = np.prod(shape)
    away = (distances / np.sqrt(size)).astype(np.float32)
    x: Float32 = np.full((len(distances), *shape), np.float32(0.5)) + away[:, None, None, None]
    return x


def certificates(base: AbstractBase, x: Float32, estimation: AbstractEstimation, **options: Any) -> list[Certificate]:
    streams = options.pop("streams", streams_of(x))
    made = list(certify_images(base, x, streams, Smoothing(estimation, **options)))
    assert [index for index, _ in made] == list(range(len(x)))
    return [replace(certificate, seconds=0.0) for _, certificate in made]


# --- what a certificate says -----------------------------------------------------------------------------------------


def test_a_certificate_is_the_published_procedure() -> None:
    """CERTIFY of Cohen et al., copy by copy, with the copies' noise made by hand."""
    x = at_distances(np.array([0.9, -0.3, 0.02, 0.3], np.float32))
    streams = streams_of(x)
    got = certificates(LINEAR, x, Fixed(SIGMA, 500, 0.001), n0=50, seed=5)
    for i, certificate in enumerate(got):
        labels = []
        for purpose, n in ((PURPOSE_SELECTION, 50), (PURPOSE_ESTIMATION, 500)):
            copies, _ = noisy_copies(x[i], 0, n, std=SIGMA, seed=5, stream=int(streams[i]), purpose=purpose)
            labels.append(linear(copies).argmax(axis=1))
        top = int(np.bincount(labels[0], minlength=2).argmax())
        successes = int((labels[1] == top).sum())
        p_lower = stats.beta.ppf(0.001, successes, 500 - successes + 1)
        assert certificate.selection_copies == 50
        if p_lower > 0.5:
            assert (certificate.label, certificate.successes, certificate.copies) == (top, successes, 500)
            assert certificate.radius == pytest.approx(SIGMA * stats.norm.ppf(p_lower))
            assert certificate.p_lower == pytest.approx(p_lower)
            assert certificate.evaluations == 550
        else:
            assert (certificate.label, certificate.radius, certificate.p_lower) == (ABSTAIN, 0.0, 0.0)
            assert certificate.successes == (labels[1][: certificate.copies] == top).sum()
    assert got[2].abstained
    assert got[2].copies < 500  # it was hopeless before


@pytest.mark.parametrize(
    "estimation",
    [
        Fixed(SIGMA, 200, 0.05),
        Pilot(SIGMA, 200, 0.05),
        Anytime(SIGMA, 200, 0.05),
        Target(SIGMA, 0.3, 200, 0.05),
    ],
    ids=lambda estimation: estimation.name,
)
def test_certified_radii_exceed_the_distance_in_no_more_than_alpha_of_runs(estimation: AbstractEstimation) -> None:
    distances = np.full(1500, 0.29, np.float32)
    x = at_distances(distances)
    base = replace(LINEAR, batch=4096)
    got = certificates(base, x, estimation, n0=20, streams=np.arange(len(x)))
    # The smoothed classifier's own boundary is the plane; for the wrong class any radius is too much.
    wrong = [c.radius > 0.29 if c.label == 1 else c.label == 0 for c in got]
    assert stats.binomtest(sum(wrong), len(wrong), 0.05, alternative="greater").pvalue > 1e-3
    if estimation.name == "fixed":
        assert sum(wrong) > 0  # the bound is close to exact
        assert np.mean([c.radius for c in got]) > 0.2


def test_radii_approach_the_distance_as_copies_grow() -> None:
    x = at_distances(np.array([0.3], np.float32))
    radii = [certificates(LINEAR, x, Fixed(SIGMA, n, 0.001))[0].radius for n in (100, 1000, 20_000)]
    assert radii[0] < radii[1] < radii[2] < 0.3
    assert radii[2] > 0.28


def test_prediction_abstains_near_the_boundary() -> None:
    x = at_distances(np.array([0.5, 0.0, -0.5], np.float32))
    got = certificates(LINEAR, x, Predict(SIGMA, 0.001), n0=200)
    assert [c.label for c in got] == [1, ABSTAIN, 0]
    assert all((c.copies, c.radius, c.evaluations) == (0, 0.0, 200) for c in got)


# --- the diffusion classifier as base --------------------------------------------------------------------------------


def base_of(*, batch: int = 64, slots: int = 1, room: int = 300, **options: Any) -> DiffusionBase:
    clf = classifier(WORLD, batch=batch, slots=slots)
    given: dict[str, Any] = {"rule": "calibrated", "rule_options": {"limit": 2.0}, "draws": 8, "levels": (0.6, 3.0)}
    if options.get("method") in ("denoised", "apndc", "apndc-x"):
        given["denoiser"] = "mean"
    return replace(clf.base(sigma=SIGMA, **{**given, **options}), room=room)


def images(n: int = 4) -> Float32:
    return to_model_range(unit_images(n), WORLD.model)


@dataclass(frozen=True)
class Whole:
    """A base that is never told which class is asked about."""

    inner: DiffusionBase

    @property
    def n_classes(self) -> int:
        return self.inner.n_classes

    @property
    def value_range(self) -> tuple[float, float]:
        return self.inner.value_range

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        return self.inner.votes(lambda room: [replace(copy, target=None) for copy in feed(room)])

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()


@pytest.mark.parametrize("method", ["dc", "denoised", "epndc", "apndc", "apndc-x"])
def test_counts_are_those_of_runs_over_the_copies(method: str) -> None:
    """One image, its copies classified as ordinary images with their streams."""
    base = base_of(method=method)
    x = images(1)
    stream = int(streams_of(x)[0])
    (certificate,) = certificates(Whole(base), x, Fixed(SIGMA, 60, 0.2), n0=30, seed=2)
    job: Job = base.job
    labels, evaluations = [], 0
    for purpose, n in ((PURPOSE_SELECTION, 30), (PURPOSE_ESTIMATION, certificate.copies)):
        copies, streams = noisy_copies(x[0], 0, n, std=2 * SIGMA, seed=2, stream=stream, purpose=purpose)
        table = job.table(copies, streams)
        full = (table.counts == table.counts.max(axis=1, keepdims=True)) & (table.counts > 0)
        labels.append(np.where(full, np.nan_to_num(table.mean(), nan=np.inf), np.inf).argmin(axis=1))
        evaluations += int(table.evaluations.sum()) + n * len(job.denoising)
    top = int(np.bincount(labels[0]).argmax())
    assert certificate.successes == (labels[1] == top).sum()
    assert certificate.evaluations == evaluations


@pytest.mark.parametrize(
    "rule", [("full", {}), ("calibrated", {"limit": 1.0}), ("staged", {"n_samples": (2, 8), "to_keep": (2, 1)})]
)
def test_asking_about_one_class_counts_the_same_for_fewer_evaluations(rule: tuple[str, dict[str, Any]]) -> None:
    base = base_of(rule=rule[0], rule_options=rule[1], method="dc")
    noisy = Fixed(1.0, 80, 0.2)  # so much noise that copies are lost often
    whole = certificates(Whole(base), images(), noisy, n0=20)
    asked = certificates(base, images(), noisy, n0=20)
    assert [replace(c, evaluations=0) for c in asked] == [replace(c, evaluations=0) for c in whole]
    spent = [sum(c.evaluations for c in made) for made in (asked, whole)]
    assert any(c.successes < c.copies for c in whole)
    assert spent[0] == spent[1] if rule[0] == "full" else spent[0] < spent[1]


ESTIMATIONS = [Fixed(SIGMA, 150, 0.01), Target(SIGMA, 0.2, 400, 0.05), Anytime(SIGMA, 150, 0.05)]


@pytest.mark.parametrize("estimation", ESTIMATIONS, ids=lambda estimation: estimation.name)
@pytest.mark.parametrize("method", ["epndc", "apndc"])
def test_batches_order_and_other_images_change_nothing(estimation: AbstractEstimation, method: str) -> None:
    x = images(5)
    expected = certificates(base_of(method=method), x, estimation, n0=20)
    for batch, slots, room in ((1, 1, 1), (7, 2, 50), (256, 1, 1000)):
        if (batch, estimation.name) == (1, "target"):
            continue  # slow, and the others say it
        cut = base_of(method=method, batch=batch, slots=slots, room=room)
        assert certificates(cut, x, estimation, n0=20) == expected
    order = [3, 0, 4]
    assert certificates(base_of(method=method), x[order], estimation, n0=20) == [expected[i] for i in order]


def test_seeds_name_the_copies() -> None:
    x = images(3)
    one, same, other = (certificates(base_of(), x, Fixed(SIGMA, 100, 0.05), seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


# --- the queue -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Careful:
    """A base that answers the oldest copies first and leaves the others in flight.

    Attributes:
        room: Largest number of copies in flight.
        answered: Number of copies answered at once.
        calls: The free room and the number of copies given, for each call of the feed.
    """

    room: int
    answered: int
    calls: list[tuple[int, int]] = field(default_factory=list)
    n_classes: int = 2
    value_range: tuple[float, float] = (0.0, 1.0)

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        waiting: list[Copy] = []
        while True:
            room = self.room - len(waiting)
            given = feed(room)
            self.calls.append((room, len(given)))
            waiting += given
            if not waiting:
                return
            now, waiting = waiting[: self.answered], waiting[self.answered :]
            labels = linear(np.stack([copy.image for copy in now])).argmax(axis=1)
            yield [Vote(copy.key, int(label), 1) for copy, label in zip(now, labels, strict=True)]

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("room", "answered"), [(7, 7), (7, 3), (33, 10), (50, 50), (600, 400)])
def test_the_queue_fills_its_room_and_never_overfills_it(room: int, answered: int) -> None:
    """Many images are open at once, each with copies to give, and a room ends in the middle of an image."""
    x = at_distances(np.array([0.5, 0.4, -0.5, 0.1, 0.3, -0.2], np.float32))
    base = Careful(room, answered)
    made = certificates(base, x, Fixed(SIGMA, 70, 0.01), n0=20)
    assert made == certificates(LINEAR, x, Fixed(SIGMA, 70, 0.01), n0=20)
    assert all(given <= free for free, given in base.calls)
    assert sum(given for _, given in base.calls) == sum(c.copies + c.selection_copies for c in made)
    filled = [given == free for free, given in base.calls]
    assert all(filled[: sum(c.selection_copies for c in made) // room])  # as long as an image is still to be opened


def test_no_more_images_are_open_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With much room, the number of images that are open bounds the copies in flight."""
    monkeypatch.setattr("fastdc.certification.smoothing._OPEN", 3)
    base = Careful(10_000, 1000)
    x = at_distances(np.full(8, 0.5, np.float32))
    certificates(base, x, Fixed(SIGMA, 70, 0.01), n0=20)
    assert base.calls[0] == (10_000, 3 * 20)
    assert max(given for _, given in base.calls) <= 3 * 32


@pytest.mark.parametrize("method", ["dc", "apndc"])
def test_a_diffusion_base_has_no_more_copies_in_flight_than_its_room(method: str) -> None:
    base = base_of(method=method, batch=16, room=10)
    x = images(4)
    copies, streams = noisy_copies(x[0], 0, 35, std=SIGMA, seed=0, stream=1, purpose=PURPOSE_ESTIMATION)
    left = [Copy(i, copies[i], int(streams[i])) for i in range(35)]
    given = answered = 0
    most = 0

    def feed(room: int) -> list[Copy]:
        nonlocal given, most
        now = [left.pop(0) for _ in range(min(room, len(left)))]
        given += len(now)
        most = max(most, given - answered)
        return now

    for votes in base.votes(feed):
        answered += len(votes)
    assert (given, answered, most) == (35, 35, 10)


# --- around it -------------------------------------------------------------------------------------------------------


def test_progress_tells_what_was_done() -> None:
    seen: list[CertifyProgress] = []
    x = at_distances(np.array([0.5, 0.4, -0.5], np.float32))
    smoothing = Smoothing(Fixed(SIGMA, 100, 0.01), n0=10)
    made = list(certify_images(LINEAR, x, streams_of(x), smoothing, progress=seen.append))
    assert seen[-1] == CertifyProgress(3, 3, 330, 330)
    assert all(a.copies <= b.copies and a.finished <= b.finished for a, b in pairwise(seen))
    assert all(certificate.seconds >= 0 for _, certificate in made)


def test_the_public_face_maps_images_to_the_range_of_the_base() -> None:
    clf = classifier(WORLD)
    unit = unit_images(3)
    seen: list[Float32] = []

    def function(given: Float32) -> Float32:
        seen.append(given)
        return linear(given)

    base = FunctionBase(function, 2)
    list(clf.certify_stream(unit, Fixed(1e-6, 10, 0.5), n0=1, base=base))
    np.testing.assert_allclose(seen[0], unit, atol=1e-4)
    made = [c for _, c in clf.certify_stream(unit, Fixed(SIGMA, 20, 0.3), n0=10, seed=4)]
    default = clf.base(sigma=SIGMA, seed=4)
    assert default.job.plan.config.method == "epndc"
    x = to_model_range(unit, clf.model)
    again = certificates(default, x, Fixed(SIGMA, 20, 0.3), n0=10, seed=4)
    assert [replace(c, seconds=0.0) for c in made] == again
    whole = clf.certify(unit, Fixed(SIGMA, 20, 0.3), n0=10, seed=4)
    assert [replace(c, seconds=0.0) for c in whole] == again


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda x: np.zeros((len(x), 3)), "(100, 2)"),
        (lambda x: np.full((len(x), 2), np.nan), "finite"),
        (lambda x: np.zeros(len(x)), "labels"),
        (lambda x: np.full(len(x), 2), "[0, 2)"),
    ],
)
def test_a_function_that_answers_something_else_is_one_line(answer: Any, named: str) -> None:
    base = replace(LINEAR, function=answer)
    fails_with(
        lambda: certificates(base, at_distances(np.ones(1, np.float32)), Fixed(SIGMA, 10, 0.5)), named, kind=InputError
    )


def test_a_base_for_other_noise_is_refused() -> None:
    clf = classifier(gaussian(3))
    images = np.zeros((1, 1, 4, 4), np.float32)
    says = "base must be made for the copies' sigma 0.5, got one for 0.25"
    fails_with(lambda: clf.certify(images, Fixed(0.5, 20, 0.05), base=clf.base(sigma=0.25)), says, kind=InputError)
    assert len(clf.certify(images, Fixed(0.25, 20, 0.05), base=clf.base(sigma=0.25), n0=4)) == 1


def test_bad_options_are_refused_before_the_work() -> None:
    clf = classifier(WORLD)
    good = Fixed(SIGMA, 10, 0.5)
    fails_with(lambda: Smoothing(good, n0=0), "n0 must", kind=InputError)
    fails_with(lambda: Smoothing(good, seed=-1), "seed", kind=InputError)
    fails_with(lambda: clf.certify_stream(unit_images(2) + 1, good), "[0, 1]", kind=InputError)
    fails_with(lambda: clf.base(method="epndc"), "noise", kind=InputError)


MEMORY = """
import resource, sys
import numpy as np
import fastdc
from fastdc.data import digits_test
from fastdc.certification.estimation import Fixed
clf = fastdc.load("digits-mlp", backend="onnx", threads=1)
base = clf.base(sigma=0.25, rule="calibrated", rule_options={"limit": 0.1}, draws=8)
list(clf.certify_stream(digits_test().images[:1], Fixed(0.25, int(sys.argv[1]), 0.001), base=base))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_copies() -> None:
    pytest.importorskip("onnxruntime")
    few, many = (
        int(subprocess.run([sys.executable, "-c", MEMORY, n], capture_output=True, text=True, check=True).stdout)
        for n in ("100", "100000")
    )
    assert many < 1.1 * few
