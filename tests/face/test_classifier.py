"""The public object: what it returns, what it refuses before any work, and what reproduces a result."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import BundleError, Classification, Defaults, DiffusionClassifier, ErrorTable, InputError, Model, Progress
from fastdc.backends import FunctionNetwork
from fastdc.bundle.shipped import find_model
from fastdc.diffusion import EDMSchedule
from fastdc.diffusion.parameterization import Parameterization
from fastdc.inference.decide import decide
from fastdc.rules.calibrated import Calibrated
from helpers.paths import SHIPPED, with_helpers
from helpers.worlds import SHAPE, Int64, classifier, denoiser, fails_with, gaussian, refusing, tiny_bundle, unit_images

WORLD = gaussian(3)
CLASSIFIER = classifier(WORLD)


def assert_same(one: Classification, other: Classification) -> None:
    for name in ("labels", "probabilities", "errors", "evaluations", "votes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def again(clf: DiffusionClassifier, images: Any, provenance: dict[str, Any]) -> Classification:
    """A run from nothing but its provenance, after a trip through JSON."""
    told = json.loads(json.dumps(provenance))
    plan, rule = told["plan"], told["rule"]
    return clf.classify(
        images,
        method=told["method"],
        rule=rule.pop("name"),
        rule_options=rule,
        decision=told["decision"],
        draws=plan["draws"],
        seed=told["seed"],
        levels=plan["levels"],
        weighting=plan["weighting"],
        loss=plan["loss"],
        temperature=told["temperature"],
    )


@pytest.mark.parametrize("decision", ["mean", "vote"])
def test_a_result_is_as_documented(decision: str) -> None:
    images = unit_images(5)
    result = CLASSIFIER.classify(images, draws=4, decision=decision, rule="full")
    assert (result.labels.dtype, result.labels.shape) == (np.dtype(np.int64), (5,))
    assert (result.probabilities.dtype, result.probabilities.shape) == (np.dtype(np.float64), (5, 3))
    assert (result.errors.dtype, result.errors.shape) == (np.dtype(np.float64), (5, 3))
    assert (result.evaluations.dtype, result.evaluations.tolist()) == (np.dtype(np.int64), [12] * 5)
    assert (result.votes.dtype, result.votes.sum(axis=1).tolist()) == (np.dtype(np.int64), [4] * 5)
    assert (result.indices.dtype, result.indices.tolist()) == (np.dtype(np.int64), [0, 1, 2, 3, 4])
    assert result.class_names == ("class 0", "class 1", "class 2")
    assert result.names == tuple(f"class {label}" for label in result.labels)
    assert result.seconds > 0
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(result.errors, result.table.mean())
    assert result.table.errors.shape == (5, 3, 4)
    with pytest.raises(FrozenInstanceError):
        result.seconds = 1.0  # type: ignore[misc]
    assert result == result  # noqa: PLR0124 - comparing must not raise, although it holds arrays
    assert result != CLASSIFIER.classify(images, draws=4, decision=decision, rule="full")
    hash(result)


def test_progress_is_told_from_start_to_end() -> None:
    calls: list[Progress] = []
    classifier(WORLD, batch=7).classify(unit_images(3), draws=4, rule="full", progress=calls.append)
    assert calls == [Progress(done // 12, 3, done, 36) for done in (7, 14, 21, 28, 35, 36)]
    calls.clear()
    classifier(WORLD, batch=10).errors(unit_images(2), draws=4, progress=calls.append)
    assert calls == [Progress(0, 2, 10, 24), Progress(1, 2, 20, 24), Progress(2, 2, 24, 24)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"draws": np.int32(5), "seed": np.uint64(2**64 - 1), "temperature": np.float32(0.5)},
        {"levels": (np.float32(0.2), 2), "weighting": "vlb", "loss": "l1"},
        {"levels": [0.2, 2.0], "loss": "huber", "decision": "vote"},
        {"rule": "full", "draws": 3},
        {"rule": "staged", "rule_options": {"n_samples": [2, np.int64(6)], "to_keep": (2, 1)}},
        {"rule": "betting", "rule_options": {"bound": np.float32(0.5)}, "decision": "vote"},
        {"rule": Calibrated(0.5, draws=20)},
    ],
)
def test_provenance_reproduces_a_result(options: dict[str, Any]) -> None:
    images = unit_images(4)
    result = CLASSIFIER.classify(images, **options)
    repeated = again(CLASSIFIER, images, result.provenance)
    assert_same(repeated, result)
    assert repeated.provenance == result.provenance
    assert result.provenance["fastdc"] == fastdc.__version__


def test_a_saved_table_replays_every_decision(tmp_path: Path) -> None:
    numpys: Any = {"seed": np.int64(3), "levels": (np.float32(0.2), 2.0)}
    result = CLASSIFIER.classify(unit_images(4), **numpys)
    result.table.save(tmp_path / "t.npz")
    loaded = ErrorTable.load(tmp_path / "t.npz")
    replayed = decide(loaded.errors, temperature=result.provenance["temperature"])
    np.testing.assert_array_equal(replayed.labels, result.labels)
    np.testing.assert_array_equal(replayed.probabilities, result.probabilities)
    assert decide(loaded.errors, decision="vote").votes.tolist() == result.votes.tolist()
    assert loaded.seed == 3
    assert loaded.plan == result.provenance["plan"]


def test_options_change_what_they_say() -> None:
    images = unit_images(4)
    base = CLASSIFIER.classify(images)
    assert base.table.draws == 32  # the model's
    assert CLASSIFIER.classify(images, rule="full").evaluations.tolist() == [3 * 32] * 4
    for change in (
        {"seed": 1},
        {"levels": (0.1, 0.2)},
        {"weighting": "exp"},
        {"loss": "l1"},
        {"streams": [1, 2, 3, 4]},
    ):
        assert not np.array_equal(CLASSIFIER.classify(images, **change).errors, base.errors), change
    levels = CLASSIFIER.errors(images, levels=(0.1, 0.2)).sigma
    assert levels.min() > 0.1
    assert levels.max() < 0.2
    cold, warm = (CLASSIFIER.classify(images, temperature=value) for value in (1e-3, 1e3))
    np.testing.assert_array_equal(cold.errors, warm.errors)
    assert (cold.probabilities.max(axis=1) > warm.probabilities.max(axis=1)).all()


def test_results_do_not_depend_on_the_process() -> None:
    code = (
        "from helpers.worlds import *;"
        "result = classifier(gaussian(3), batch=5, slots=2).classify(unit_images(4), draws=5);"
        "print(result.errors.tobytes().hex(), result.table.streams.tolist())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=with_helpers()
    ).stdout
    here = CLASSIFIER.classify(unit_images(4), draws=5)
    assert out == f"{here.errors.tobytes().hex()} {here.table.streams.tolist()}\n"


def test_one_class_and_one_draw() -> None:
    given: list[dict[str, Any]] = [{"draws": 1}, {}, {"rule": "full", "draws": 1}]
    for options in given:
        result = classifier(gaussian(1)).classify(unit_images(2), **options)
        assert result.labels.tolist() == [0, 0]
        assert result.probabilities.tolist() == [[1.0], [1.0]]
    result = CLASSIFIER.classify(unit_images(2), draws=1)
    assert result.evaluations.tolist() == [3, 3]


# --- refusing --------------------------------------------------------------------------------------------------------

_NAN = float("nan")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("draws", value) for value in (0, -1, 1.5, "4", True, 10**7, _NAN)),
        *(("seed", value) for value in (-1, 2**64, 1.0, "0", None, True)),
        *(("levels", value) for value in ((1.0, 0.5), (0.0, 1.0), (-1.0, 1.0), (0.5, 0.5), (_NAN, 1.0))),
        *(("levels", value) for value in ((0.1, float("inf")), (1.0,), (0.1, 0.5, 1.0), 1.0, "ab", ("a", "b"))),
        ("levels", (1e-9, 1e-8)),
        ("levels", (1e8, 1e9)),
        *(("weighting", value) for value in ("", "none", 5, ["edm"])),
        *(("loss", value) for value in ("", "l3", 5, ["l2"])),
        *(("temperature", value) for value in (0, -1.0, _NAN, float("inf"), "1", True)),
        *(("method", value) for value in ("", "epndc", "ddc", 5)),  # epndc: of noisy images, whose sigma is to be given
        *(("sigma", value) for value in (-1, np.nan, "0.25")),
        *(("rule", value) for value in ("", "best", None, "calibrated", Calibrated)),
        ("rule_options", {"rule_options": 1}),
        *(("decision", value) for value in ("", "median", None)),
        *(("streams", value) for value in ([1], [1, -1], [1, 2**56], [1.0, 2.0], "ab")),
        *(("candidates", value) for value in (5, [[0]], [[0], []], [[0], [3]], [3], ["cat"], np.zeros((2, 4), bool))),
        *(("order", value) for value in ("", "sorted", 3)),
        *(("first", value) for value in ((100.0,), (-1.0,), 1.0)),
        *(("antithetic", value) for value in (1, "yes")),
        ("level_weights", 3),
        ("speed", 1),
    ],
)
def test_bad_options_are_refused_before_any_work(option: str, value: Any) -> None:
    clf = refusing(WORLD.model)
    fails_with(lambda: clf.classify(unit_images(2), **{option: value}), option, kind=InputError)


@pytest.mark.parametrize("images", [None, [], np.zeros((2, 4, 5)), np.full((1, *SHAPE), _NAN), np.zeros((0, *SHAPE))])
def test_bad_images_are_refused_before_any_work(images: Any) -> None:
    clf = refusing(WORLD.model)
    fails_with(lambda: clf.classify(images), "images", kind=InputError)
    fails_with(lambda: clf.errors(images), "images", kind=InputError)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_shape": (1, 0, 4)}, "image_shape"),
        ({"image_shape": (4, 4)}, "image_shape"),
        ({"class_names": ()}, "class_names"),
        ({"value_range": (1.0, 1.0)}, "value_range"),
        ({"value_range": (_NAN, 1.0)}, "value_range"),
    ],
)
def test_a_model_that_is_none_is_refused(change: dict[str, Any], named: str) -> None:
    parts: dict[str, Any] = {
        "name": "m",
        "image_shape": SHAPE,
        "class_names": ("a",),
        "schedule": EDMSchedule(),
        "parameterization": Parameterization("sample"),
    }
    fails_with(lambda: Model(**{**parts, **change}), named, kind=InputError)


def test_a_network_from_python_with_a_model_made_by_hand() -> None:
    seen: set[int] = set()

    def function(sample: Any, timestep: Any, labels: Int64) -> Any:
        seen.update(labels.tolist())
        return denoiser(WORLD)(sample, timestep, labels)

    model = Model(
        name="mine",
        image_shape=SHAPE,
        class_names=("x", "y", "z"),
        schedule=WORLD.schedule,
        parameterization=Parameterization("sample"),
        defaults=Defaults(draws=3, temperature=0.1),
    )
    result = DiffusionClassifier(model, FunctionNetwork(function, SHAPE)).classify(unit_images(2))
    assert result.provenance["model"] == "mine"
    assert result.provenance["sha256"] == ""
    assert result.provenance["backend"] == "function"
    assert seen == {0, 1, 2}


# --- loading ---------------------------------------------------------------------------------------------------------


def test_models_are_found_by_name_and_path(tmp_path: Path) -> None:
    assert fastdc.shipped_models() == ("digits", "digits-mlp", "mnist", "phantoms", "shapes")
    assert find_model("digits") == SHIPPED / "digits"
    assert find_model(tmp_path) == tmp_path
    for name in ("no-such-model", str(tmp_path / "nothing"), ""):
        fails_with(lambda name=name: fastdc.load(name), kind=BundleError)  # type: ignore[misc]
    fails_with(lambda: fastdc.load("no-such-model"), "no-such-model", "digits, digits-mlp, mnist, phantoms, shapes")
    fails_with(lambda: fastdc.load(tmp_path), str(tmp_path), "fastdc.json")


def test_a_model_is_the_same_by_name_path_and_bundle() -> None:
    pytest.importorskip("onnxruntime")
    images = unit_images(2, (1, 8, 8))
    by_name = fastdc.load("digits-mlp", threads=1)
    folder = find_model("digits-mlp")
    loaded = fastdc.load_bundle(folder)
    for other in (folder, str(folder), loaded):
        clf = fastdc.load(other, threads=1)
        assert clf.model == by_name.model
        assert clf.class_names == tuple("0123456789")
        assert_same(clf.classify(images, draws=2), by_name.classify(images, draws=2))
    provenance = by_name.classify(images, draws=2).provenance
    assert provenance["sha256"] == loaded.model.identity
    assert (provenance["backend"], provenance["device"], provenance["precision"]) == ("onnx", "cpu", "float32")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("backend", value) for value in ("", "jax", None)),
        *(("device", value) for value in ("", "gpu", "cuda:x", "cuda:", "cuda:-1", "cpu:0", "cuda:²", None, 0)),
        *(("precision", value) for value in ("", "double", "fp16", None, 32)),
        *(("batch", value) for value in (0, -1, 1.5, "8", True, 10**6)),
        *(("threads", value) for value in (0, -1, 1.5, "8", True, 10**6)),
    ],
)
def test_bad_loading_options_are_refused(option: str, value: Any, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")  # its graph is no graph: nothing may look at it
    fails_with(lambda: fastdc.load(bundle, **{option: value}), option, kind=InputError)


def test_the_whole_schedule_can_be_asked_for_where_the_model_has_a_band() -> None:
    band = DiffusionClassifier(replace(CLASSIFIER.model, defaults=Defaults(levels=(0.5, 1.0))), CLASSIFIER.network)
    images = unit_images(2)
    inside, everywhere = band.errors(images, draws=31), band.errors(images, draws=31, levels="all")
    assert inside.sigma.min() > 0.5
    assert inside.sigma.max() < 1
    assert everywhere.plan["levels"] is None
    np.testing.assert_array_equal(everywhere.sigma, CLASSIFIER.errors(images, draws=31).sigma)
    fails_with(lambda: band.errors(images, levels="some"), "levels must be", kind=InputError)
