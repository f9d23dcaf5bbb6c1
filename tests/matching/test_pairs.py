"""Winoground's scores and retrieval: by hand, and in a world where raw errors compare the wrong thing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import InputError, Interrupted
from fastdc.matching import (
    DiffusionMatcher,
    Matched,
    PairScores,
    Retrieval,
    Trials,
    evidence,
    pair_trials,
    read_rankings,
    retrieve,
    score_pairs,
)
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.matching_worlds import with_null, with_prompts
from helpers.worlds import unit_images

# s[image, caption], and which of text, image and group score it has
GOLDEN = [
    ([[4, 1], [2, 3]], (1, 1, 1)),
    ([[4, 3], [1, 2]], (1, 0, 0)),  # image 0 fits both captions better
    ([[2, 3], [1, 4]], (0, 1, 0)),  # both images prefer caption 1
    ([[1, 2], [3, 0]], (0, 0, 0)),
    ([[3, 3], [1, 2]], (0, 0, 0)),  # a tie is no success
    ([[3, 1], [3, 4]], (1, 0, 0)),  # a tie between images
    ([[3, 2], [1, 2]], (1, 0, 0)),
]


def test_golden_cases() -> None:
    found = PairScores("by hand", np.array([s for s, _ in GOLDEN], np.float64), tags=tuple("aabbbbb"))
    want = np.array([w for _, w in GOLDEN], bool)
    for name, column in zip(("text", "image", "group"), want.T, strict=True):
        np.testing.assert_array_equal(getattr(found, name), column)
    measures = found.measures()
    assert (measures["text"].value, measures["image"].value, measures["group"].value) == (4 / 7, 2 / 7, 1 / 7)
    assert measures["group"].low < 1 / 7 < measures["group"].high
    assert found.of_tags()["a"]["text"].value == 1.0
    assert "chance 16.7%" in str(found)
    assert str(PairScores("one", found.scores[:1])).startswith("one, 1 pair of images and captions\n")
    assert found.to_dict()["tags"]["b"]["image"]["value"] == 1 / 5


def test_chance_is_what_scores_without_meaning_get() -> None:
    found = PairScores("noise", np.random.default_rng(0).random((40_000, 2, 2)))
    for name, chance in {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}.items():
        low, high = found.measures()[name][1:]
        assert low - 0.005 < chance < high + 0.005


class Fixed:
    """A matcher of given scores."""

    name = "fixed"

    def __init__(self, scores: Any, stop: int | None = None) -> None:
        self.scores, self.stop = scores, stop

    def match(self, trials: Trials, progress: Any = None) -> Matched:
        rows = np.arange(len(trials))[: self.stop]
        scores = tuple(np.asarray(self.scores[i], np.float64) for i in rows)
        done = Matched(self.name, rows, scores, np.zeros(len(rows), np.int64), np.full(len(rows), 2), 0.0)
        if self.stop is not None:
            raise Interrupted("stopped", done)
        return done


def test_any_matcher_is_scored_and_ctrl_c_keeps_whole_examples() -> None:
    scores = np.array([s for s, _ in GOLDEN]).reshape(-1, 2)
    trials = pair_trials(np.zeros((14, 1, 2, 2)), [("a", "b")] * 7)
    assert score_pairs(Fixed(scores), trials).text.tolist() == [bool(w[0]) for _, w in GOLDEN]
    with pytest.raises(Interrupted) as caught:
        score_pairs(Fixed(scores, stop=5), trials)
    assert len(caught.value.result) == 2
    with pytest.raises(Interrupted) as ranked:
        retrieve(Fixed(scores, stop=5), np.zeros((14, 1, 2, 2)), ["a", "b"], ["a", "b"] * 7)
    assert isinstance(ranked.value.result, Matched)
    assert ranked.value.result.rows.tolist() == [0, 1, 2, 3, 4]


def world_of_distractors() -> tuple[GaussianWorld, Any, list[tuple[str, str]]]:
    """Classes differ in the left half of the image; the right half has content that no text describes.

    The content adds the same to the errors under all texts and under none, more for some images than for others.
    """
    rng = np.random.default_rng(1)
    means = np.zeros((6, 1, 4, 4))
    means[:, :, :, :2] = rng.uniform(-0.5, 0.5, (6, 1, 4, 2))
    world = GaussianWorld(means, spread=0.1)
    examples = [rng.choice(6, 2, replace=False).tolist() for _ in range(40)]
    x = means[np.array(examples).ravel()] + 0.05 * rng.standard_normal((80, 1, 4, 4))
    x[:, :, :, 2:] += rng.uniform(0, 1, (80, 1, 1, 1)) * rng.choice([-1, 1], (80, 1, 4, 2))
    names = world.model.class_names
    return world, ((np.clip(x, -1, 1) + 1) / 2).astype(np.float32), [(names[a], names[b]) for a, b in examples]


def test_raw_errors_compare_images_and_not_texts() -> None:
    """The trap: without the error under no text, the image score says which image is easier to denoise."""
    world, images, captions = world_of_distractors()
    matcher = DiffusionMatcher(with_null(world), draws=32, levels=(0.5, 4.0))
    trials = pair_trials(images, captions)
    right, raw = score_pairs(matcher, trials), score_pairs(matcher, trials, subtract=False)
    assert right.text.all()
    np.testing.assert_array_equal(raw.text, right.text)  # texts of one image compare either way
    assert right.image.mean() > 0.9
    assert raw.image.mean() < 0.4
    assert right.evaluations.tolist() == [2 * 3 * 32] * 40
    streams = matcher.errors(trials, null=True, streams=np.repeat(np.arange(40), 2)).streams
    assert streams.tolist() == np.repeat(np.arange(40), 2).tolist()


def test_the_evidence_is_the_difference_of_the_errors() -> None:
    world, images, captions = world_of_distractors()
    matcher = DiffusionMatcher(with_null(world), draws=8)
    trials = pair_trials(images[:4], captions[:2])
    means = matcher.errors(trials, null=True).mean()
    assert [list(one) for one in evidence(matcher, trials).scores] == (means[:, 2:] - means[:, :2]).tolist()
    assert [list(one) for one in evidence(matcher, trials, subtract=False).scores] == (-means[:, :2]).tolist()


def test_retrieval_by_hand() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [2.0, 1.0, 5.0], [1.0, 1.0, 4.0], [0.0, 0.0, 3.0]])
    right = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], bool)
    found = Retrieval("by hand", ("a", "b", "c"), scores, right)
    assert found.ranks.tolist() == [1, 3, 3]  # b: two others tie with its image, and count
    assert found.recall(1).value == 1 / 3
    assert found.recall(3).value == 1.0
    assert found.reciprocal.value == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert 1 / 3 <= found.reciprocal.low <= found.reciprocal.value <= found.reciprocal.high <= 1
    assert found.chance == 5 / 12
    assert "recall@1" in str(found)
    assert "recall@5" not in found.measures()
    with pytest.raises(InputError, match="the text 'b' describes no image"):
        Retrieval("x", ("a", "b"), scores[:, :2], right[:, [0, 0]] & [True, False])


def test_images_are_ranked_by_what_a_text_adds() -> None:
    world, images, captions = world_of_distractors()
    of_image = np.array(captions).ravel()
    texts = sorted(set(of_image))
    matcher = DiffusionMatcher(with_null(world), draws=32, levels=(0.5, 4.0))
    rows = [np.flatnonzero(of_image == text)[0] for text in texts]  # one image of each
    found = retrieve(matcher, images[rows], texts, of_image[rows])
    raw = retrieve(matcher, images[rows], texts, of_image[rows], subtract=False)
    assert found.recall(1).value == 1.0
    assert raw.recall(1).value < 0.7
    assert found.evaluations == 6 * 7 * 32


def test_right_texts_of_rankings(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    rows = ["a.png,one,1", "a.png,two,0", "b.png,two,1", "b.png,one,1", "c.png,three,0"]
    (tmp_path / "known.csv").write_text("image,prompt,truth\n" + "\n".join(rows))
    images, texts, right = read_rankings(tmp_path / "known.csv")
    assert [Path(image).name for image in images] == ["a.png", "b.png", "c.png"]
    assert (texts, right.tolist()) == (["one", "two"], [[True, False], [True, True], [False, False]])
    assert right.dtype == np.bool_
    found = retrieve(Fixed([[2, 1], [3, 4], [5, 0]]), unit_images(3), texts, ["one", "two", "another"])
    assert found.right.tolist() == [[True, False], [False, True], [False, False]]
    assert found.ranks.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: pair_trials(unit_images(3), [("a", "b")]), "two images for each of 1 pairs"),
        (lambda: pair_trials(unit_images(2), ["ab"]), "example 0: expected two captions"),
        (lambda: pair_trials(unit_images(2), [("a", "a")]), "one of them twice"),
        (lambda: score_pairs(Fixed([]), Trials.of(unit_images(2), [["a", "b"], ["b", "a"]])), "expected pairs"),
        (lambda: retrieve(Fixed([]), unit_images(2), ["a"], ["a"]), "right must be the text of each of 2 images"),
        (lambda: score_pairs(DiffusionMatcher(with_prompts()), pair_trials(unit_images(2), [("class 0", "class 1")])),
         "no null class"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        call()
