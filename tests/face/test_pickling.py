"""Classifiers and results in pickles and copies: opened again from the same bundle, bit for bit, or refused."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import (
    BackendError,
    BundleError,
    DiffusionClassifier,
    InputError,
    Interrupted,
    MissingDependencyError,
    Options,
    Session,
)
from fastdc.backends import FunctionNetwork, OnnxNetwork
from fastdc.bundle import Prompts, find_model, with_calibration
from fastdc.data import digits_test
from fastdc.support import installed
from helpers.worlds import CALIBRATION, SHAPE, Float32, classifier, denoiser, fails_with, gaussian, unit_images

WORLD = gaussian(3)
IMAGES = digits_test().images[:6]
OPTIONS: dict[str, Any] = {"rule": "full", "draws": 4}

PROGRAM = """
import multiprocessing, pickle, sys, warnings
import numpy as np
import fastdc
from fastdc.data import digits_test

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
images = digits_test().images[:6]

def errors(clf, i):
    return clf.classify(images[i : i + 1], rule="full", draws=4).errors

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        clf = pickle.load(file)
    expected = np.load(sys.argv[2])
    same = lambda found: np.testing.assert_array_equal(np.concatenate(found), expected)
    jobs = [(clf, i) for i in range(len(images))]
    same([errors(*job) for job in jobs])
    for method, workers in (("fork", 2), ("spawn", 1)):
        with multiprocessing.get_context(method).Pool(workers) as pool:
            same(pool.starmap(errors, jobs))
    if "joblib" in sys.argv[3]:
        import joblib
        asked = joblib.delayed(clf.classify)  # which brings results back
        made = joblib.Parallel(n_jobs=2)(asked(images[i : i + 1], rule="full", draws=4) for i in range(len(images)))
        same([one.errors for one in made])
    print("done")
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A bundle of one's own."""
    pytest.importorskip("onnxruntime")
    return Path(shutil.copytree(find_model("digits-mlp"), tmp_path / "mine"))


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def same_errors(one: DiffusionClassifier, two: DiffusionClassifier, images: Any = IMAGES) -> None:
    np.testing.assert_array_equal(
        one.classify(images, **OPTIONS).errors, two.classify(images, **OPTIONS).errors, strict=True
    )


