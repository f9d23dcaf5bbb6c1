"""The scikit-learn estimator over models that exist: numbers, labels, shapes, refusals, copies, and its tools."""

import copy
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")

import joblib
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import fastdc
from fastdc.bundle import SeenImages, find_model, load_bundle, with_calibration
from fastdc.calibration import fit_temperature, with_doubt
from fastdc.data import digits_test
from fastdc.estimator import DiffusionClassifierEstimator
from fastdc.support import BundleError, InputError, install_hint
from helpers.worlds import fails_with

TEST = digits_test()
SIX = np.sort(np.concatenate([np.flatnonzero(TEST.labels == k)[:6] for k in range(10)]))  # of each class
IMAGES, LABELS = TEST.images[SIX], TEST.labels[SIX]
VOTE = {"decision": "vote", "rule": "full", "draws": 8}
ROWS = IMAGES.reshape(60, 64)


def over(model: Any = "digits-mlp", **parameters: Any) -> DiffusionClassifierEstimator:
    """An estimator over a model that is taken as it is."""
    plain: dict[str, Any] = {"calibrate": False, "load": {"threads": 1}}
    return DiffusionClassifierEstimator(model, **plain | parameters)


@pytest.fixture(scope="module")
def fitted() -> DiffusionClassifierEstimator:
    return over().fit(IMAGES, LABELS)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({}, {}),
        ({"rule": "full", "draws": 4}, {"rule": "full", "draws": 4}),
        (
            {"options": {"decision": "vote", "rule": "full", "draws": 8}},
            {"decision": "vote", "rule": "full", "draws": 8},
        ),
        ({"options": fastdc.Options(loss="l1", draws=3), "draws": 5}, {"loss": "l1", "draws": 5}),
    ],
    ids=["race", "full", "vote", "loss"],
)
def test_numbers_are_those_of_classify_to_the_bit(parameters: dict[str, Any], options: dict[str, Any]) -> None:
    estimator = over(random_state=5, **parameters).fit(IMAGES, LABELS)
    result = fastdc.load("digits-mlp", threads=1).classify(IMAGES, seed=5, **options)
    assert np.array_equal(estimator.predict(IMAGES), result.labels)
    assert np.array_equal(estimator.predict_proba(IMAGES), result.probabilities)
    assert np.array_equal(estimator.classify(IMAGES).evaluations, result.evaluations)
    assert hasattr(estimator, "decision_function") == ("vote" not in str(options))
    if hasattr(estimator, "decision_function"):
        assert np.array_equal(estimator.decision_function(IMAGES), -result.errors)
    assert estimator.score(IMAGES, LABELS) == (result.labels == LABELS).mean()


def test_only_the_classes_of_y_are_considered() -> None:
    """The numbers are those of classify with these candidates; of two labels, the decision is the second's lead."""
    few = np.isin(LABELS, (3, 8))
    labels = np.where(LABELS[few] == 3, "three", "eight")
    estimator = over(classes={"three": 3, "eight": "8"}, rule="full", draws=8).fit(IMAGES[few], labels)
    result = fastdc.load("digits-mlp", threads=1).classify(IMAGES, candidates=[[3, 8]] * 60, rule="full", draws=8)
    assert estimator.classes_.tolist() == ["eight", "three"]
    assert estimator.predict(IMAGES).tolist() == [{3: "three", 8: "eight"}[k] for k in result.labels.tolist()]
    assert np.array_equal(estimator.predict_proba(IMAGES), result.probabilities[:, [8, 3]])
    assert np.allclose(estimator.predict_proba(IMAGES).sum(axis=1), 1)
    assert np.array_equal(estimator.decision_function(IMAGES), result.errors[:, 8] - result.errors[:, 3])
    assert estimator.score(IMAGES[few], labels) == 1.0


