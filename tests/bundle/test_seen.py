"""The record of the images that a model has seen: order, parts and repetitions, and what is stored of it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc.bundle import MANIFEST, SeenImages, fingerprints, load_bundle
from fastdc.bundle.seen import SKETCH
from fastdc.support import BundleError
from helpers.paths import SHIPPED
from helpers.worlds import fails_with


def pictures(numbers: list[int]) -> np.ndarray:
    """A picture of 2x2 pixels for each number, another one for another number."""
    return np.array(numbers, "<u4").view(np.uint8).reshape(-1, 1, 2, 2)


_NONE = pictures([])


def test_a_fingerprint_is_that_of_shape_and_pixels() -> None:
    image = pictures([7])
    digest = hashlib.blake2b(b"(1, 2, 2)" + image.tobytes(), digest_size=8).digest()
    assert fingerprints(image).tolist() == [int.from_bytes(digest, "little")]
    assert fingerprints(image.reshape(1, 1, 1, 4)) != fingerprints(image)
    mirrored = pictures([7, 8])[:, :, :, ::-1]  # not contiguous
    assert fingerprints(mirrored).tolist() == fingerprints(mirrored.copy()).tolist()


@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)))
def test_a_small_set_is_known_whole_in_any_order(trained: list[int], chosen: list[int], asked: list[int]) -> None:
    seen = SeenImages.of(pictures(trained), chosen=pictures(chosen))
    looked_up = len(asked) if trained else 0
    assert seen.trained_on(pictures(asked)) == (sum(one in trained for one in asked), looked_up)
    assert seen.chose(pictures(asked)).tolist() == [one in chosen for one in asked]
    again = SeenImages.from_dict(json.loads(json.dumps(seen.to_dict())))
    assert (again.trained.tolist(), again.chosen.tolist()) == (seen.trained.tolist(), seen.chosen.tolist())
    other = SeenImages.of(pictures(asked), chosen=_NONE)
    both = SeenImages.of(pictures(trained + asked), chosen=pictures(chosen))
    assert seen.also(other).trained.tolist() == both.trained.tolist()
    assert seen.also(other).chosen.tolist() == both.chosen.tolist()


def test_a_part_of_a_large_set_is_found_by_some_of_its_images() -> None:
    """Of n images, SKETCH can be looked up, and about as large a part of every other set; all of them tell rightly."""
    n, m = 20 * SKETCH, 2000
    seen = SeenImages.of(pictures(list(range(n))), chosen=_NONE)
    assert len(seen.trained) == SKETCH
    share = SKETCH / n
    for start, expected in ((0, m), (n - m // 2, m // 2), (n, 0)):  # all, half and none of m images are training images
        known, looked_up = seen.trained_on(pictures(list(range(start, start + m))[::-1]))
        deviation = np.sqrt(m * share * (1 - share))
        assert abs(looked_up - m * share) < 5 * deviation
        assert abs(known - expected * share) < 5 * deviation
        assert known == looked_up if start == 0 else known < looked_up
    whole = SeenImages.of(pictures(list(range(n + m))), chosen=_NONE)
    added = seen.also(SeenImages.of(pictures(list(range(n, n + m))), chosen=_NONE))
    assert added.trained.tolist() == whole.trained.tolist()


def test_floats_are_known_by_their_nearest_levels() -> None:
    images = pictures(list(range(0, 2**32, 2**26 + 1)))
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(fingerprints((images / 255).astype(dtype)), fingerprints(images))
    near = images / 255 + np.random.default_rng(0).uniform(-0.49, 0.49, images.shape) / 255
    np.testing.assert_array_equal(fingerprints(near), fingerprints(images))


@pytest.mark.parametrize("entry", [[], "AAAA", {"trained": 1}, {"trained": "!"}, {"chosen": "AAAA"}, {"more": ""}])
def test_a_damaged_record_is_refused(entry: object, tmp_path: Path) -> None:
    fails_with(lambda: SeenImages.from_dict(entry), "training.seen must hold fingerprints", kind=BundleError)
    manifest = json.loads((SHIPPED / "digits" / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "training": {"seen": entry}}))
    fails_with(lambda: load_bundle(tmp_path), "training.seen must hold fingerprints", kind=BundleError)


def test_a_bundle_of_an_earlier_version_has_seen_nothing() -> None:
    assert load_bundle(SHIPPED / "digits").seen.to_dict() == {}
