"""Large images are mapped to the model's range as they are taken, with the same numbers."""

import numpy as np
import pytest

from fastdc.inference import Images
from fastdc.inference import images as module
from helpers.worlds import classifier, gaussian, unit_images


def test_images_mapped_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their streams, their errors and their labels."""
    clf = classifier(gaussian(3))
    for given in (unit_images(7), (unit_images(7) * 255).astype(np.uint8)):
        whole, want = Images.of(given, clf.model), clf.classify(given, draws=4, rule="full")
        monkeypatch.setattr(module, "_AT_ONCE", 10)
        monkeypatch.setattr(module, "_PART", 2 * given[0].size)
        parts, got = Images.of(given, clf.model), clf.classify(given, draws=4, rule="full")
        monkeypatch.undo()
        assert not isinstance(parts.samples, np.ndarray)
        np.testing.assert_array_equal(parts.x, whole.x)
        np.testing.assert_array_equal(parts.streams, whole.streams)
        np.testing.assert_array_equal(got.table.errors, want.table.errors)
        np.testing.assert_array_equal(got.labels, want.labels)