@pytest.mark.parametrize("calibrate", [True, 0.05])
def test_fit_calibrates_the_race_and_the_temperature(calibrate: bool | float) -> None:
    images, labels = TEST.images[:30], TEST.labels[:30]
    estimator = over(calibrate=calibrate).fit(images, labels)
    plain = fastdc.load("digits-mlp", threads=1)
    delta = 0.04 if calibrate is True else 0.05  # the whole percent that 30 images support
    race = plain.calibrate(images, delta=delta, seeds=4)
    errors = [plain.classify(images, rule="full", draws=16, seed=seed).errors for seed in range(4)]
    temperature = fit_temperature(*with_doubt(np.concatenate(errors), np.tile(labels, 4), 4))
    model = estimator.classifier_.model
    assert model.calibration == race
    assert model.defaults.temperature == pytest.approx(temperature, rel=1e-9)
    expected = replace(plain, model=replace(plain.model, calibration=race, defaults=model.defaults)).classify(IMAGES)
    assert np.array_equal(estimator.predict_proba(IMAGES), expected.probabilities)


def test_few_images_leave_the_models_race_but_fit_its_temperature() -> None:
    estimator = over(calibrate=True, rule="race").fit(TEST.images[:15], TEST.labels[:15])
    plain = fastdc.load("digits-mlp", threads=1).model
    assert estimator.classifier_.model.calibration == plain.calibration
    assert estimator.classifier_.model.defaults.temperature != plain.defaults.temperature


def test_images_that_chose_the_plan_do_not_calibrate(tmp_path: Path) -> None:
    mine = shutil.copytree(find_model("digits-mlp"), tmp_path / "mine")
    plain, seen = load_bundle(mine), SeenImages.of(TEST.images[:0], TEST.images[:30])
    assert plain.model.calibration is not None
    with_calibration(mine, plain.model.calibration, seen=seen)
    race = over(mine, calibrate=0.05).fit(TEST.images[:55], TEST.labels[:55]).classifier_.model.calibration
    assert race is not None
    assert race.images == 25
    wrong = over(mine, calibrate=True)
    fails_with(lambda: wrong.fit(TEST.images[:30], TEST.labels[:30]), "all 30 images of X chose", kind=InputError)


def test_a_fit_that_fails_leaves_nothing_to_predict_with() -> None:
    """Not the earlier model with the labels of the failed fit."""
    estimator = over().fit(IMAGES, LABELS)
    fails_with(lambda: estimator.fit(IMAGES, np.zeros(len(IMAGES), int)), "2 classes or more", kind=InputError)
    with pytest.raises(NotFittedError):
        estimator.predict(IMAGES)
    assert estimator.fit(IMAGES, LABELS).score(IMAGES, LABELS) > 0.95


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, np.int8, float])
def test_labels_are_names_or_numbers_of_the_models_classes(kind: Any) -> None:
    labels = LABELS.astype(kind)
    estimator = over().fit(IMAGES, labels)
    assert estimator.predict(IMAGES).dtype == np.unique(labels).dtype
    assert estimator.score(IMAGES, labels) > 0.95


def test_labels_that_are_no_classes_are_refused() -> None:
    names = np.array([f"digit {k}" for k in LABELS])
    fails_with(
        lambda: over().fit(IMAGES, names), "y: has a class 'digit 0' that the model does not have", kind=InputError
    )
    fails_with(lambda: over().fit(IMAGES, LABELS + 1), "'10'", kind=InputError)
    fails_with(lambda: over(classes={1: 1}).fit(IMAGES, LABELS), "it lacks '0', '2'", kind=InputError)
    fails_with(lambda: over(classes=[1]).fit(IMAGES, LABELS), "must be a mapping", kind=InputError)
    both = dict.fromkeys(range(10), 1)
    fails_with(lambda: over(classes=both).fit(IMAGES, LABELS), "classes: two of its classes are", kind=InputError)
    fails_with(lambda: over().fit(IMAGES, np.zeros(60, int)), "2 classes or more, got 1 class", kind=InputError)


def test_labels_in_another_order_are_noticed() -> None:
    """As where scikit-learn hands over positions of sorted labels; with the mapping there is nothing to say."""
    images, turned = TEST.images[:40], (TEST.labels[:40] + 1) % 10
    estimator = over(calibrate=True, rule="full", draws=4)
    with pytest.warns(UserWarning, match="most images of label 0 for 9, and so with 10 of 10 labels"):
        estimator.fit(images, turned)
    estimator.set_params(classes={k: (k - 1) % 10 for k in range(10)}).fit(images, turned)
    assert estimator.score(images, turned) == 1.0
    assert estimator.model_classes_.tolist() == [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]


