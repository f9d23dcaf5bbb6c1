"""The page of an explanation: what it says, that names cannot break it, and how a browser shows it."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import DiffusionClassifier
from fastdc.bundle import HaarTransform
from fastdc.explanation import Explanation
from fastdc.explanation.level_curves import level_curves
from fastdc.explanation.map_pictures import overlay_picture, scale_of, signed_picture
from fastdc.explanation.page import explanation_page
from fastdc.inference import Images
from fastdc.scoring import mistakes_of, score
from fastdc.support import InputError
from fastdc.testing import GaussianWorld
from helpers.browser import check_pages
from helpers.worlds import ManySlots, classifier, denoiser, gaussian

WORLD = gaussian(12)
STAGES = {"n_samples": [4, 8, 16], "to_keep": [5, 2, 1]}
NAMES = ("<script>alert(1)</script>", "a & b", "naïve\n☃", "a very long name of a class " * 4, *map(str, range(8)))


@dataclass
class Counterfactual:
    """What the page needs of one."""

    own: str
    target: str
    factual: Any
    counterfactual: Any
    flipped: bool
    kept: bool


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    clf = classifier(WORLD)
    clf = replace(clf, model=replace(clf.model, class_names=NAMES))
    images = ((WORLD.sample(np.arange(3)) + 1) / 2).astype(np.float32)
    ids = ("<b>one</b>.png", "two" * 40 + ".png", "three.png")
    return clf.explain(replace(Images.of(images, clf.model), ids=ids), rule="staged", rule_options=STAGES, draws=16)


def test_the_page_tells_everything(explanation: Explanation) -> None:
    text = explanation_page(explanation)
    for one in explanation:
        assert f"{one.region_for}" in text
        assert f"{one.evaluations:,} network evaluations" in text
    race = explanation[0].race
    dropped = [draws for draws in race.values() if draws < max(race.values())]
    assert f"left after {max(dropped)}" in text
    assert f"{len(dropped)} of 12 classes left" in text
    assert text.count("<img ") == 3 * (4 + 3)
    assert text.count("<svg") == 3
    assert "Benjamini-Yekutieli" in text
    assert "That holds for an answer and its runner-up" in text
    assert "seed 0" in text or "<td>seed</td><td>0</td>" in text
    assert explanation.provenance["model"] in text


def test_draws_are_counted_and_unknown_intervals_are_not_numbers() -> None:
    clf, image = classifier(WORLD), ((WORLD.sample(np.arange(1)) + 1) / 2).astype(np.float32)
    pairs = explanation_page(clf.explain(image, rule="full", draws=8, antithetic=True))
    assert "under the same noise, over 8 draws." in pairs  # four observations
    one = explanation_page(clf.explain(image, map_draws=1))
    assert "95 % interval: not known of a single observation" in one
    assert "nan" not in one.split("<h2>What reproduces it")[0]


def test_the_page_claims_no_difference_of_errors_that_a_rotation_does_not_keep() -> None:
    transform = HaarTransform(factor=0.5)
    world = GaussianWorld(means=transform.forward(gaussian(2).means), spread=0.1)
    model = replace(world.model, image_shape=(1, 4, 4), transform=transform)
    clf = DiffusionClassifier(model, ManySlots(denoiser(world), model.sample_shape))
    for loss, said in (("l2", "mean of a map is the difference"), ("l1", "mean of a map is not the difference")):
        assert said in explanation_page(clf.explain(np.full((1, 1, 4, 4), 0.5), draws=4, loss=loss))


def test_names_are_those_of_files_and_hidden_classes_are_counted(explanation: Explanation) -> None:
    answers = replace(explanation.answers, ids=("/home/somebody/images/one.png", "two.png", "three.png"))
    text = explanation_page(replace(explanation, answers=answers))
    assert "<td>one.png</td>" in text
    assert "<h2>one.png</h2>" in text
    assert text.count("/home/somebody") == 1  # the fact about the file
    assert "3 more classes." in text or "4 more classes." in text  # of 12, besides the first 8 and the two compared


def test_an_undecided_answer_fills_no_bar() -> None:
    """Between two classes, the difference is rounding and noise: the bar says so, and so does the text."""
    world = gaussian(2)
    clf, middle = classifier(world), (world.means.mean(axis=0, keepdims=True) + 1).astype(np.float32) / 2
    found = clf.explain(np.clip(middle, 0, 1), draws=64, against="class 1")
    assert found[0].undecided
    text = explanation_page(found)
    assert "Undecided: " in text
    assert ": undecided</td>" in text
    errors = text.split("<h3>Errors</h3>")[1].split("<h3>")[0]
    assert "width:100%" not in errors


def test_the_page_says_who_took_the_place_of_the_named_class() -> None:
    clf, images = classifier(WORLD), ((WORLD.sample(np.arange(2)) + 1) / 2).astype(np.float32)
    found = clf.explain(images, against="class 1", draws=16)
    assert found.turned.tolist() == [False, True]
    assert explanation_page(found).count("its runner-up, took the place") == 1


def test_large_images_do_not_make_a_page_that_no_browser_opens(
    explanation: Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdc.explanation.page.MOST_PIXELS", 2 * explanation.maps[0].size)
    text = explanation_page(explanation)
    assert "The first 2 of 3 images." in text
    assert text.count("<svg") == 2
    assert "<svg" not in explanation_page(explanation[:0])


def test_names_cannot_break_it(explanation: Explanation, tmp_path: Path) -> None:
    explanation.save(tmp_path / "e.html")
    text = (tmp_path / "e.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;b&gt;one" in text
    assert "a &amp; b" in text


def test_counterfactuals_are_shown_if_there_are_some(explanation: Explanation) -> None:
    pixels = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
    other: Any = Counterfactual("cat", "<dog>", pixels[0], pixels[1], True, False)
    text = explanation_page(explanation, [other] * 3)
    assert "Counterfactual, as &lt;dog&gt;" in text
    assert "the counterfactual for &lt;dog&gt;: yes; the factual reconstruction for cat: no" in text
    assert "green brighter, purple darker" in text
    assert "The factual reconstruction is the same edit towards the image&#x27;s own class" in text
    same: Any = Counterfactual("cat", "cat", pixels[0], pixels[0], False, True)
    assert "cat is the image&#x27;s own class: nothing can flip" in explanation_page(explanation, [same] * 3)
    with pytest.raises(InputError, match="one for each of 3 images, got 1"):
        explanation_page(explanation, [other])


def test_pages_can_be_read_on_a_phone_and_in_the_dark(explanation: Explanation, tmp_path: Path) -> None:
    pages = {"explanation": explanation_page(explanation)}
    if find_spec("sklearn") is not None:  # a browser takes seconds to start: the page of a score goes with it
        rng = np.random.default_rng(0)
        truth, p = rng.integers(0, 12, 90), rng.dirichlet(np.ones(12), 90)
        images = rng.random((90, 3, 8, 8), dtype=np.float32)
        found = score(truth, p, NAMES, groups={"site": ["a", "b" * 60, "<i>"] * 30})
        mistakes = mistakes_of(images, truth, p.argmax(axis=1), p, NAMES)
        found.save(tmp_path / "s.html", mistakes=mistakes)
        pages["score"] = (tmp_path / "s.html").read_text(encoding="utf-8")
    check_pages(pages)


def test_colours_tell_the_sign_and_grey_is_not_significant() -> None:
    values = np.array([[1.0, -1.0], [0.0, 0.5]], np.float32)
    signed = signed_picture(values, 1.0)
    np.testing.assert_array_equal(signed[0], [(0, 114, 178), (213, 94, 0)])
    assert len(set(signed[1, 0].tolist())) == 1
    image, marked = np.zeros((1, 2, 2), np.uint8), np.array([[True, False], [False, True]])
    over = overlay_picture(image, values, marked, 1.0)
    assert tuple(over[0, 0]) == (0, 114, 178)
    assert tuple(over[0, 1]) == tuple(over[1, 0]) == (60, 60, 60)
    assert scale_of(np.zeros((2, 2))) > 0


def test_curves_are_means_of_neighbouring_levels() -> None:
    ratio = np.exp(np.random.default_rng(1).permutation(40) / 10)
    errors = np.stack([ratio, 2 * ratio]).astype(np.float32)
    ratios, means = level_curves(ratio, errors)
    assert len(ratios) == 16
    assert (np.diff(ratios) > 0).all()
    np.testing.assert_allclose(means[1], 2 * means[0])
    assert level_curves(np.array([np.inf]), errors[:, :1])[0].size == 0