def test_a_pickle_gives_the_same_numbers_in_other_processes(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh process, and from there forked, spawned and joblib's workers; the path was a relative one."""
    monkeypatch.chdir(tmp_path)
    clf = fastdc.load("mine", threads=1)
    monkeypatch.undo()
    (tmp_path / "clf.pickle").write_bytes(pickle.dumps(clf))
    np.save(tmp_path / "errors.npy", clf.classify(IMAGES, **OPTIONS).errors)
    (tmp_path / "program.py").write_text(PROGRAM)
    packages = "joblib" if installed("joblib") else "none"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "program.py", "clf.pickle", "errors.npy", packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=env, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_options_of_load_are_kept() -> None:
    pytest.importorskip("onnxruntime")
    clf = fastdc.load("digits-mlp", backend="onnx", device="cpu", precision="float32", batch=5, threads=2)
    made = again(clf)
    assert (made.network.batch, len(made.network.slots), made.network.backend) == (5, 2, "onnx")
    assert made.model == clf.model
    assert made.network is not clf.network
    same_errors(made, clf)
    assert str(find_model("digits-mlp").parent).encode() not in pickle.dumps(clf), "shipped models go by name"


def test_a_model_that_was_changed_in_python_is_pickled_as_changed() -> None:
    pytest.importorskip("onnxruntime")
    from dataclasses import replace

    clf = fastdc.load("digits-mlp", threads=1)
    named = replace(clf, model=replace(clf.model, class_names=tuple("abcdefghij")))
    assert again(named).class_names == tuple("abcdefghij")
    assert copy.deepcopy(named).class_names == tuple("abcdefghij")


def test_prompts_encoders_and_torch() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    prompts = Prompts(("a red cube", "red cone"), (0, 1), ("cube", "cone"))
    clf = fastdc.load("shapes", threads=1, prompts=prompts)
    made = again(clf)
    assert made.model == clf.model
    assert made.class_names == ("cube", "cone")
    images = np.random.default_rng(0).integers(0, 256, (1, *clf.model.image_shape), np.uint8)
    same_errors(made, clf, images)
    assert made.encoder is not clf.encoder


def test_the_torch_backend() -> None:
    pytest.importorskip("torch")
    clf = fastdc.load("digits-mlp", backend="torch", device="cpu", threads=1)
    same_errors(again(clf), clf)
    same_errors(copy.deepcopy(clf), clf)


def test_a_bundle_that_was_changed_or_removed_is_not_answered_from(mine: Path) -> None:
    clf = fastdc.load(mine, threads=1)
    content = pickle.dumps(clf)
    same_errors(pickle.loads(content), clf)
    with_calibration(mine, CALIBRATION)
    fails_with(lambda: pickle.loads(content), str(mine), "not the bundle that was pickled", "sha256")
    fails_with(lambda: copy.deepcopy(clf), "not the bundle that was pickled")
    same_errors(again(fastdc.load(mine, threads=1)), clf)
    damaged = pickle.dumps(fastdc.load(mine, threads=1))
    for file in mine.glob("*.onnx"):
        data = file.read_bytes()
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    fails_with(lambda: pickle.loads(damaged), "corrupt", "sha256")
    shutil.rmtree(mine)
    fails_with(lambda: pickle.loads(content), str(mine), "no model")


def top_level(sample: Float32, timestep: Float32, labels: Any) -> Any:
    return denoiser(WORLD)(sample, timestep, labels)


def test_networks_given_from_python() -> None:
    images = unit_images(3)
    named = DiffusionClassifier(WORLD.model, FunctionNetwork(top_level, SHAPE))
    same_errors(again(named), named, images)
    nameless = DiffusionClassifier(WORLD.model, FunctionNetwork(denoiser(WORLD), SHAPE))
    for name in ("cloudpickle", "joblib.externals.cloudpickle"):
        sys.modules.pop(name, None)
    fails_with(lambda: pickle.dumps(nameless), "FunctionNetwork", "given from Python", "export", kind=InputError)
    same_errors(copy.deepcopy(nameless), nameless, images)
    assert copy.copy(nameless).network is nameless.network
    locked = DiffusionClassifier(WORLD.model, FunctionNetwork(top_level, SHAPE))
    locked.network.kept["lock"] = threading.Lock()
    fails_with(lambda: copy.deepcopy(locked), "cannot be copied", "lock", kind=InputError)
    fails_with(lambda: pickle.dumps(locked), "cannot be pickled", "lock", kind=InputError)
    cloudpickle = pytest.importorskip("cloudpickle")
    same_errors(pickle.loads(cloudpickle.dumps(nameless)), nameless, images)
    fails_with(lambda: cloudpickle.dumps(locked), "cannot be pickled", "lock", kind=InputError)


def test_a_torch_module_given_from_python() -> None:
    torch = pytest.importorskip("torch")
    from fastdc.backends import NetworkOptions, TorchNetwork

    class Half(torch.nn.Module):  # type: ignore[name-defined, misc]
        def forward(self, sample: Any, timestep: Any, labels: Any) -> Any:
            return 0.5 * sample + labels[:, None, None, None]

    clf = DiffusionClassifier(WORLD.model, TorchNetwork(Half(), SHAPE, NetworkOptions(device="cpu")))
    same_errors(copy.deepcopy(clf), clf, unit_images(2))
    named = DiffusionClassifier(WORLD.model, TorchNetwork(torch.nn.Bilinear(1, 1, 1), SHAPE))
    assert type(again(named).network.module) is torch.nn.Bilinear


def test_what_is_opened_by_hand_is_refused_in_one_line() -> None:
    pytest.importorskip("onnxruntime")
    bundle = fastdc.load_bundle(find_model("digits-mlp"))
    clf = DiffusionClassifier(bundle.model, OnnxNetwork(bundle))
    fails_with(lambda: pickle.dumps(clf), "OnnxNetwork", kind=InputError)
    fails_with(lambda: copy.deepcopy(clf), "OnnxNetwork", kind=InputError)


def test_cloudpickle_and_what_holds_a_classifier() -> None:
    pytest.importorskip("onnxruntime")
    clf = fastdc.load("digits-mlp", threads=1)
    cloudpickle = pytest.importorskip("cloudpickle")
    asked = pickle.loads(cloudpickle.dumps(lambda images: clf.classify(images, **OPTIONS)))
    np.testing.assert_array_equal(asked(IMAGES).errors, clf.classify(IMAGES, **OPTIONS).errors)
    base = clf.base(sigma=0.25, draws=2)
    assert again(base).describe() == base.describe()
    assert again(Options(denoiser=clf)).denoiser.model == clf.model


def test_results_are_pickled_and_sessions_are_not() -> None:
    clf = classifier(WORLD)
    result = clf.classify(unit_images(3), **OPTIONS)
    made = again(result)
    for name in ("indices", "labels", "probabilities", "errors", "evaluations", "votes"):
        np.testing.assert_array_equal(getattr(made, name), getattr(result, name), strict=True)
    assert (made.names, made.seconds, made.provenance) == (result.names, result.seconds, result.provenance)
    np.testing.assert_array_equal(made.table.errors, result.table.errors)
    with Session(clf) as session:
        fails_with(lambda: pickle.dumps(session), "session", "pickle its classifier", kind=InputError)
        fails_with(lambda: copy.copy(session), "session", kind=InputError)


def test_errors_come_back_from_workers() -> None:
    """A pool of processes hangs on an exception that cannot be unpickled."""
    for kind in (InputError, BundleError, BackendError, MissingDependencyError):
        assert str(again(kind("said"))) == "said"
    interrupted = again(Interrupted("said", "results"))
    assert (str(interrupted), interrupted.result) == ("said", "results")