# --- rows and images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        ROWS,
        ROWS.tolist(),
        ROWS.astype(float),
        IMAGES[:, 0],
        IMAGES.transpose(0, 2, 3, 1),
        (IMAGES / 255).astype(np.float32),
        ROWS / 255.0,
        np.asfortranarray(ROWS),
    ],
    ids=["rows", "lists", "floats", "n,h,w", "n,h,w,c", "float32", "unit rows", "Fortran"],
)
def test_rows_and_images_are_the_same(same: Any, fitted: DiffusionClassifierEstimator) -> None:
    """With black 0 and white 255 or 1; the first 60 images have both."""
    assert ROWS.min() == 0
    assert ROWS.max() == 255
    estimator = over().fit(same, LABELS)
    assert estimator.n_features_in_ == 64
    assert estimator.image_shape_ == (1, 8, 8)
    assert np.array_equal(estimator.predict_proba(same), fitted.predict_proba(IMAGES))


def test_tensors_and_frames_are_taken(fitted: DiffusionClassifierEstimator) -> None:
    torch, pandas = pytest.importorskip("torch"), pytest.importorskip("pandas")
    assert np.array_equal(fitted.predict_proba(torch.from_numpy(IMAGES)), fitted.predict_proba(IMAGES))
    frame = pandas.DataFrame(ROWS / 255, columns=[f"pixel {i}" for i in range(64)])
    estimator = over().fit(frame, pandas.Series(LABELS))
    assert estimator.feature_names_in_[0] == "pixel 0"
    assert np.array_equal(estimator.predict_proba(frame), fitted.predict_proba(IMAGES))


def test_the_scale_is_learned_or_stated() -> None:
    sixteenths = np.rint(ROWS * (16 / 255))
    learned = over().fit(sixteenths, LABELS)
    assert learned.value_range_ == (0.0, 16.0)
    assert learned.score(sixteenths, LABELS) > 0.95
    assert np.array_equal(learned.predict_proba(sixteenths + 3 * (sixteenths == 16)), learned.predict_proba(sixteenths))
    stated = over(value_range=(0, 16)).fit(sixteenths[:30], LABELS[:30])
    assert np.array_equal(stated.predict_proba(sixteenths), learned.predict_proba(sixteenths))
    fails_with(
        lambda: stated.predict(sixteenths * 2), "X must lie in value_range, 0 to 16, got 0 to 32", kind=InputError
    )


def test_what_does_not_fit_is_refused(fitted: DiffusionClassifierEstimator) -> None:
    refused = (
        (
            lambda: over().fit(ROWS[:, :63], LABELS),
            "X must have 64 features, the pixels of images of 1x8x8",
        ),
        (
            lambda: over(image_shape=(4, 16)).fit(ROWS, LABELS),
            "image_shape has images of 1x4x16, but the model",
        ),
        (lambda: over(image_shape=(2, 4, 8)).fit(ROWS, LABELS), "image_shape must be (h, w), (c, h, w) or (h, w, c)"),
        (lambda: over(value_range=(1, 1)).fit(ROWS, LABELS), "value_range must be (low, high) with low < high"),
        (lambda: fitted.predict(ROWS / 255), "X is float64, but was uint8 when fitting"),
        (lambda: fitted.predict(IMAGES.reshape(60, 1, 4, 16)), "X must have images of (1, 8, 8) as in fit"),
        (lambda: fitted.predict(IMAGES.reshape(60, 2, 4, 8)), "images must be (n, c, h, w) or (n, h, w, c)"),
        (lambda: over(train="unet").fit(ROWS, LABELS), "train has no effect with a model"),
        (lambda: over(work_dir="runs").fit(ROWS, LABELS), "work_dir has no effect with a model"),
        (lambda: over(None, classes={0: 0}).fit(ROWS, LABELS), "classes has no effect without a model"),
        (lambda: over(7).fit(ROWS, LABELS), "model must be a name, a folder, a bundle, a classifier or None, got 7"),
        (lambda: over(options={"seed": 1}).fit(ROWS, LABELS), "options takes no seed: give random_state"),
        (lambda: over(options={"sed": 1}).fit(ROWS, LABELS), "there is no option 'sed'"),
        (lambda: over(options="full").fit(ROWS, LABELS), "options must be fastdc.Options or a mapping"),
        (lambda: over(rule="fast").fit(ROWS, LABELS), "rule must be one of"),
        (lambda: over(calibrate="yes").fit(ROWS, LABELS), "calibrate must lie strictly between 0 and 1, got 'yes'"),
        (lambda: over(calibrate=0.01).fit(ROWS, LABELS), "delta = 0.01 needs at least 99 validation images, got 60"),
        (lambda: over(load={"thread": 1}).fit(ROWS, LABELS), "load takes no thread: expected keywords of fastdc.load"),
        (lambda: over(load=["threads"]).fit(ROWS, LABELS), "load must be a mapping of keywords of fastdc.load"),
        (lambda: over(random_state=-1).fit(ROWS, LABELS), "random_state must be a whole number in [0, 2^64)"),
    )
    for call, words in refused:
        fails_with(call, words, kind=InputError)
    fails_with(lambda: over("no-such").fit(ROWS, LABELS), "no model 'no-such'", kind=BundleError)
    with pytest.raises(NotFittedError):
        over().predict(ROWS)


