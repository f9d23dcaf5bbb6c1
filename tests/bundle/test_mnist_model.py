"""The shipped model of 28x28 digits on a few of its shipped test images, and what its bundle states."""

import pytest

import fastdc
from fastdc.data import mnist_test
from helpers.paths import SHIPPED
from helpers.subprocesses import without

pytest.importorskip("onnxruntime")

OPTIONAL = "torch,diffusers,transformers,tokenizers,safetensors,onnx,onnxscript,sklearn,matplotlib,pandas"


def test_it_names_digits_at_a_few_evaluations_and_needs_nothing_but_onnxruntime() -> None:
    """About 97 of 100 are right at some 20 evaluations per image; a full run takes 160."""
    code = (
        "import fastdc; from fastdc.data import mnist_test\n"
        "test = mnist_test().part(slice(16)); result = fastdc.load('mnist', threads=1).classify(test.images)\n"
        "print((result.labels == test.labels).sum(), result.evaluations.min(), result.evaluations.sum())"
    )
    right, least, spent = map(int, without(OPTIONAL, code).split())
    assert right >= 14
    assert least >= 10
    assert spent < 16 * 60


def test_its_bundle_verifies_and_states_its_provenance() -> None:
    bundle = fastdc.load_bundle(SHIPPED / "mnist")
    bundle.verify()
    assert bundle.name == "mnist"
    assert bundle.image_shape == mnist_test().images.shape[1:]
    assert bundle.class_names == mnist_test().class_names
    assert bundle.manifest["precision"] == "float16"
    assert sum(entry["bytes"] for entry in bundle.manifest["files"].values()) < 3_000_000
    provenance = bundle.manifest["provenance"]
    assert (provenance["training_images"], provenance["seed"], provenance["steps"]) == (7000, 0, 5000)
    assert {"command", "data_sha256", "calibration", "choice", "accuracy"} <= set(provenance)
    assert not any(word.startswith("/") for word in str(provenance["command"]).split()), "a path of another machine"


def test_its_race_is_the_default_and_its_posterior_has_a_temperature() -> None:
    model = fastdc.load_bundle(SHIPPED / "mnist").model
    assert model.calibration is not None
    assert (model.calibration.delta, model.calibration.images) == (0.01, 500)
    assert model.defaults.temperature != 1
