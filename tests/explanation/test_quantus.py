"""Quantus (Hedström et al., arXiv 2202.06861), an independent library, finds the same numbers for our maps."""

import numpy as np
import pytest

import fastdc
from fastdc.data import phantoms_test
from fastdc.explanation import energy_inside, error_maps, pointing_game
from fastdc.inference import Images

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
quantus = pytest.importorskip("quantus")


@pytest.mark.filterwarnings("ignore")
def test_the_pointing_game_and_the_energy_inside_are_those_of_quantus() -> None:
    test = phantoms_test()
    ill = np.flatnonzero(test.labels == 1)[:6]
    classifier = fastdc.load("phantoms", threads=1)
    pairs = np.tile(np.array([[1, 0]], np.int32), (6, 1))
    job = classifier.settings(rule="full", draws=8).job
    maps = error_maps(job, Images.of(test.images[ill], classifier.model), pairs).mean
    given = {
        "model": torch.nn.Identity(),  # which no measure of a map against a mask asks
        "x_batch": test.images[ill] / np.float32(255),
        "y_batch": test.labels[ill],
        "a_batch": maps[:, None],
        "s_batch": test.masks[ill][:, None],
        "device": "cpu",
    }
    options = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
    hits = quantus.PointingGame(**options)(**given)
    assert pointing_game(maps, test.masks[ill]).tolist() == [float(hit) for hit in hits]
    positive = {**given, "a_batch": np.maximum(given["a_batch"], 0)}
    shares = quantus.RelevanceMassAccuracy(**options)(**positive)
    assert energy_inside(maps, test.masks[ill]) == pytest.approx(np.array(shares, dtype=float), abs=1e-5)
