"""What people mistype: one line that says what was meant, as on the command line."""

import inspect
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fastdc
from fastdc import BundleError, Classification, ErrorTable, InputError, Options, Session
from helpers.worlds import fails_with, gaussian, refusing, unit_images

CLF = refusing(gaussian(3).model)
IMAGES = unit_images(2)
READERS: tuple[Callable[[Any], Any], ...] = (fastdc.load, fastdc.load_bundle)
WRONG: dict[str, Any] = {"drws": 2}
DRAWS = "there is no option 'drws'; did you mean 'draws'?"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: CLF(IMAGES, **WRONG), DRAWS),
        (lambda: CLF.classify(IMAGES, Options(), **WRONG), DRAWS),
        (lambda: CLF.predict(IMAGES, **WRONG), DRAWS),
        (lambda: CLF.score(IMAGES, [0, 1], **WRONG), DRAWS),
        (lambda: CLF.errors(IMAGES, **WRONG), DRAWS),
        (lambda: CLF.calibrate(IMAGES, **WRONG), DRAWS),
        (lambda: CLF.certify(IMAGES, 0.25, **WRONG), DRAWS),
        (lambda: CLF.base(**WRONG), DRAWS),
        (lambda: CLF.settings(**WRONG), DRAWS),
        (lambda: Session(CLF, **WRONG), DRAWS),
        (lambda: Options(**WRONG), DRAWS),
        (lambda: Options().but(**WRONG), DRAWS),
        (lambda: CLF.certify(IMAGES, 0.25, alhpa=0.1), "there is no option 'alhpa'; did you mean 'alpha'?"),
        (lambda: CLF(IMAGES, candidate=[0]), "there is no option 'candidate'; did you mean 'candidates'?"),
        (lambda: CLF.explain(IMAGES, label=1), "there is no option 'label'; did you mean 'classes'?"),
        (lambda: CLF.explain(IMAGES, to=1), "there is no option 'to'; did you mean 'against'?"),
        (lambda: CLF.counterfactuals(IMAGES, against=1), "there is no option 'against'; did you mean 'to'?"),
        (lambda: CLF.counterfactuals(IMAGES, label=1), "there is no option 'label'; did you mean 'to'?"),
        (lambda: CLF(IMAGES, nothing_like_it=2), "there is no option 'nothing_like_it'"),
        (lambda: CLF(IMAGES, rule="ful"), "got 'ful'; did you mean 'full'?"),
        (lambda: CLF(IMAGES, loss="L2"), "got 'L2'; did you mean 'l2'?"),
        (lambda: CLF(IMAGES, decision="voted"), "got 'voted'; did you mean 'vote'?"),
        (lambda: CLF(IMAGES, method="epdnc", sigma=0.1), "got 'epdnc'; did you mean 'epndc'?"),
        (lambda: CLF.certify(IMAGES, 0.25, estimation="fixd"), "got 'fixd'; did you mean 'fixed'?"),
        (lambda: fastdc.load("digits", backend="onx"), "got 'onx'; did you mean 'onnx'?"),
        (lambda: fastdc.load("digits", precision="flaot32"), "got 'flaot32'; did you mean 'float32'?"),
        (lambda: CLF(IMAGES > 0.5), "got bool: convert them, as images.astype('float32') does"),
        (lambda: CLF(IMAGES.tolist()), ": make nested lists an array, as with np.array(images, dtype='float32')"),
        (lambda: CLF([[0] * 8] * 8), "got int 0: make nested lists an array"),
        (lambda: CLF("*.png"), "*.png: does not exist; patterns are not expanded here: pass what glob.glob finds"),
        (lambda: CLF(iter([Path("a/[ab].png")])), "a/[ab].png: does not exist; patterns are not"),
    ],
)
def test_a_wrong_word_gets_the_right_one(call: Callable[[], Any], says: str) -> None:
    fails_with(call, says, kind=InputError)


def test_as_module_says_so_too() -> None:
    pytest.importorskip("torch")
    fails_with(lambda: CLF.as_module(**WRONG), DRAWS, kind=InputError)


def test_options_are_a_class_as_before() -> None:
    assert list(inspect.signature(Options).parameters)[:3] == ["rule", "rule_options", "decision"]
    assert pickle.loads(pickle.dumps(Options(draws=3))).draws == 3


@pytest.mark.parametrize("model", [None, 3, b"digits", ["digits"]])
def test_a_model_that_is_no_path_is_refused(model: Any) -> None:
    for read in READERS:
        fails_with(partial(read, model), "model must be the name of a shipped model", kind=InputError)


@pytest.mark.parametrize("model", ["", "a\0b"])
def test_a_model_without_a_name_is_refused(model: str) -> None:
    for read in READERS:
        fails_with(partial(read, model), f"no model {model!r}: expected a bundle folder or one of", kind=BundleError)


def test_the_package_shows_its_public_names_alone() -> None:
    assert dir(fastdc) == sorted({*fastdc.__all__, "DiffusionClassifierEstimator"})
    assert callable(fastdc.data.prepare)  # wings are there nevertheless


def test_files_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    loaders: tuple[Callable[[Any], Any], ...] = (Classification.load, ErrorTable.load)
    for load in loaders:
        for end in (".csv", ".json", ".jsonl", ".TSV"):
            path = tmp_path / f"out{end}"
            fails_with(partial(load, path), "only .npz files can be loaded", kind=InputError)
        fails_with(partial(load, tmp_path / "a.npz"), "a.npz: does not exist", kind=InputError)
        fails_with(partial(load, None), "expected the path of an .npz file, got None", kind=InputError)
