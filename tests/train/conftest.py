"""Data for trainings of seconds."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of noisy 4x4 stripes: horizontal and vertical."""
    rng = np.random.default_rng(0)
    stripes = np.zeros((2, 4, 4))
    stripes[0, ::2] = stripes[1, :, ::2] = 200.0
    labels = np.arange(64) % 2
    images = stripes[labels] + rng.uniform(0, 50, (64, 4, 4))
    path = tmp_path / "stripes.npz"
    np.savez(path, images=images.astype(np.uint8), labels=labels, class_names=["rows", "columns"])
    return path
