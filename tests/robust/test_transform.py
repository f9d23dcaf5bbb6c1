"""Gradients through a model that works on Haar coefficients, against the engine and against differences of pixels."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc import DiffusionClassifier
from fastdc.backends import NetworkOptions, TorchNetwork
from fastdc.bundle import HaarTransform, build_network, torch_samples
from fastdc.robust import LikelihoodMaximization, as_module, maximize_likelihood
from fastdc.support import Float32
from helpers.torch_worlds import tiny_model
from helpers.worlds import unit_images


@pytest.fixture(scope="module")
def clf() -> DiffusionClassifier:
    model = replace(tiny_model(value_range=(-1.0, 2.0)), transform=HaarTransform(0.5))
    torch.manual_seed(0)
    config = {"shape": [4, 2, 2], "num_class_embeds": 4, "width": 12, "blocks": 1, "code_width": 8}
    network = build_network("mlp", config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return DiffusionClassifier(model, TorchNetwork(network, model.sample_shape, NetworkOptions(device="cpu")))


def test_the_transform_is_the_models_to_the_bit(clf: DiffusionClassifier, rng: np.random.Generator) -> None:
    x = rng.uniform(-1, 2, (5, 1, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(torch_samples(clf.model.transform, torch.from_numpy(x)).numpy(), clf.model.samples(x))


def test_logits_are_the_engines_errors(clf: DiffusionClassifier) -> None:
    images = unit_images(4)
    want = -clf.errors(images, draws=7, seed=3).errors.astype(np.float64).mean(axis=2) / 0.5
    logits = as_module(clf, draws=7, seed=3)(torch.from_numpy(images))
    np.testing.assert_allclose(logits, want, rtol=2e-6, atol=2e-6 * np.abs(want).max())


def test_the_gradient_is_that_of_the_pixels(clf: DiffusionClassifier) -> None:
    module = as_module(clf, draws=6, stream=5)
    image = torch.from_numpy(unit_images(1)).requires_grad_()
    module(image)[0, 1].backward()
    assert image.grad is not None

    def logit(y: int, x: int, step: float) -> float:
        moved = image.detach().clone()
        moved[0, 0, y, x] += step
        return float(module(moved.double())[0, 1])

    slopes = [[(logit(y, x, 0.02) - logit(y, x, -0.02)) / 0.04 for x in range(4)] for y in range(4)]
    np.testing.assert_allclose(image.grad[0, 0], slopes, rtol=0.02, atol=0.02 * float(image.grad.abs().max()))


@pytest.mark.parametrize("method", [LikelihoodMaximization(steps=2), "rdc"])
def test_likelihood_is_maximized_over_pixels(clf: DiffusionClassifier, method: LikelihoodMaximization | str) -> None:
    images = unit_images(2)
    moved: Float32 = maximize_likelihood(clf, images, method=method)
    assert moved.shape == images.shape
    assert np.abs(moved - images).max() > 0.01
