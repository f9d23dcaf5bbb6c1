"""A Python function as the network: its output is checked and cast, and it needs no optional package."""

import numpy as np

from fastdc import BackendError, DiffusionClassifier
from fastdc.backends import FunctionNetwork, NetworkOptions
from helpers.subprocesses import without
from helpers.worlds import SHAPE, denoiser, fails_with, gaussian, unit_images

WORLD = gaussian(3)


def test_a_function_must_return_the_shape_of_its_sample() -> None:
    network = FunctionNetwork(lambda sample, t, k: sample.reshape(len(sample), -1), SHAPE, NetworkOptions(batch=5))
    clf = DiffusionClassifier(WORLD.model, network)
    fails_with(lambda: clf.classify(unit_images(1)), "(5, 16)", "(5, 1, 4, 4)", kind=BackendError)


def test_a_function_may_return_any_float_type() -> None:
    images = unit_images(2)
    for dtype in (np.float64, np.float32):
        network = FunctionNetwork(lambda u, t, k, d=dtype: denoiser(WORLD)(u, t, k).astype(d), SHAPE)  # type: ignore[misc]
        got = DiffusionClassifier(WORLD.model, network).errors(images).errors
        np.testing.assert_array_equal(got, DiffusionClassifier(WORLD.model, WORLD.network()).errors(images).errors)


def test_a_function_network_needs_no_package() -> None:
    code = """
import numpy as np
from fastdc.testing.gaussian_world import *; from fastdc import *
world = GaussianWorld.random(3)
print(DiffusionClassifier(world.model, world.network()).classify(np.zeros((2, 1, 4, 4)), draws=2).labels.shape)
"""
    assert without("torch,onnxruntime,onnx,scipy,PIL,click,tqdm", code) == "(2,)\n"
