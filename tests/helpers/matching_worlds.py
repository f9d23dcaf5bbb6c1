"""Gaussian worlds for matchers: classifiers whose texts are the names of classes, with and without "no class"."""

from dataclasses import replace

import numpy as np

from fastdc import DiffusionClassifier
from fastdc.bundle import Model
from fastdc.matching import Trials
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.worlds import ManySlots, classifier, denoiser, gaussian, unit_images

CLASSES = 9
WORLD = gaussian(CLASSES)
NAMES = WORLD.model.class_names
N = 150  # more than two chunks


def asked(n: int = N, *, seed: int = 0, most: int = 7) -> Trials:
    """Trials of images of the world's size, each with 1 to `most` names in an order of its own."""
    rng = np.random.default_rng(seed)
    lists = [[NAMES[k] for k in rng.permutation(CLASSES)[: rng.integers(1, most + 1)]] for _ in range(n)]
    return Trials.of(unit_images(n), lists, truth=-1)


def asked_all(n: int = N) -> Trials:
    """The same trials, of which the first text of each is right."""
    return replace(asked(n), truth=np.zeros(n, np.int64))


def with_prompts(world: GaussianWorld = WORLD) -> DiffusionClassifier:
    """A classifier whose conditions are prompts: as many as there are classes."""
    clf = classifier(world)
    model = replace(clf.model, prompts=clf.model.class_names, class_of=tuple(range(len(clf.model.class_names))))
    return replace(clf, model=model)


def with_null(world: GaussianWorld = WORLD) -> DiffusionClassifier:
    """A classifier whose last class, the mean of all, means "no class"."""
    means = np.concatenate([world.means, world.means.mean(axis=0)[None]])
    more = replace(world, means=means)
    model: Model = replace(world.model, null_class=len(world.means))
    return DiffusionClassifier(model, ManySlots(denoiser(more), world.model.image_shape))
