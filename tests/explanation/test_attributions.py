"""Maps of other methods: of functions whose maps are formulas, and of a diffusion classifier, where they add up."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastdc
from fastdc.data import digits_test
from fastdc.explanation import attributions
from fastdc.support import Float64, InputError

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (5, 2, 6, 7)).astype(np.float32)
WEIGHTS = RNG.normal(size=(3, 2, 6, 7)).astype(np.float32)
CLASSES, AGAINST = np.array([0, 1, 2, 0, 1]), np.array([1, 2, 0, 2, 0])
SLOPES = WEIGHTS[CLASSES] - WEIGHTS[AGAINST]


def linear(x: Any) -> Any:
    return torch.einsum("nchw,kchw->nk", x, torch.from_numpy(WEIGHTS))


def test_the_maps_of_a_linear_function_are_its_weights() -> None:
    for method, chunk in (("gradient", 2), ("gradient", 32)):
        found = attributions(linear, IMAGES, CLASSES, AGAINST, method=method, chunk=chunk)
        assert found == pytest.approx(np.abs(SLOPES).max(1), rel=1e-5)
    other = RNG.uniform(0, 1, IMAGES.shape).astype(np.float32)
    want = (SLOPES * (IMAGES - other)).sum(1)
    for method in ("integrated_gradients", "occlusion"):
        found = attributions(linear, IMAGES, CLASSES, AGAINST, method=method, baseline=other, window=1, chunk=3)
        assert found == pytest.approx(want, abs=1e-5)


def test_occlusion_averages_the_windows_that_cover_a_pixel() -> None:
    """With a window of three pixels that moves by one, each value is a mean of sums over up to nine windows."""
    found = attributions(linear, IMAGES, CLASSES, AGAINST, method="occlusion", baseline="black", window=3)
    value = (SLOPES * IMAGES).sum(1)
    windows = {(r, c): value[:, r : r + 3, c : c + 3].sum((1, 2)) for r in range(4) for c in range(5)}
    for row in range(6):
        for column in range(7):
            cover = [total for (r, c), total in windows.items() if 0 <= row - r < 3 and 0 <= column - c < 3]
            assert found[:, row, column] == pytest.approx(np.mean(cover, axis=0), abs=2e-4)


def test_maps_of_a_diffusion_classifier_add_up_to_the_change_of_its_logits() -> None:
    """Completeness of integrated gradients (Sundararajan et al., proposition 1)."""
    pytest.importorskip("diffusers")
    test = digits_test().part(slice(2))
    module = fastdc.load("digits-mlp", backend="torch", threads=1).as_module(draws=2, stream=0)
    labels, against = test.labels, (test.labels + 1) % 10
    options: dict[str, Any] = {"method": "integrated_gradients", "baseline": "black", "steps": 32, "chunk": 64}
    found = attributions(module, test.images, labels, against, **options)

    def margin(x: npt.NDArray[np.uint8]) -> Float64:
        logits = module(torch.from_numpy(x / np.float32(255))).numpy()
        return np.asarray(logits[range(2), labels] - logits[range(2), against], dtype=np.float64)

    want = margin(test.images) - margin(np.zeros_like(test.images))
    assert found.sum((1, 2)) == pytest.approx(want, rel=0.03)


BAD = [
    ({"method": "gradients"}, "method must be one of "),
    ({"classes": [0, 1]}, "classes must be 5 class numbers from 0, one for each image, got shape (2,)"),
    ({"against": [-1] * 5}, "against must be 5 class numbers from 0"),
    ({"classes": [3] * 5}, "module must return logits of shape (5, K) with K > 3, got (5, 3)"),
    ({"window": 7}, "window must be a whole number from 1 to 6, got 7"),
    ({"images": IMAGES[0]}, "images must have shape (n, channels, height, width), got (2, 6, 7)"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_errors_say_what_was_expected(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"module": linear, "images": IMAGES, "classes": CLASSES, "against": AGAINST, **change}
    with pytest.raises(InputError) as caught:
        attributions(**arguments)
    assert str(caught.value).startswith(message)
