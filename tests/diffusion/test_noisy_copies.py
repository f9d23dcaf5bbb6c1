"""Noisy copies: their noise against the oracle, and that a copy depends only on its own number."""

import numpy as np
from scipy import stats

from fastdc.diffusion.kernels import PURPOSE_DIFFUSION, PURPOSE_ESTIMATION, PURPOSE_SELECTION
from fastdc.diffusion.noisy_copies import noisy_copies
from fastdc.testing.reference import normal

X = np.random.default_rng(0).uniform(-1, 1, (1, 4, 5)).astype(np.float32)
STREAM = 2**55 + 12345


def copies(start: int, count: int, *, seed: int = 3, stream: int = STREAM, purpose: int = PURPOSE_ESTIMATION):  # type: ignore[no-untyped-def]
    return noisy_copies(X, start, count, std=0.5, seed=seed, stream=stream, purpose=purpose)


def test_copies_are_the_image_and_the_noise_of_their_number() -> None:
    images, _ = copies(1000, 3)
    for i in range(3):
        noise = normal(3, STREAM, 1000 + i, X.size, PURPOSE_ESTIMATION).reshape(X.shape)
        np.testing.assert_allclose(images[i], X + 0.5 * noise, rtol=1e-6, atol=1e-6)


def test_a_copy_does_not_depend_on_the_call() -> None:
    images, streams = copies(0, 50)
    parts = [copies(0, 1), copies(1, 30), copies(31, 19)]
    np.testing.assert_array_equal(images, np.concatenate([part[0] for part in parts]))
    np.testing.assert_array_equal(streams, np.concatenate([part[1] for part in parts]))


def test_every_use_of_noise_has_its_own() -> None:
    """Selection, estimation, other seeds and images, and the classifier's noise on the first copy."""
    given = [
        copies(0, 200)[0],
        copies(0, 200, purpose=PURPOSE_SELECTION)[0],
        copies(0, 200, seed=4)[0],
        copies(0, 200, stream=STREAM - 1)[0],
        copies(200, 200)[0],
    ]
    inner = np.stack([normal(3, int(s), 0, X.size, PURPOSE_DIFFUSION).reshape(X.shape) for s in copies(0, 200)[1]])
    flat = [(array - X).reshape(-1) / 0.5 for array in given] + [inner.reshape(-1)]
    for i, one in enumerate(flat):
        assert stats.kstest(one, "norm").pvalue > 1e-3
        for other in flat[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(one))


def test_streams_differ() -> None:
    names = [copies(0, 500, purpose=purpose)[1] for purpose in (PURPOSE_SELECTION, PURPOSE_ESTIMATION)]
    names.append(copies(0, 500, stream=STREAM + 1)[1])
    flat = np.concatenate(names)
    assert len(np.unique(flat)) == len(flat)
    assert flat.min() >= 0
    assert flat.max() < 2**56
