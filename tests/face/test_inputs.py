"""What people type first: images, labels, classes and devices in the forms in which people have them."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import fastdc
from fastdc import Classification, DiffusionClassifier, InputError, Options, Session
from fastdc.backends import NetworkOptions
from fastdc.certification import Anytime, Certificate, Fixed, FunctionBase, Pilot, Predict, Target, estimation_of
from fastdc.cli.commands.certify import command as certify_command
from fastdc.data import digits_test, prepare
from fastdc.engine import devices_of
from fastdc.inference import Images
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.worlds import SHAPE, classifier, fails_with, gaussian, refusing, unit_images

WORLD = gaussian(3)
CLASSIFIER = classifier(WORLD)
PHOTOS = [
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (20 + k, 30, 3), np.uint8)).convert(mode)
    for k, mode in enumerate(("RGB", "L", "P", "RGBA"))
]
READY = prepare(PHOTOS, SHAPE)
QUICK: dict[str, Any] = {"rule": "full", "draws": 4}


def numbers(result: Any) -> Any:
    """What two runs of one method must have in common."""
    if isinstance(result, Classification):
        return (result.labels.tolist(), result.errors.tobytes(), result.table.streams.tolist())
    if isinstance(result, Certificate):
        return replace(result, seconds=0.0)
    return result.tolist() if isinstance(result, np.ndarray) else result


METHODS: dict[str, Callable[[DiffusionClassifier, Any], Any]] = {
    "call": lambda clf, images: numbers(clf(images, **QUICK)),
    "classify": lambda clf, images: numbers(clf.classify(images, **QUICK)),
    "stream": lambda clf, images: [numbers(part) for part in clf.stream(images, chunk=3, **QUICK)],
    "errors": lambda clf, images: numbers(clf.errors(images, draws=4).errors),
    "validation_runs": lambda clf, images: numbers(clf.validation_runs(images, draws=4).table(1).errors),
    "calibrate": lambda clf, images: clf.calibrate(images, delta=0.3, seeds=2, draws=4),
    "predict": lambda clf, images: numbers(clf.predict(images, **QUICK)),
    "predict_proba": lambda clf, images: numbers(clf.predict_proba(images, **QUICK)),
    "score": lambda clf, images: clf.score(images, [0, 1, 2, 0], **QUICK),
    "certify": lambda clf, images: [numbers(one) for one in clf.certify(images, 0.1, n0=4, n=20, alpha=0.1, **QUICK)],
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_pictures_as_they_are(name: str, tmp_path: Path) -> None:
    method, want = METHODS[name], METHODS[name](CLASSIFIER, READY)
    paths = [tmp_path / f"{k}.png" for k in range(len(PHOTOS))]
    for path, photo in zip(paths, PHOTOS, strict=True):
        photo.save(path)
    assert method(CLASSIFIER, PHOTOS) == want
    assert method(CLASSIFIER, tmp_path) == want
    assert method(CLASSIFIER, [path.read_bytes() for path in paths]) == want
    assert method(CLASSIFIER, READY.transpose(0, 2, 3, 1)) == want
    assert method(CLASSIFIER, ((batch, [5, 5]) for batch in np.split(READY, 2))) == want
    fails_with(
        lambda: method(refusing(WORLD.model), [*PHOTOS, "missing.png"]), "missing.png: does not", kind=InputError
    )


def test_a_session_takes_one_image_of_any_kind() -> None:
    want = [numbers(CLASSIFIER.classify(READY[k : k + 1], **QUICK)) for k in range(4)]
    with Session(classifier(WORLD), **QUICK) as session:
        for forms in (PHOTOS, READY, READY[:, 0], READY[:, None], READY.transpose(0, 2, 3, 1)):
            assert [numbers(session.submit(image).result(10)) for image in forms] == want
    deep = READY.astype(np.uint16) * 16
    with Session(classifier(WORLD), window=(0, 255 * 16), **QUICK) as session:
        assert [numbers(session.submit(image).result(10))[0] for image in deep] == [labels for labels, _, __ in want]


def test_images_are_read_through_the_window_of_the_model(tmp_path: Path) -> None:
    model = replace(WORLD.model, window=(0.0, 255 * 16.0))
    clf, deep = replace(CLASSIFIER, model=model), READY.astype(np.uint16) * 16
    np.save(tmp_path / "deep.npy", deep)
    want = CLASSIFIER.classify(deep, window=(0, 255 * 16), **QUICK)
    for given in (deep, deep.astype(np.float32), tmp_path / "deep.npy", deep.transpose(0, 2, 3, 1)):
        assert numbers(clf.classify(given, **QUICK)) == numbers(want)
    assert numbers(clf.classify(READY, **QUICK)) == numbers(CLASSIFIER.classify(READY, **QUICK))
    unit = (READY / 255).astype(np.float32)
    np.testing.assert_array_equal(Images.of(unit, model).given, unit)
    other = CLASSIFIER.classify(deep, window=(0, 9999), **QUICK)
    assert numbers(clf.classify(deep, window=(0, 9999), **QUICK)) == numbers(other)
    assert numbers(other) != numbers(want)
    with Session(clf, **QUICK) as session:
        assert [numbers(session.submit(image).result(10))[0] for image in deep] == [[k] for k in want.labels]
    stepped = unit * 1.5 - 0.1  # as an optimizer may step
    np.testing.assert_array_equal(Images.of(stepped, model, bounded=False).given, stepped)


def test_likelihood_maximization_takes_pictures() -> None:
    torch = pytest.importorskip("torch")
    from helpers.torch_worlds import on_torch, tiny_mlp, tiny_model

    clf = on_torch(tiny_model(), tiny_mlp())
    want = clf.maximize_likelihood(READY)
    for given in (PHOTOS, READY.transpose(0, 2, 3, 1), torch.from_numpy(READY), READY.astype(np.uint16)):
        options = {"window": (0, 255)} if getattr(given, "dtype", None) == np.uint16 else {}
        np.testing.assert_allclose(clf.maximize_likelihood(given, **options), want, rtol=0, atol=1e-6)


def test_images_in_order_are_taken_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing prepares them, their bits are the network's input, and their streams are the hashes of these bits."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("prepare_named was called")

    monkeypatch.setattr("fastdc.data.prepare_named", never)
    images = unit_images(3)
    for given in (images, images[0], (images * 255).astype(np.uint8)):
        ready = Images.of(given, WORLD.model)
        assert np.shares_memory(ready.given, given) == (given.dtype == np.uint8)
        unit = given.reshape(-1, *SHAPE) / np.float32(255) if given.dtype == np.uint8 else given.reshape(-1, *SHAPE)
        np.testing.assert_array_equal(ready.x, unit * np.float32(2) - 1)
        hashes = [blake2b(image.tobytes(), digest_size=7).digest() for image in ready.x]
        assert ready.streams.tolist() == [int.from_bytes(digest, "little") for digest in hashes]


def test_images_as_high_as_they_have_channels_need_a_layout() -> None:
    clf = classifier(GaussianWorld.random(3, (3, 3, 3)))
    cube = unit_images(2, (3, 3, 3))
    fails_with(lambda: clf.predict(cube, **QUICK), 'layout="NCHW"', 'layout="NHWC"', kind=InputError)
    fails_with(lambda: clf.predict(cube[0], **QUICK), 'layout="CHW"', 'layout="HWC"', kind=InputError)
    np.testing.assert_array_equal(Images.of(cube, clf.model, layout="NCHW").given, cube)
    np.testing.assert_array_equal(Images.of(cube, clf.model, layout="NHWC").given, cube.transpose(0, 3, 1, 2))
    assert clf.predict(cube, layout="NCHW", **QUICK).shape == (2,)


def test_images_in_order_load_no_pillow() -> None:
    code = (
        "import sys; from helpers.worlds import *;"
        "classifier(gaussian(3)).classify(unit_images(2), draws=2); print('PIL' in sys.modules)"
    )
    from helpers.paths import with_helpers

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=with_helpers())
    assert run.stdout == "False\n"


def test_images_that_were_checked_are_not_checked_again() -> None:
    ready = Images.of(READY, WORLD.model)
    assert Images.of(ready, WORLD.model) is ready
    assert Images.of(ready, WORLD.model, [1, 2, 3, 4]).streams.tolist() == [1, 2, 3, 4]


def test_how_images_are_read_is_an_option_like_others() -> None:
    levels = READY.astype(np.uint16) * 257
    want = CLASSIFIER.errors(levels / np.float64(65535), draws=4).errors
    for result in (
        CLASSIFIER.classify(levels, window=(0, 65535), **QUICK),
        CLASSIFIER.classify(levels, Options(window=(0, 65535)), **QUICK),
    ):
        np.testing.assert_allclose(result.table.errors, want, rtol=1e-5)
    fails_with(lambda: CLASSIFIER.classify(levels, **QUICK), "window=(0, 65535)", kind=InputError)
    fails_with(lambda: CLASSIFIER.errors(levels, window=(5, 5)), "window must begin with its smaller", kind=InputError)
    three = np.concatenate([READY[0], READY[1], READY[2]])
    fails_with(lambda: CLASSIFIER.classify(three, **QUICK), 'layout="NHW"', "1 RGB image", kind=InputError)
    np.testing.assert_array_equal(
        CLASSIFIER.predict(three, layout="NHW", **QUICK), CLASSIFIER.predict(READY[:3], **QUICK)
    )
    fails_with(lambda: CLASSIFIER.classify(PHOTOS, max_pixels=99), "limit of one image is 99", kind=InputError)


# --- answers and labels ----------------------------------------------------------------------------------------------


def test_predictions_are_those_of_classify() -> None:
    result = CLASSIFIER.classify(READY, **QUICK)
    for labels in (CLASSIFIER.predict(READY, **QUICK), CLASSIFIER.predict(READY, Options(**QUICK))):
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, result.labels)
    shares = CLASSIFIER.predict_proba(READY, **QUICK)
    assert shares.dtype == np.float64
    np.testing.assert_array_equal(shares, result.probabilities)
    narrow = CLASSIFIER.predict(READY, candidates=[2], seed=3, streams=[4, 5, 6, 7], **QUICK)
    assert narrow.tolist() == [2, 2, 2, 2]


def test_a_score_is_the_share_of_right_labels() -> None:
    found = CLASSIFIER.predict(READY, **QUICK)
    truth = found.copy()
    truth[1] = (truth[1] + 1) % 3
    names = [f"class {k}" for k in truth]
    for labels in (truth, truth.tolist(), truth.astype(np.uint8), names, np.array(names), (*names[:2], 2, 1)):
        want = np.mean([name in (f"class {k}", k) for name, k in zip(labels, found, strict=True)])
        assert CLASSIFIER.score(READY, labels, **QUICK) == want
    assert CLASSIFIER.score(READY, truth, candidates=[truth[1]] * 1, **QUICK) == np.mean(truth == truth[1])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 1, 2], "labels must be one for each of 4 images, got 3"),
        ([0, 1, 2, 3], "labels must be in [0, 3), got 3"),
        (np.array([0, 1, 2, -1]), "labels must be in [0, 3), got -1 to 2"),
        (["class 0", "klass 1", "class 2", "class 0"], "got 'klass 1'; did you mean 'class 1'?"),
        (["0", "1", "2", "0"], "got '0': expected names such as 'class 0', 'class 1', 'class 2'"),
        ([0.0, 1.0, 2.0, 0.0], "labels must be class indices or class names, got 0.0"),
        (np.zeros((4, 3), int), "labels must be class indices or class names, got int64 of shape (4, 3)"),
        ([True, False, True, True], "got True"),
        ("class 0", "labels must be class indices or class names, got 'class 0'"),
        (None, "labels must be given: only a folder with one sub-folder per class, a manifest"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_any_work(labels: Any, says: str) -> None:
    fails_with(lambda: refusing(WORLD.model).score(READY, labels), says, kind=InputError)


def test_a_score_takes_the_labels_that_files_have(tmp_path: Path) -> None:
    found = CLASSIFIER.predict(READY, **QUICK)
    truth = found.copy()
    truth[1] = (truth[1] + 1) % 3
    for k, photo in enumerate(PHOTOS):
        folder = tmp_path / "photos" / f"class {truth[k]}"  # of the model's classes, perhaps not all
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{k}.png")
    assert CLASSIFIER.score(tmp_path / "photos", **QUICK) == 0.75
    assert CLASSIFIER.score([str(tmp_path / "photos")], seed=1, streams=[1, 2, 3, 4], **QUICK) <= 1
    np.savez(tmp_path / "three.npz", images=READY, labels=truth)
    assert CLASSIFIER.score(tmp_path / "three.npz", **QUICK) == 0.75
    order = ["class 2", "class 0", "class 1"]
    named = [order.index(f"class {k}") for k in truth]
    np.savez(tmp_path / "named.npz", images=READY, labels=named, class_names=order)
    assert CLASSIFIER.score(tmp_path / "named.npz", **QUICK) == 0.75
    levels = READY.astype(np.float32) * 10
    np.savez(tmp_path / "levels.npz", images=levels, labels=truth)
    assert CLASSIFIER.score(tmp_path / "levels.npz", window=(0, 2550), **QUICK) == 0.75  # applied once


def test_files_without_labels_need_them(tmp_path: Path) -> None:
    never, wanted = refusing(WORLD.model), "labels must be given"
    (tmp_path / "other" / "clas 0").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "other" / "clas 0"):
        PHOTOS[0].save(place / "a.png")
    np.savez(tmp_path / "bare.npz", images=READY)
    fails_with(lambda: never.score(tmp_path / "bare.npz"), "bare.npz: ", wanted, kind=InputError)
    fails_with(lambda: never.score(tmp_path / "a.png"), "a.png: ", wanted, kind=InputError)
    fails_with(lambda: never.score(tmp_path / "other" / "clas 0"), "has no sub-folders", kind=InputError)
    fails_with(lambda: never.score(tmp_path / "other"), "did you mean 'class 0'?", kind=InputError)
    fails_with(lambda: never.score(tmp_path / "missing"), "does not exist", kind=InputError)
    fails_with(lambda: never.score([]), "no images were given", kind=InputError)
    for images in ([READY[0], "a.png"], Images.of(READY, WORLD.model), iter(READY), None):
        fails_with(partial(never.score, images), wanted, kind=InputError)


def test_names_of_several_classes_are_refused() -> None:
    twice = replace(WORLD.model, class_names=("crane", "heron", "crane"))
    fails_with(lambda: refusing(twice).score(READY, ["crane"] * 4), "classes 0 and 2: use indices", kind=InputError)


def test_candidates_may_be_tensors() -> None:
    """As a prefilter in torch returns them."""
    torch = pytest.importorskip("torch")
    mask = np.array([[True, False, True]] * 4)
    want = numbers(CLASSIFIER.classify(READY, candidates=mask, **QUICK))
    for given in (mask, np.array([0, 2]), np.array([[2, 0]] * 4)):
        found = CLASSIFIER.classify(READY, candidates=lambda _, given=given: torch.from_numpy(given), **QUICK)
        assert numbers(found) == want


def test_images_that_were_checked_for_another_shape_are_refused() -> None:
    other = replace(CLASSIFIER.model, image_shape=(1, 5, 5))
    says = f"images were checked for the shape (1, 5, 5), not {SHAPE}"
    ready = Images.of(np.zeros((4, 1, 5, 5), np.uint8), other)
    fails_with(lambda: CLASSIFIER.classify(ready, **QUICK), says, kind=InputError)


def test_candidates_have_names() -> None:
    want = numbers(CLASSIFIER.classify(READY, candidates=[[0, 2]] * 4, **QUICK))
    forms: list[Any] = [
        ["class 0", "class 2"],
        ("class 2", 0),
        np.array(["class 2", "class 0"]),
        [2, 0],
        np.array([0, 2]),
        [["class 0", "class 2"], [0, 2], (2, "class 0"), np.array([0, 2])],
        lambda _: ["class 0", "class 2"],
    ]
    for given in forms:
        assert numbers(CLASSIFIER.classify(READY, candidates=given, **QUICK)) == want
    each: Any = [["class 0"], [1], ["class 2"], ["class 1", 1]]
    assert CLASSIFIER.predict(READY, candidates=each, **QUICK).tolist() == [0, 1, 2, 1]
    with Session(classifier(WORLD), **QUICK) as session:
        assert session.submit(READY[0], candidates=["class 2"]).result(10).names == ("class 2",)
        fails_with(lambda: session.submit(READY[0], candidates=["2"]), "got '2': expected names", kind=InputError)
    clf = refusing(WORLD.model)
    wrong: Any = ["Class 1", 0]
    fails_with(lambda: clf.classify(READY, candidates=wrong), "did you mean 'class 1'", kind=InputError)
    fails_with(lambda: clf.classify(READY, candidates="class 1"), "a list of classes, got 'class 1'", kind=InputError)


def test_names_that_look_like_numbers_are_names() -> None:
    """Classes in another order: the class named "0" is number 2."""
    turned = DiffusionClassifier(replace(WORLD.model, class_names=("2", "1", "0")), CLASSIFIER.network)
    assert turned.predict(READY, candidates=["0"], **QUICK).tolist() == [2] * 4
    assert turned.predict(READY, candidates=[0], **QUICK).tolist() == [0] * 4
    assert turned.score(READY, ["0"] * 4, candidates=[2], **QUICK) == 1.0


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ({}, Fixed(0.25, 1000, 0.001)),
        ({"n": 50, "alpha": 0.01}, Fixed(0.25, 50, 0.01)),
        ({"radius": 0.5}, Target(0.25, 0.5, 10_000, 0.001)),
        ({"radius": 0.5, "n": 500, "alpha": 0.01}, Target(0.25, 0.5, 500, 0.01)),
        ({"estimation": "pilot"}, Pilot(0.25, 1000, 0.001, 0.05)),
        ({"estimation": "anytime", "tolerance": 0.1}, Anytime(0.25, 1000, 0.001, 0.1)),
    ],
)
def test_words_make_an_estimation(words: dict[str, Any], made: Any) -> None:
    assert estimation_of(0.25, **words) == made
    assert estimation_of(made) is made
    assert estimation_of(estimation=made) is made


def test_an_estimation_needs_sigma_only() -> None:
    assert (Fixed(0.25), Pilot(0.25), Anytime(0.25), Target(0.25, 0.1), Predict(0.25)) == (
        *(Fixed(0.25, 1000, 0.001), Pilot(0.25, 1000, 0.001), Anytime(0.25, 1000, 0.001)),
        *(Target(0.25, 0.1, 10_000, 0.001), Predict(0.25, 0.001)),
    )


def test_words_and_an_object_give_the_same_certificates() -> None:
    options: dict[str, Any] = {"n0": 4, "seed": 3}
    base = CLASSIFIER.base(sigma=0.1, seed=3, method="dc", draws=4, rule="full")
    want = [numbers(one) for one in CLASSIFIER.certify(READY[:2], Fixed(0.1, 20, 0.1), base=base, **options)]
    words: dict[str, Any] = {"n": 20, "alpha": 0.1, "method": "dc", **QUICK, **options}
    assert [numbers(one) for one in CLASSIFIER.certify(READY[:2], 0.1, **words)] == want
    assert [numbers(one) for one in CLASSIFIER.certify(READY[:2], sigma=0.1, **words)] == want
    assert [numbers(one) for _, one in CLASSIFIER.certify_stream(READY[:2], 0.1, **words)] == want
    assert [
        numbers(one) for one in CLASSIFIER.certify(READY[:2], estimation=Fixed(0.1, 20, 0.1), base=base, **options)
    ] == want


def test_a_certificate_of_words_is_cohens() -> None:
    """A base that always answers class 0: all n copies are won, and the radius is sigma Phi^-1(alpha^(1/n))."""
    base = FunctionBase(lambda x: np.zeros(len(x), int), n_classes=3)
    (made,) = CLASSIFIER.certify(READY[0], 0.5, base=base)
    assert (made.label, made.copies, made.selection_copies) == (0, 1000, 100)
    assert made.radius == pytest.approx(0.5 * stats.norm.ppf(0.001 ** (1 / 1000)), rel=1e-9)


def test_the_defaults_are_the_command_lines() -> None:
    defaults = {p.name: p.default for p in certify_command.params if isinstance(p, click.Option)}
    ours = inspect.signature(DiffusionClassifier.certify_stream).parameters
    assert ours["n0"].default == defaults["n0"] == 100
    assert ours["estimation"].default == defaults["estimation"]
    assert ours["seed"].default == defaults["seed"]
    assert estimation_of(0.25).describe()["alpha"] == defaults["alpha"]
    for name in ("n", "radius", "tolerance"):
        assert ours[name].default is None
        assert not isinstance(defaults[name], int | float)  # click's own word for none
    assert CLASSIFIER.base(sigma=0.25).job.plan.config.method == defaults["method"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "sigma must be given"),
        ({"sigma": "0.25"}, "sigma must be a number or an estimation"),
        ({"sigma": [0.25]}, "sigma must be a number or an estimation"),
        ({"sigma": True}, "sigma must be a number or an estimation"),
        ({"sigma": -1}, "sigma must be positive"),
        ({"sigma": 0.1, "n": "20"}, "n must be a whole number"),
        ({"sigma": 0.1, "n": 2}, "n must be at least 10"),
        ({"sigma": 0.1, "n0": 1.5}, "n0 must be a whole number"),
        ({"sigma": 0.1, "alpha": 2}, "alpha must lie strictly between 0 and 1"),
        ({"sigma": 0.1, "radius": "far"}, "radius must be positive"),
        ({"sigma": 0.1, "estimation": "target"}, "estimation must be one of fixed, pilot, anytime"),
        ({"sigma": 0.1, "estimation": None}, "estimation must be one of"),
        ({"sigma": 0.1, "tolerance": 0.1}, "tolerance needs estimation=pilot or anytime"),
        ({"sigma": 0.1, "estimation": "pilot", "tolerance": -1}, "tolerance must be positive"),
        ({"sigma": 0.1, "estimation": "pilot", "radius": 0.1}, "expected no estimation pilot beside it"),
        ({"sigma": Fixed(0.1), "n": 20}, "Fixed is a whole estimation: expected no n beside it"),
        ({"sigma": 0.1, "estimation": Fixed(0.1)}, "expected no sigma beside it"),
        ({"sigma": Fixed(0.1), "estimation": "pilot"}, "expected no estimation beside it"),
        ({"sigma": 0.1, "speed": 3}, "there is no option 'speed'"),
        ({"sigma": 0.1, "base": 3}, "base must be a base classifier"),
        ({"sigma": 0.1, "base": FunctionBase}, "base must be a base classifier"),
        ({"sigma": 0.1, "base": CLASSIFIER.base(sigma=0.1), "draws": 4}, "expected no draws beside it"),
        ({"sigma": 0.1, "method": "no"}, "method"),
    ],
)
def test_certificates_that_nobody_can_make_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    fails_with(lambda: refusing(WORLD.model).certify(READY, **options), says, kind=InputError)
    fails_with(lambda: refusing(WORLD.model).certify_stream(READY, **options), says, kind=InputError)


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_torch_device_is_its_name() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from fastdc.train import TrainConfig

    for name in ("cpu", "cuda", "cuda:1"):
        assert NetworkOptions(device=torch.device(name)).device == name
        assert devices_of(torch.device(name)) == (name,)
        assert TrainConfig(data="a", out="b", device=torch.device(name)).to_dict()["device"] == name
    fails_with(lambda: NetworkOptions(device=torch.device("meta")), "device must be", kind=InputError)
    clf = fastdc.load("digits-mlp", device=torch.device("cpu"), threads=1)
    assert clf.network.device == "cpu"
    test = digits_test()
    assert clf.score(test.images[:4], test.labels[:4], draws=8) == 1.0
