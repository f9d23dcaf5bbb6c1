"""The shipped text-conditional model on newly rendered scenes: zero-shot by prompts, also for unseen combinations.

The model was trained on 17 of the 32 pairs of a colour and a shape; it can know the other 15 only by their parts.
"""

import numpy as np
import pytest

import fastdc
from fastdc import Classification
from fastdc.bundle import Prompts, prompts_of
from fastdc.testing import SCENE_CLASSES, Scenes, scene_candidates, scenes

pytest.importorskip("onnxruntime")

TEMPLATE = "a photo of a {}"


@pytest.fixture(scope="module")
def worlds() -> tuple[Scenes, Scenes]:
    """Single objects of seen and of unseen pairs, three and four per class."""
    return scenes("single", "ID_test", 51, seed=1), scenes("single", "ood_test", 44, seed=1)


@pytest.fixture(scope="module")
def results(worlds: tuple[Scenes, Scenes]) -> list[Classification]:
    clf = fastdc.load("shapes", threads=1)
    return [clf.classify(world.images) for world in worlds]


def right(result: Classification, world: Scenes) -> float:
    return float(
        np.mean([SCENE_CLASSES[k] == group.name for k, group in zip(result.labels, world.groups, strict=True)])
    )


def test_the_classes_are_the_renderers() -> None:
    model = fastdc.load("shapes").model
    assert model.class_names == SCENE_CLASSES
    assert model.prompts == prompts_of(SCENE_CLASSES, [TEMPLATE]).texts
    assert model.latent_shape == (4, 8, 8)


@pytest.mark.slow
def test_seen_pairs_are_told_apart_and_unseen_ones_often(
    results: list[Classification], worlds: tuple[Scenes, Scenes]
) -> None:
    """Of all test images, 96.7 % of the seen and 58.2 % of the unseen pairs are right; by chance, 3 % would be."""
    seen, unseen = results
    assert right(seen, worlds[0]) >= 0.85
    assert right(unseen, worlds[1]) >= 0.4
    for result, most in zip(results, (200, 350), strict=True):
        assert result.provenance["rule"]["name"] == "calibrated"
        assert result.evaluations.mean() < most  # instead of 32 classes at 32 draws, 1024


@pytest.mark.slow
def test_other_prompts_are_other_classes(worlds: tuple[Scenes, Scenes]) -> None:
    """With four prompts per colour as classes, the same network names colours."""
    pytest.importorskip("tokenizers")
    colours = [name.split()[0] for name in SCENE_CLASSES]
    names = tuple(dict.fromkeys(colours))
    prompts = Prompts(prompts_of(SCENE_CLASSES, [TEMPLATE]).texts, tuple(map(names.index, colours)), names)
    asked = fastdc.load("shapes", prompts=prompts, threads=1).classify(worlds[0].images[:24], rule="full", draws=2)
    truth = [names.index(group.name.split()[0]) for group in worlds[0].groups[:24]]
    assert asked.probabilities.shape == (24, 8)
    assert np.mean(asked.labels == truth) >= 0.9


@pytest.mark.slow
def test_statements_and_counts_are_told_apart() -> None:
    """A statement against its flipped relation, and the counts of a shape."""
    pytest.importorskip("tokenizers")
    for task, count, least in (("relational", 2, 0.8), ("counting", 3, 0.8)):
        found = []
        world = scenes(task, "ID_test", 24, seed=1)
        for group in dict.fromkeys(world.groups):
            names = [name for _, name in scene_candidates(task, "ID_test", group.name)][:count]
            texts = [text for text, _ in scene_candidates(task, "ID_test", group.name)][:count]
            prompts = Prompts(tuple(texts), tuple(range(count)), tuple(names))
            images = world.images[[one == group for one in world.groups]]
            asked = fastdc.load("shapes", prompts=prompts, threads=1).classify(images, rule="full", draws=12)
            found += (asked.labels == 0).tolist()
        assert np.mean(found) >= least, task