def test_an_open_classifier_and_a_bundle_are_models(fitted: DiffusionClassifierEstimator) -> None:
    opened, bundle = fastdc.load("digits-mlp", threads=1), fastdc.load_bundle(find_model("digits-mlp"))
    for model, load in ((opened, None), (bundle, {"threads": 1}), (find_model("digits-mlp"), {"threads": 1})):
        estimator = over(model, load=load).fit(IMAGES, LABELS)
        assert np.array_equal(estimator.predict_proba(ROWS), fitted.predict_proba(ROWS))
    assert over(opened, load=None).fit(IMAGES, LABELS).classifier_ is opened
    copied = clone(over(opened, load=None, rule="full", draws=2))  # as searches make them
    assert copied.fit(IMAGES, LABELS).score(IMAGES, LABELS) > 0.9
    fails_with(lambda: over(opened).fit(IMAGES, LABELS), "load has no effect on an open classifier", kind=InputError)


def test_a_random_state_is_a_seed_or_draws_one() -> None:
    seeds = [over(random_state=state).fit(ROWS, LABELS).options_.seed for state in (7, np.random.RandomState(0), None)]
    assert seeds[:2] == [7, np.random.RandomState(0).randint(2**31 - 1)]


# --- copies ----------------------------------------------------------------------------------------------------------


def through_joblib(estimator: Any, folder: Path) -> Any:
    joblib.dump(estimator, folder / "estimator.joblib")
    return joblib.load(folder / "estimator.joblib")


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "joblib"])
def test_copies_give_the_same_numbers(way: str, tmp_path: Path) -> None:
    estimator = over(calibrate=0.1, draws=4, rule="full", random_state=3).fit(IMAGES[:20], LABELS[:20])
    before = dict(vars(estimator))
    copies: dict[str, Callable[[], Any]] = {
        "pickle": lambda: pickle.loads(pickle.dumps(estimator)),
        "deepcopy": lambda: copy.deepcopy(estimator),
        "joblib": lambda: through_joblib(estimator, tmp_path),
    }
    made = copies[way]()
    assert made.classifier_.model == estimator.classifier_.model
    assert np.array_equal(made.predict_proba(ROWS), estimator.predict_proba(ROWS))
    assert made.get_params() == estimator.get_params()
    assert vars(estimator) == before


