"""Measures of maps against masks, compared with loops over pixels and with what is known exactly."""

import numpy as np
import pytest
from scipy import stats

from fastdc.explanation import average_precision, best_share, bootstrap_mean, energy_inside, iou, pointing_game
from fastdc.support import InputError, Mask

RNG = np.random.default_rng(3)
MAPS = RNG.integers(-4, 9, (30, 7, 9)).astype(float)  # with ties
MASKS = RNG.uniform(size=(30, 7, 9)) < RNG.uniform(0.05, 0.4, (30, 1, 1))
MASKS[:, 3, 4] = True


def near(mask: Mask, row: int, column: int, tolerance: float) -> bool:
    """Whether a pixel of the mask is within a distance, by looking at all of them."""
    return any((r - row) ** 2 + (c - column) ** 2 <= tolerance**2 for r, c in np.argwhere(mask))


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5])
def test_the_pointing_game_is_the_share_of_the_largest_pixels_that_hit(tolerance: float) -> None:
    for found, values, mask in zip(pointing_game(MAPS, MASKS, tolerance=tolerance), MAPS, MASKS, strict=True):
        peaks = np.argwhere(values == values.max())
        assert found == pytest.approx(np.mean([near(mask, r, c, tolerance) for r, c in peaks]))


def test_iou_takes_as_many_pixels_as_the_mask_has_or_a_share_and_all_that_tie_with_the_last() -> None:
    for share in (None, 0.05, 0.3):
        for found, values, mask in zip(iou(MAPS, MASKS, share=share), MAPS, MASKS, strict=True):
            wanted = int(mask.sum()) if share is None else round(share * 63)
            level = sorted(values.ravel())[-wanted]
            chosen = {tuple(at) for at in np.argwhere(values >= level)}
            true = {tuple(at) for at in np.argwhere(mask)}
            assert found == pytest.approx(len(chosen & true) / len(chosen | true))


def test_energy_is_the_positive_part_and_nothing_without_one() -> None:
    for found, values, mask in zip(energy_inside(MAPS, MASKS), MAPS, MASKS, strict=True):
        inside = sum(max(values[r, c], 0) for r, c in np.argwhere(mask))
        assert found == pytest.approx(inside / sum(max(value, 0) for value in values.ravel()))
    assert energy_inside(-np.ones((1, 2, 2)), [[[True, False], [False, False]]]) == 0


def test_average_precision_is_a_sum_over_thresholds() -> None:
    pytest.importorskip("sklearn")
    for found, values, mask in zip(average_precision(MAPS, MASKS), MAPS, MASKS, strict=True):
        area, recall = 0.0, 0.0
        for level in sorted(set(values.ravel()), reverse=True):
            chosen = values >= level
            now = (chosen & mask).sum() / mask.sum()
            area, recall = area + (now - recall) * (chosen & mask).sum() / chosen.sum(), now
        assert found == pytest.approx(area)


def test_chance_and_the_truth_get_what_they_should() -> None:
    """A constant map gets the mask's share; the mask itself gets 1; random maps get the share on average."""
    pytest.importorskip("sklearn")
    share = MASKS.mean((1, 2))
    for measure in (pointing_game, iou, energy_inside, average_precision):
        assert measure(np.ones_like(MAPS), MASKS) == pytest.approx(share)
        assert measure(MASKS + 0.0, MASKS) == pytest.approx(1)
    many, mask = RNG.uniform(size=(4000, 7, 9)), np.repeat(MASKS[:1], 4000, 0)
    deviation = np.sqrt(share[0] * (1 - share[0]) / 4000)
    assert pointing_game(many, mask).mean() == pytest.approx(share[0], abs=4 * deviation)
    assert energy_inside(many, mask).mean() == pytest.approx(share[0], rel=0.02)


def test_the_best_share_is_that_of_the_masks() -> None:
    masks = np.zeros((20, 10, 10), bool)
    masks[:, 2:4, 3:8] = True
    maps = masks + RNG.uniform(0, 0.5, masks.shape)
    assert best_share(maps, masks) == 0.1
    assert iou(maps, masks, share=0.1) == pytest.approx(1)
    assert iou(maps, masks, share=0.2) == pytest.approx(0.5)


def test_bootstrap_intervals_are_those_of_scipy_and_seeds_are_averaged_first() -> None:
    values = RNG.exponential(size=80)
    ours = bootstrap_mean(values, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.images == 80
    several = values[:, None] + np.array([-1.0, 0.0, 1.0])
    assert bootstrap_mean(several, resamples=20_000).low == pytest.approx(ours.low, abs=1e-12)
    assert str(bootstrap_mean([1, 1])) == "1.000 (1.000 to 1.000)"


def test_a_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    hits = []
    for seed in range(300):
        found = bootstrap_mean(np.random.default_rng(seed).exponential(size=60), level=0.9, resamples=400)
        hits.append(found.low <= 1 <= found.high)
    assert 0.82 <= np.mean(hits) <= 0.95


BAD = [
    (lambda: pointing_game(MAPS[0], MASKS[0]), "maps must have shape (n, height, width), got (7, 9)"),
    (lambda: pointing_game(MAPS, MASKS[:3]), "masks must have the shape of the maps, (30, 7, 9), got (3, 7, 9)"),
    (lambda: iou(MAPS, MASKS + 0.0), "masks must be bool, got float64: compare with a level, as in masks > 0"),
    (lambda: iou(MAPS, np.zeros_like(MASKS)), "masks must have pixels in each image, got an empty one for image 0"),
    (lambda: iou(np.where(MAPS > 0, np.nan, 0), MASKS), "maps must be finite, got NaN or infinity"),
    (lambda: iou([["a"]], MASKS), "maps must be an array of numbers, got list"),
    (lambda: best_share(MAPS, MASKS, []), "shares must be one or more, got none"),
    (lambda: bootstrap_mean([]), "values must have shape (n,) or (n, seeds), got (0,)"),
    (lambda: best_share(MAPS, MASKS, ["a"]), "shares must be an array of numbers, got list"),
    (lambda: bootstrap_mean([[1, 2], [3]]), "values must be an array of numbers, got list"),
    (lambda: bootstrap_mean([np.nan]), "values must be finite, got NaN or infinity"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_errors_say_what_was_expected(call: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert str(caught.value) == message
