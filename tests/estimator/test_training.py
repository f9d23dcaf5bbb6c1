"""An estimator that trains: what it trains on, what it keeps, and that it goes on where it was interrupted."""

import pickle
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from sklearn.base import clone
from sklearn.datasets import make_blobs

import fastdc
from fastdc.data import load_labelled
from fastdc.estimator import DiffusionClassifierEstimator
from fastdc.support import InputError, Interrupted
from fastdc.train import RunFolder
from helpers.worlds import fails_with

TINY: dict[str, Any] = {
    "width": 16,
    "steps": 60,
    "batch": 64,
    "lr": 1e-2,
    "warmup": 10,
    "ema": 0.9,
    "dropout": 0.0,
    "threads": 1,
}
X, Y = make_blobs(100, centers=3, n_features=3, cluster_std=1.0, random_state=0)


def training(**parameters: Any) -> DiffusionClassifierEstimator:
    quick: dict[str, Any] = {"train": TINY, "calibrate": False, "load": {"threads": 1}}
    return DiffusionClassifierEstimator(**quick | parameters)


def test_a_model_is_trained_calibrated_and_kept(tmp_path: Path) -> None:
    """Of 100 rows, 21 are kept aside, to which the bundle says that temperature and race were fitted."""
    names = np.array(["left", "right", "above"])[Y]
    estimator = training(calibrate=True, work_dir=tmp_path, random_state=4).fit(X, names)
    assert estimator.score(X, names) > 0.9
    folder = estimator.folder_
    assert folder is not None
    assert folder.parent == tmp_path
    bundle = fastdc.load_bundle(folder / "bundle")
    assert bundle.class_names == ("above", "left", "right")
    assert bundle.model == estimator.classifier_.model
    assert bundle.model.image_shape == estimator.image_shape_ == (1, 2, 2)
    assert bundle.manifest["provenance"]["calibration"] == "21 images, 16 draws, 4 noise seeds"
    assert bundle.model.calibration is not None
    assert (bundle.model.calibration.images, bundle.model.calibration.delta) == (21, 0.05)
    assert RunFolder(folder / "run").info().config.seed == 4
    stored = load_labelled(folder / "data.npz").images.reshape(100, 4)
    low, high = X.min(), X.max()
    assert estimator.value_range_ == (low, high)
    assert np.array_equal(stored[:, :3], np.rint((X - low) / (high - low) * 255))
    assert not stored[:, 3].any()  # the fourth pixel of a 2x2 image
    # The numbers are those of the bundle, on the images that the rows are.
    images = np.zeros((100, 1, 2, 2), np.float32)
    images.reshape(100, 4)[:, :3] = (X - low) / (high - low)
    result = fastdc.load(bundle, threads=1).classify(images, seed=4)
    assert np.array_equal(estimator.predict_proba(X), result.probabilities)


def test_a_temporary_training_is_pickled_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    estimator = training(random_state=1).fit(X, Y)
    state = pickle.dumps(estimator)
    assert list(tmp_path.iterdir()) == []
    assert estimator.folder_ is None
    copied = pickle.loads(state)
    assert list(tmp_path.iterdir()) == []
    assert copied.classifier_.model == estimator.classifier_.model
    assert np.array_equal(copied.predict_proba(X), estimator.predict_proba(X))
    assert len(state) < 200_000


def test_fits_repeat_and_seeds_differ() -> None:
    first, second, other = (training(random_state=seed).fit(X, Y).predict_proba(X[:20]) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    recipe = {**TINY, "steps": 300, "log_every": 10}

    def stop(*_: object) -> None:
        if list(tmp_path.glob("*/run/log.jsonl")):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    estimator = training(train=recipe, work_dir=tmp_path)
    try:
        with pytest.raises(Interrupted, match=r"training stopped at step \d+ of 300: fit again to go on"):
            estimator.fit(X, Y)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "bundle").exists()
    estimator.fit(X, Y)
    assert list(tmp_path.iterdir()) == [folder]
    whole = training(train=recipe).fit(X, Y)
    assert np.array_equal(estimator.predict_proba(X), whole.predict_proba(X))