def test_a_copy_opens_the_bundle_from_any_folder_and_only_that_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(find_model("digits-mlp"), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    estimator = over("mine", rule="full", draws=2).fit(ROWS, LABELS)
    state = pickle.dumps(estimator)
    monkeypatch.chdir("/")
    assert np.array_equal(pickle.loads(state).predict(ROWS), estimator.predict(ROWS))
    manifest = tmp_path / "mine" / "fastdc.json"
    manifest.write_text(manifest.read_text().replace("digits-mlp", "digits-two"))
    fails_with(lambda: pickle.loads(state), "mine is not the bundle that was pickled")
    shutil.rmtree(tmp_path / "mine")
    fails_with(lambda: pickle.loads(state), "mine")


def test_an_unfitted_estimator_is_cloned_and_pickled() -> None:
    estimator = over(options={"loss": "l1"}, rule="full")
    assert clone(estimator).get_params() == estimator.get_params()
    assert pickle.loads(pickle.dumps(estimator)).get_params() == estimator.get_params()


# --- scikit-learn's tools --------------------------------------------------------------------------------------------


def quick(**parameters: Any) -> DiffusionClassifierEstimator:
    return over(rule="full", **{"draws": 2} | parameters)


def test_cross_validation_and_grid_search() -> None:
    scores = cross_val_score(quick(), ROWS, LABELS, cv=3)
    clf = fastdc.load("digits-mlp", threads=1)
    accuracy = (clf.classify(IMAGES, rule="full", draws=2).labels == LABELS).mean()
    assert scores.mean() == pytest.approx(accuracy)  # nothing is fitted, so that the folds together are all images
    grid = {"draws": [1, 8], "rule": ["full", "paired"]}
    search = GridSearchCV(quick(), grid, cv=2, error_score="raise").fit(ROWS, LABELS)
    assert search.best_params_["draws"] == 8
    assert search.best_estimator_.options_.draws == 8
    assert search.score(ROWS, LABELS) > accuracy - 1e-9


def test_probabilities_by_cross_validation() -> None:
    probabilities = cross_val_predict(quick(draws=4), ROWS, LABELS, cv=3, method="predict_proba")
    clf = fastdc.load("digits-mlp", threads=1)
    assert np.array_equal(probabilities, clf.classify(IMAGES, rule="full", draws=4).probabilities)


def test_a_pipeline_scales_for_the_estimator() -> None:
    pipeline = make_pipeline(MinMaxScaler((0, 1), clip=True), quick(draws=8))
    wide = ROWS * 20.0 - 7
    assert pipeline.fit(wide, LABELS).score(wide, LABELS) > 0.9
    assert pipeline[-1].value_range_ == (0, 1)


def test_probabilities_are_calibrated_by_scikit_learn() -> None:
    """With so few draws, the model's own temperature is too sure of itself."""
    train, rest = slice(0, 100), slice(100, 200)
    calibrated = CalibratedClassifierCV(quick(draws=1), cv=2, method="sigmoid").fit(
        TEST.images[train], TEST.labels[train]
    )
    proba = calibrated.predict_proba(TEST.images[rest])
    assert proba.shape == (100, 10)
    assert (proba.argmax(axis=1) == TEST.labels[rest]).mean() > 0.5
    assert log_loss(TEST.labels[rest], proba) < log_loss(TEST.labels[rest], np.full((100, 10), 0.1))


def test_an_ensemble_votes() -> None:
    members = [("diffusion", quick(draws=8)), ("linear", LogisticRegression(max_iter=200))]
    ensemble = VotingClassifier(members, voting="soft").fit(ROWS / 255, LABELS)
    assert ensemble.score(ROWS / 255, LABELS) > 0.9


# --- importing -------------------------------------------------------------------------------------------------------


def test_the_face_names_the_estimator_without_importing_scikit_learn() -> None:
    assert fastdc.DiffusionClassifierEstimator is DiffusionClassifierEstimator
    assert {"DiffusionClassifierEstimator", "load", "Session"} <= set(dir(fastdc))
    with pytest.raises(AttributeError, match="module 'fastdc' has no attribute 'Estimator'"):
        fastdc.Estimator  # type: ignore[attr-defined]  # noqa: B018
    code = "import sys, fastdc; from fastdc import *; dir(fastdc); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_scikit_learn_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\nimport fastdc\n"
        "try: fastdc.DiffusionClassifierEstimator\nexcept fastdc.MissingDependencyError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == f"sklearn is needed here and is not installed: {install_hint('sklearn')}\n"
