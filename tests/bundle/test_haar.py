"""The Haar transform: against its definition as a matrix, and what it preserves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdc import BundleError, InputError, load_bundle
from fastdc.bundle import HaarTransform, transform_from_dict
from helpers.worlds import fails_with, gaussian, tiny_bundle

# Rows: cA, cH, cV, cD of a block (p, q, r, s).
BLOCK = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2


def by_matrix(images: np.ndarray, factor: float) -> np.ndarray:
    """The definition, block by block, in float64."""
    n, c, h, w = images.shape
    blocks = images.astype(np.float64).reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5)
    four = np.einsum("ab,ncyxb->ncayx", factor * BLOCK, blocks.reshape(n, c, h // 2, w // 2, 4))
    return np.asarray(four.reshape(n, 4 * c, h // 2, w // 2))


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 8, 6), (2, 4, 10)])
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.3])
def test_coefficients_are_those_of_the_definition(
    rng: np.random.Generator, shape: tuple[int, int, int], factor: float
) -> None:
    haar, images = HaarTransform(factor), rng.uniform(-1, 1, (5, *shape)).astype(np.float32)
    made = haar.forward(images)
    assert made.dtype == np.float32
    assert made.shape == (5, *haar.shape(shape))
    np.testing.assert_allclose(made, by_matrix(images, factor), atol=3e-7)
    np.testing.assert_allclose(haar.inverse(made), images, atol=5e-7)


def test_lengths_and_noise_are_multiplied_by_the_factor(rng: np.random.Generator) -> None:
    images, haar = rng.standard_normal((4000, 2, 4, 4)), HaarTransform(0.5)
    made = haar.forward(images)
    lengths = np.linalg.norm(made.reshape(4000, -1), axis=1)
    np.testing.assert_allclose(lengths, 0.5 * np.linalg.norm(images.reshape(4000, -1), axis=1), rtol=1e-12)
    covariance = np.cov(made.reshape(4000, -1), rowvar=False)  # 32 x 32, standard errors of 0.25 / sqrt(4000)
    np.testing.assert_allclose(covariance, 0.25 * np.eye(32), atol=5 * 0.25 * np.sqrt(2 / 4000))


def test_leading_axes_are_kept(rng: np.random.Generator) -> None:
    maps, haar = rng.standard_normal((2, 5, 1, 4, 4)), HaarTransform()
    np.testing.assert_array_equal(haar.forward(maps)[1], haar.forward(maps[1]))
    np.testing.assert_allclose(haar.inverse(haar.forward(maps)), maps, atol=1e-14)


def test_a_model_states_shapes_and_noise_of_what_the_network_sees() -> None:
    model = replace(gaussian(3).model, transform=HaarTransform(0.25))
    assert model.image_shape == (1, 4, 4)
    assert model.sample_shape == (4, 2, 2)
    assert model.noise_ratio(0.5) == 0.25  # twice 0.5 on [-1, 1], times the factor
    assert model.samples(np.zeros((2, 1, 4, 4), np.float32)).shape == (2, 4, 2, 2)


def test_what_cannot_be_transformed_is_refused() -> None:
    model = gaussian(3).model
    fails_with(
        lambda: replace(model, image_shape=(1, 5, 4), transform=HaarTransform()),
        "the haar transform needs images of even height and width, got 5x4",
        kind=InputError,
    )
    fails_with(
        lambda: replace(model, latent_shape=(1, 2, 2), transform=HaarTransform()), "transform is for", kind=InputError
    )
    fails_with(lambda: HaarTransform(0.0), "factor must be positive", kind=InputError)
    fails_with(
        lambda: HaarTransform().inverse(np.zeros((3, 2, 2))), "multiple of four channels, got 3", kind=InputError
    )


def test_a_manifest_holds_the_transform(tmp_path: Path) -> None:
    image = {"shape": [1, 2, 4], "range": [-1.0, 1.0]}
    made = tiny_bundle(tmp_path / "b", image=image, transform=HaarTransform(0.5).to_dict())
    assert made.manifest["version"] == 2
    assert load_bundle(tmp_path / "b").model.transform == HaarTransform(0.5)
    assert transform_from_dict(HaarTransform(0.3).to_dict()) == HaarTransform(0.3)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("haar", "transform must be an object"),
        ({"kind": "haar"}, "transform must be"),
        ({"kind": "db2", "factor": 0.5}, "transform must be"),
        ({"kind": "haar", "factor": "half"}, "transform must be"),
        ({"kind": "haar", "factor": -1.0}, "factor must be positive"),
        ({"kind": "haar", "factor": 0.5}, "even height and width, got 2x3"),
    ],
)
def test_a_manifest_with_another_transform_is_refused(tmp_path: Path, entry: object, named: str) -> None:
    fails_with(lambda: tiny_bundle(tmp_path / "b", transform=entry), named, kind=BundleError)
