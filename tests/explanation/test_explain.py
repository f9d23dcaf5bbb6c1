"""Explanations: which classes are compared, what the result holds, and what is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import Classification, DiffusionClassifier
from fastdc.explanation import Explanation, explain, region_of
from fastdc.explanation.explain import upsampled
from fastdc.inference import Images
from fastdc.support import InputError
from helpers import latent_world
from helpers.worlds import ManySlots, classifier, gaussian, refusing, unit_images

WORLD = gaussian(4)
CLF = classifier(WORLD)
IMAGES = ((WORLD.sample(np.arange(8) % 4) + 1) / 2).astype(np.float32)


def made(**options: Any) -> Explanation:
    return CLF.explain(IMAGES, draws=16, **options)


def test_the_answer_is_compared_with_the_runner_up() -> None:
    explanation, answers = made(rule="full"), CLF.classify(IMAGES, draws=16, rule="full")
    np.testing.assert_array_equal(explanation.classes, answers.labels)
    np.testing.assert_array_equal(explanation.against, np.argsort(answers.errors, axis=1)[:, 1])
    gaps = np.sort(answers.errors, axis=1)
    np.testing.assert_allclose(explanation.maps.mean(axis=(1, 2)), gaps[:, 1] - gaps[:, 0], rtol=1e-4)
    np.testing.assert_array_equal(explanation.evaluations, 16 * 4 + 2 * 16)
    np.testing.assert_array_equal(explanation.answers.probabilities, answers.probabilities)


def test_classes_are_named_for_all_images_or_for_each() -> None:
    one = made(against="class 2")
    assert (one.against[one.classes != 2] == 2).all()
    assert (one.against[one.classes == 2] != 2).all()
    listed = made(classes=[0, 1] * 4, against=["class 3"] * 8)
    np.testing.assert_array_equal(listed.classes, [0, 1] * 4)
    np.testing.assert_array_equal(listed.against, [3] * 8)
    assert one.turned.tolist() == (one.classes == 2).tolist()
    assert one[2].to_dict()["turned"] is True
    np.testing.assert_array_equal(made(against=["class 2"] * 8).maps, one.maps)
    assert not listed.turned.any()
    mirrored = made(classes=["class 3"] * 8, against=[0, 1] * 4)
    np.testing.assert_array_equal(mirrored.maps, -listed.maps)


def test_what_cannot_be_explained_is_refused_before_any_work() -> None:
    clf = refusing(WORLD.model)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"against": "clas 2"}, "against must be classes of the model"),
        ({"against": [1, 2]}, "one for each of 8 images, got 2"),
        ({"classes": [1] * 8, "against": [1] * 8}, "image 0 is explained as 'class 1': expected another"),
        ({"classes": 1, "against": 1}, "image 0 is explained as 'class 1': expected another"),
        ({"alpha": 0.2}, "alpha must be in"),
        ({"control": "bonferroni"}, "control must be one of"),
        ({"againts": 3}, "there is no option 'againts'; did you mean 'against'"),
        ({"map_draws": 0}, "map_draws must be"),
        ({"method": "epndc", "sigma": 0.5}, "expected method dc"),
    ]
    for options, words in refused:
        with pytest.raises(InputError, match=words):
            clf.explain(IMAGES, **options)
    with pytest.raises(InputError, match="image 0 has no second class"):
        CLF.explain(IMAGES[:1], candidates=["class 1"], draws=4)


def test_prompts_of_a_class_speak_through_their_best() -> None:
    network = ManySlots(latent_world.network, latent_world.MODEL.sample_shape)
    clf = DiffusionClassifier(latent_world.MODEL, network, latent_world.Encoder())
    images = unit_images(3)
    explanation = clf.explain(images, rule="full", classes="red", against=["blue"] * 3)
    means = clf.errors(images).mean()
    gaps = means[:, 3:].min(axis=1) - means[:, :2].min(axis=1)
    np.testing.assert_allclose(explanation.maps.mean(axis=(1, 2)), gaps, rtol=1e-4)
    assert explanation.space == "latents, upsampled"
    assert explanation.maps.shape == explanation.significant.shape == (3, 4, 4)
    assert (explanation.class_draws == 8).all()


def test_latents_cover_blocks_of_pixels() -> None:
    small = np.arange(6.0).reshape(1, 2, 3)
    np.testing.assert_array_equal(upsampled(small, (4, 6)), np.kron(small, np.ones((1, 2, 2))))
    np.testing.assert_array_equal(upsampled(small, (2, 3)), small)
    np.testing.assert_array_equal(upsampled(small, (2, 4))[0, 0], [0, 1, 1, 2])


def test_intervals_hold_the_maps_and_significance_is_stricter() -> None:
    explanation = made()
    low, high = explanation.interval()
    assert (low <= explanation.maps).all()
    assert (explanation.maps <= high).all()
    outside = (low > 0) | (high < 0)
    assert outside[explanation.significant].all()
    assert outside.sum() > explanation.significant.sum() > 0
    strict = made(control="fwer")
    assert not (strict.significant & ~explanation.significant).any()


def test_a_sequence_of_images_whose_race_is_told() -> None:
    explanation = made(rule="paired")
    assert len(explanation) == len(list(explanation)) == 8
    one, part = explanation[3], explanation[[3, 1]]
    assert (one.index, one.explained, one.against) == (3, explanation.classes[3], explanation.against[3])
    np.testing.assert_array_equal(part.maps, explanation.maps[[3, 1]])
    assert (
        part[0].race == one.race == dict(zip(WORLD.model.class_names, explanation.answers.table.counts[3], strict=True))
    )
    assert one.gap == pytest.approx(float(one.pair_errors[1].mean() - one.pair_errors[0].mean()), rel=1e-4)
    assert len(repr(explanation)) < 200
    assert "'class 0' against" in repr(explanation)
    assert "<table>" in explanation._repr_html_()


def test_regions_tell_where() -> None:
    values = np.zeros((5, 6), np.float32)
    values[1, 2], values[3, 4], values[0, 0] = 1, 2, -3
    marked = values != 0
    found, opposed = region_of(values, marked), region_of(-values, marked)
    assert (found.box, found.peak, found.share) == ((1, 2, 4, 5), (3, 4), 2 / 30)
    assert found.weight - opposed.weight == pytest.approx(values.mean())
    assert (opposed.box, opposed.peak) == ((0, 0, 1, 1), (0, 0))
    assert str(region_of(values, np.zeros_like(marked))) == "none"
    assert (found.areas, found.largest) == (2, 1 / 30)
    assert str(region_of(np.ones((9, 9)), np.eye(9, dtype=bool))).startswith("11.1 % of pixels, spread over the image,")
    apart = np.zeros((9, 9))
    apart[0, 0] = apart[8, 8] = apart[7, 8] = 1
    said = "3.7 % of pixels in 2 areas, the largest 2.47 %, in rows 7-8, columns 8-8, most at row 0, column 0"
    assert str(region_of(apart, apart > 0)) == said


def test_a_difference_within_its_noise_is_undecided() -> None:
    """An image in the middle of two classes, and one that is sure; with a single draw nobody knows."""
    middle = ((WORLD.means[:1] + WORLD.means[1:2]) / 4 + 0.5).astype(np.float32)
    both = np.concatenate([middle, (WORLD.means[:1] + 1).astype(np.float32) / 2])
    found = CLF.explain(np.clip(both, 0, 1), classes=0, against=1, draws=64)
    assert [one.undecided for one in found] == [True, False]
    assert [one.to_dict()["undecided"] for one in found] == [True, False]
    differences = found.pair_errors[:, 1].astype(float) - found.pair_errors[:, 0]
    half = 1.99834 * differences.std(axis=1, ddof=1) / 8  # Student's t with 63 degrees of freedom
    np.testing.assert_allclose(found.gap_half_widths(), half, rtol=1e-4)
    few = CLF.explain(both[:1], classes=0, against=1, map_draws=1)[0]
    assert few.undecided is few.to_dict()["gap_half_width"] is None


def test_files_have_everything(tmp_path: Path) -> None:
    explanation = made()
    explanation.save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as file:
        for name in ("maps", "standard_errors", "significant", "channels", "bands", "pair_errors", "ratio"):
            np.testing.assert_array_equal(file[name], getattr(explanation, name))
        assert file["class_names"].tolist() == list(WORLD.model.class_names)
    explanation.save(tmp_path / "e.json")
    told = json.loads((tmp_path / "e.json").read_text())
    assert [one["explained"] for one in told["images"]] == [one.names[0] for one in explanation]
    assert told["provenance"]["explanation"]["control"] == "fdr"
    explanation.save(tmp_path / "e.csv")
    assert (tmp_path / "e.csv").read_text().startswith("index,name,probability,explained,against,gap")
    with pytest.raises(InputError, match=r"ends in .*; fastdc.figures.explanation_sheet draws"):
        explanation.save(tmp_path / "e.png")


def test_named_images_keep_their_names() -> None:
    pandas = pytest.importorskip("pandas")
    ready = Images.of(IMAGES[:2], CLF.model)
    named = Images(ready.given, ready.samples, ready.streams, ("a.png", "b.png"))
    explanation = explain(CLF, named, draws=4)
    assert explanation[1].image == "b.png"
    assert isinstance(explanation.to_pandas(), pandas.DataFrame)
    assert list(explanation.to_pandas().image) == ["a.png", "b.png"]
    assert isinstance(explanation.answers, Classification)