def test_every_training_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Other data, recipes and seeds do not meet; the same ones, also with other threads, are not trained again."""
    short = {**TINY, "steps": 2}
    estimator = training(train=short, work_dir=tmp_path).fit(X, Y)
    for parameters, data in (({}, X[:90]), ({"train": {**short, "lr": 1e-3}}, X), ({"random_state": 3}, X)):
        clone(estimator).set_params(**parameters).fit(data, Y[: len(data)])
    clone(estimator).set_params(train={**short, "threads": 2}).fit(X, Y)
    assert len(list(tmp_path.iterdir())) == 4


def test_images_are_trained_on_in_their_shape(rng: np.random.Generator) -> None:
    """Colour images with the channels last, as rows and as images; the classes are red and blue."""
    images = rng.integers(0, 60, (40, 6, 4, 3)).astype(np.uint8)
    labels = np.arange(40) % 2
    images[labels == 0, :, :, 0] += 150
    images[labels == 1, :, :, 2] += 150
    recipe = {**TINY, "batch": 32, "steps": 80}
    as_images = training(train=recipe).fit(images, labels)
    as_rows = training(train=recipe, image_shape=(6, 4, 3)).fit(images.reshape(40, 72), labels)
    assert as_images.image_shape_ == as_rows.image_shape_ == (3, 6, 4)
    assert as_images.score(images, labels) == 1.0
    assert np.array_equal(as_images.predict_proba(images), as_rows.predict_proba(images.reshape(40, 72)))
    assert np.array_equal(as_images.predict_proba(images), as_rows.predict_proba(images.transpose(0, 3, 1, 2)))
    wide = training(image_shape=(2, 36))
    fails_with(lambda: wide.fit(images, labels), "X has images of 3x6x4, but image_shape of 1x2x36", kind=InputError)


def test_recipes_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before the work; what the data lack is found by the training, which then does nothing."""
    monkeypatch.setattr(RunFolder, "create", lambda *_: pytest.fail("a training began"))
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"train": 3}, "train must be mlp, unet or a mapping of fields of TrainConfig, got 3"),
        ({"train": {"seed": 1}}, "train takes no seed: give random_state"),
        ({"train": {"size": 8}}, "train takes no size: X and y decide it"),
        ({"train": {"widht": 8}}, "training config has unknown fields: widht"),
        ({"train": "cnn"}, "model must be one of unet, mlp"),
        ({"train": {**TINY, "val": "photos"}}, "val must be a fraction of the training data, got 'photos'"),
        ({"train": {**TINY, "val": None}, "calibrate": True}, "val must be a fraction of the training data, which"),
        ({"train": TINY, "calibrate": 0.01}, "delta = 0.01 needs at least 99 validation images, got 21"),
        ({"rule": "fast"}, "rule must be one of"),
        ({"options": {"first": [1.0] * 20}}, "first must be at most as many levels as the draws have, 16, got 20"),
        ({"load": {"backend": "jax"}}, "backend must be one of"),
        ({"image_shape": (1, 3)}, "must be square, or have a width that is not 1 or 3, got 1x1x3"),
    )
    for parameters, words in refused:
        fails_with(partial(training(**parameters).fit, X, Y), words, kind=InputError)
    alone = np.append(np.zeros(99, int), 1)
    fails_with(lambda: training(calibrate=True).fit(X, alone), "needs at least 2 images per class", kind=InputError)
    (tmp_path / "file").touch()
    nowhere = training(work_dir=tmp_path / "file")
    fails_with(lambda: nowhere.fit(X, Y), " cannot be used: Not a directory", kind=InputError)
    same, flat = np.ones((9, 4)), training(image_shape=(1, 4))
    fails_with(lambda: training().fit(same, Y[:9]), "the images of X are all the same single colour", kind=InputError)
    fails_with(lambda: flat.fit(X[:, [0, 1, 2, 0]], Y), "image sides must be 2 to 1024 pixels", kind=InputError)


def test_a_model_is_not_calibrated_on_what_it_was_trained_on(tmp_path: Path) -> None:
    trained = training(train={**TINY, "steps": 2}, work_dir=tmp_path).fit(X, Y)
    assert trained.folder_ is not None
    again = DiffusionClassifierEstimator(trained.folder_ / "bundle", image_shape=(2, 2), load={"threads": 1})
    padded = np.pad(X - X.min(), ((0, 0), (0, 1)))  # the images that the rows are
    fails_with(lambda: again.fit(padded, Y), "X holds images that estimator was trained on", kind=InputError)
    assert again.set_params(calibrate=False).fit(padded, Y).classifier_.model == trained.classifier_.model


def test_a_level_that_patience_leaves_too_few_images_for_is_refused_before_the_training(tmp_path: Path) -> None:
    """It chooses when to end, on half of the 21 images that are kept aside."""
    patient = training(train={**TINY, "patience": 2}, calibrate=0.05, work_dir=tmp_path)
    fails_with(lambda: patient.fit(X, Y), "got 10", kind=InputError)
    assert not list(tmp_path.iterdir())
