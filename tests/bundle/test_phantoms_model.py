"""The shipped model of phantoms: it tells lesions from none, and its bundle states where it comes from."""

import numpy as np
import pytest

import fastdc
from fastdc.data import phantoms_test
from helpers.paths import SHIPPED

pytest.importorskip("onnxruntime")


def test_it_tells_lesions_from_none() -> None:
    """AUROC on 30 healthy images and 30 with a lesion; a random order is above 0.75 in fewer than 1 of 1000 trials."""
    test = phantoms_test()
    rows = np.concatenate([np.flatnonzero(test.labels == label)[:30] for label in (0, 1)])
    result = fastdc.load("phantoms", threads=1).classify(test.images[rows], rule="full", draws=8)
    ill = test.labels[rows] == 1
    first, second = result.probabilities[ill, 1], result.probabilities[~ill, 1]
    assert np.mean(first[:, None] > second[None]) > 0.8


def test_its_bundle_verifies_and_states_its_provenance() -> None:
    bundle = fastdc.load_bundle(SHIPPED / "phantoms")
    bundle.verify()
    assert bundle.name == "phantoms"
    assert bundle.image_shape == phantoms_test().images.shape[1:]
    assert bundle.class_names == phantoms_test().class_names
    assert sum(entry["bytes"] for entry in bundle.manifest["files"].values()) < 3_500_000
    provenance = bundle.manifest["provenance"]
    assert (provenance["training_images"], provenance["seed"], provenance["steps"]) == (4000, 0, 8000)
    assert not any(word.startswith("/") for word in str(provenance["command"]).split()), "a path of another machine"
