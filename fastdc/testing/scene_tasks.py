"""Questions about scenes: which text describes the image? Five tasks, each with seen and unseen combinations.

    single       one object                     "a photo of a red cube"
    two_object   two objects, name the first    "a photo of a red cube"
    relational   two shapes, side by side       "a photo of a cube to the left of a sphere"
    counting     one to three of a shape        "a photo of two cubes"
    negation     one object                     "a photo of a cube that is not red"

The first three and the division of their 32 classes, 8 colours by 4 shapes, are those of Pearson et al. (arXiv
2508.20783): 17 classes are seen in training, 4 serve for validation and 11 for testing. All words are seen. A group is
what a folder of images has in common: the classes of two objects, a statement, a count. Objects of relational and
counting scenes have seen classes in all splits; only the statement may be new.

Candidates are texts of which exactly one, the first, is true of the images of a group. Those that differ from it in one
respect come next. Without `general`, the others are of the same side, seen or unseen.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from math import gcd
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, checks
from fastdc.testing.scene_images import COLOURS, Scene, SceneObject, draw_scene, render_scene
from fastdc.testing.solids import SHAPES

SCENE_TASKS = ("single", "two_object", "relational", "counting", "negation")
SCENE_SPLITS = ("train", "ID_val", "ID_test", "ood_val", "ood_test")
SCENE_CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Colours and shapes in alphabetical order: class 4 colour + shape."""

ID = (1, 3, 4, 5, 10, 11, 13, 15, 18, 19, 20, 22, 23, 26, 27, 28, 31)
OOD_VAL = (7, 8, 14, 29)
OOD_TEST = (0, 2, 6, 9, 12, 16, 17, 21, 24, 25, 30)
_OOD = {"ood_val": OOD_VAL, "ood_test": OOD_TEST}
_RELATED = {  # unordered pairs of shapes
    "ID": (("cone", "cube"), ("cylinder", "sphere"), ("cone", "cylinder")),
    "ood_val": (("cube", "sphere"),),
    "ood_test": (("cone", "sphere"), ("cube", "cylinder")),
}
COUNTS = ("one", "two", "three")
_COUNTED = {  # unseen counts of shapes; each count and each shape has seen ones
    "ood_val": ("two cones", "one cube"),
    "ood_test": ("three cylinders", "two spheres"),
}
_RADII = {1: (0.36, 0.72), 2: (0.32, 0.48)}  # by the number of objects
_COUNTED_RADII = (0.27, 0.4)  # of whatever number, so that the size does not tell it
_APART = 0.92  # least distance of two objects, as a share of the sum of their radii
_BESIDE = 0.55  # least horizontal distance of objects of a statement

Caption: TypeAlias = tuple[str, str]
"""A text and its short name, which is the name of a folder or a class."""


class SceneGroup(NamedTuple):
    """What images of a folder have in common.

    Attributes:
        name: Name of the group, and of the table of its candidates.
        folder: Name of the innermost folder: the short name of the text.
        captions: Texts that are true of every image, the folder's own first.
    """

    name: str
    folder: str
    captions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scenes:
    """n rendered scenes of a task.

    Attributes:
        images: uint8 (n, 3, size, size), 0 ... 255.
        scenes: Their descriptions.
        groups: Their groups.
    """

    images: npt.NDArray[np.uint8]
    scenes: tuple[Scene, ...]
    groups: tuple[SceneGroup, ...]


def scenes(task: str, split: str, count: int, *, size: int = 32, seed: int = 0) -> Scenes:
    """Renders scenes of a task, its groups in turns; the first images stay the same when more are asked for.

    Args:
        task: "single", "two_object", "relational", "counting" or "negation".
        split: "train", "ID_val", "ID_test", "ood_val" or "ood_test": independent images each.
        count: Number of images.
        size: Pixels per side; every size shows the same scenes.
        seed: Seed of the images.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> from fastdc.testing import scenes
        >>> world = scenes("relational", "ood_val", 2)
        >>> world.images.shape, world.groups[0].captions[0]
        ((2, 3, 32, 32), 'a photo of a cube to the left of a sphere')
    """
    count, seed = checks.whole("count", count, low=1), checks.whole("seed", seed, low=0)
    groups = scene_groups(task, split)
    step = next(step for step in range(int(0.618 * len(groups)) + 1, len(groups) + 2) if gcd(step, len(groups)) == 1)
    chosen = tuple(groups[index * step % len(groups)] for index in range(count))  # neighbours differ
    drawn = tuple(_draw(task, split, index, group, seed) for index, group in enumerate(chosen))
    return Scenes(np.stack([render_scene(scene, size) for scene in drawn]), drawn, chosen)


def scene_groups(task: str, split: str) -> tuple[SceneGroup, ...]:
    """The groups of a task's split.

    Args:
        task: As for :func:`scenes`.
        split: As for :func:`scenes`.

    Raises:
        InputError: The task or the split is unknown.

    Example:
        >>> from fastdc.testing import scene_groups
        >>> [group.name for group in scene_groups("counting", "ood_val")]
        ['two_cones', 'one_cube']
    """
    task, split = checks.one_of("task", task, SCENE_TASKS), checks.one_of("split", split, SCENE_SPLITS)
    return _groups(task, split if split in _OOD else "ID")


def scene_candidates(task: str, split: str, group: str, *, general: bool = False) -> tuple[Caption, ...]:
    """The candidate texts of a group, each with its short name: the right one, those nearest to it, and others.

    Args:
        task: As for :func:`scenes`.
        split: As for :func:`scenes`.
        group: Name of one of the split's groups.
        general: Whether texts of the other side are candidates, too: the generalised setting.

    Raises:
        InputError: The task, the split or the group is unknown.

    Example:
        >>> from fastdc.testing import scene_candidates
        >>> [name for _, name in scene_candidates("counting", "ood_val", "two_cones")]
        ['two cones', 'one cone', 'three cones', 'one cube', 'three cylinders', 'two spheres']
    """
    by_name = {one.name: one for one in scene_groups(task, split)}
    found = by_name[checks.one_of("group", group, tuple(by_name))]
    seen = split not in _OOD
    ranked = _CANDIDATES[task](found, lambda unseen: general or unseen != seen)
    return tuple(dict.fromkeys(ranked))


def class_caption(name: str) -> Caption:
    """The text of a class, such as "red cube"."""
    return f"a photo of a {name}", name


def _side(side: str) -> tuple[str, ...]:
    return tuple(SCENE_CLASSES[index] for index in _OOD.get(side, ID))


@cache
def _groups(task: str, side: str) -> tuple[SceneGroup, ...]:
    classes = _side(side)
    if task == "single":
        return tuple(SceneGroup(name, name, (class_caption(name)[0],)) for name in classes)
    if task == "two_object":
        pairs = [pair for pair in permutations(classes, 2) if not set(pair[0].split()) & set(pair[1].split())]
        return tuple(
            SceneGroup(f"{one}_{two}".replace(" ", "_"), one, tuple(class_caption(name)[0] for name in (one, two)))
            for one, two in pairs
        )
    if task == "relational":
        stated = [(one, rel, two) for pair in _RELATED[side] for one, two in (pair, pair[::-1]) for rel in _FLIPPED]
        return tuple(
            SceneGroup("_".join(s), " ".join(s), (_statement(*s)[0], _statement(*_turned(*s))[0])) for s in stated
        )
    if task == "counting":
        return tuple(SceneGroup(name.replace(" ", "_"), name, (f"a photo of {name}",)) for name in _counted(side))
    named = [(*name.split(), other) for name in classes for other in COLOURS if name.split()[0] != other]
    return tuple(_negated(*words) for words in named)


def _negated(colour: str, shape: str, other: str) -> SceneGroup:
    """Objects that are not of another colour; nor are they of any but their own."""
    rest = [name for name in COLOURS if name not in (colour, other)]
    texts = tuple(_negation(shape, name)[0] for name in (other, *rest))
    return SceneGroup(f"{colour}_{shape}_not_{other}", _negation(shape, other)[1], texts)


_FLIPPED = {"left": "right", "right": "left"}


def _statement(one: str, relation: str, two: str) -> Caption:
    return f"a photo of a {one} to the {relation} of a {two}", f"{one} {relation} {two}"


def _turned(one: str, relation: str, two: str) -> tuple[str, str, str]:
    """The same statement from the other's side."""
    return two, _FLIPPED[relation], one


def _negation(shape: str, colour: str) -> Caption:
    return f"a photo of a {shape} that is not {colour}", f"{shape} not {colour}"


def _count_name(count: int, shape: str) -> str:
    return f"{COUNTS[count]} {shape}{'s' if count else ''}"


def _counted(side: str) -> tuple[str, ...]:
    unseen = {name for names in _COUNTED.values() for name in names}
    every = tuple(_count_name(count, shape) for shape in SHAPES for count in range(3))
    return _COUNTED.get(side) or tuple(name for name in every if name not in unseen)


_Admit: TypeAlias = Callable[[bool], bool]
"""Whether texts of a side, unseen or seen, are candidates."""


def _classes(names: Iterable[str], admit: _Admit) -> list[Caption]:
    return [class_caption(name) for name in names if admit(SCENE_CLASSES.index(name) not in ID)]


def _single(group: SceneGroup, admit: _Admit) -> list[Caption]:
    """Classes in the order of their numbers, but the right one first."""
    return [
        class_caption(name) for name in (group.folder, *SCENE_CLASSES) if admit(SCENE_CLASSES.index(name) not in ID)
    ]


def _two_object(group: SceneGroup, admit: _Admit) -> list[Caption]:
    """Second's colour on the first's shape, second's shape in the first's colour, and others but the second."""
    colour, shape, other_colour, other_shape = group.name.split("_")
    near = (f"{other_colour} {shape}", f"{colour} {other_shape}")
    names = [name for name in (group.folder, *near, *SCENE_CLASSES) if name != f"{other_colour} {other_shape}"]
    return _classes(names, admit)


def _relational(group: SceneGroup, admit: _Admit) -> list[Caption]:
    """The relation flipped, the objects swapped, and other pairs; not the same statement from the other's side."""
    one, relation, two = group.name.split("_")
    stated = [(one, relation, two), (one, _FLIPPED[relation], two), (two, relation, one)]
    stated += [(first, rel, second) for first, second in permutations(SHAPES, 2) for rel in _FLIPPED]
    seen = {frozenset(pair) for pair in _RELATED["ID"]}
    kept = [s for s in stated if s != _turned(one, relation, two) and admit(frozenset((s[0], s[2])) not in seen)]
    return [_statement(*s) for s in kept]


def _counting(group: SceneGroup, admit: _Admit) -> list[Caption]:
    """Other counts of the shape, on whichever side they are, and counts of other shapes."""
    right = group.folder
    shape = group.name.split("_")[1].removesuffix("s")
    own = [_count_name(count, shape) for count in range(3)]
    seen = _counted("ID")
    others = [_count_name(count, name) for name in SHAPES if name != shape for count in range(3)]
    names = [right, *own, *(name for name in others if admit(name not in seen))]
    return [(f"a photo of {name}", name) for name in names]


def _negations(group: SceneGroup, admit: _Admit) -> list[Caption]:
    """Its own colour denied, and other shapes: first with the own colour, then with those of classes of a side."""
    colour, shape, _, other = group.name.split("_")
    others = [name for name in SHAPES if name != shape]
    mixed = [(c, s) for c, s in product(COLOURS, others) if admit(SCENE_CLASSES.index(f"{c} {s}") not in ID)]
    words = [(other, shape), (colour, shape), *((colour, s) for s in others), *mixed]
    return [_negation(s, c) for c, s in words]


_CANDIDATES: dict[str, Callable[[SceneGroup, _Admit], list[Caption]]] = {
    "single": _single,
    "two_object": _two_object,
    "relational": _relational,
    "counting": _counting,
    "negation": _negations,
}


def _draw(task: str, split: str, index: int, group: SceneGroup, seed: int) -> Scene:
    """The scene of an image: its seed, task, split and index determine it."""
    stream = (seed, SCENE_TASKS.index(task), SCENE_SPLITS.index(split), index)
    rng = np.random.default_rng(stream)
    words = group.name.replace("_", " ").split()
    seen = [name.split() for name in _side("ID")]

    def coloured(shape: str) -> tuple[str, str]:
        """A seen class of a shape."""
        fitting = [colour for colour, other in seen if other == shape]
        return str(rng.choice(fitting)), shape

    if task == "relational":
        names = [coloured(words[0]), coloured(words[2])]
    elif task == "counting":
        names = [coloured(words[1].removesuffix("s")) for _ in range(1 + COUNTS.index(words[0]))]
    else:
        names = [(words[0], words[1])] + ([(words[2], words[3])] if task == "two_object" else [])
    radii = rng.uniform(*(_COUNTED_RADII if task == "counting" else _RADII[len(names)]), len(names))
    places = _places(radii, rng, _BESIDE if task == "relational" else 0.0)
    if task == "relational" and (places[0][0] < places[1][0]) != (words[1] == "left"):
        places.reverse()  # whichever object is on the left, it is as large and as near as the other
    objects = tuple(
        SceneObject(*name, *place, float(rng.uniform(0, 2 * np.pi))) for name, place in zip(names, places, strict=True)
    )
    return draw_scene(objects, rng, stream)


def _places(radii: Float64, rng: np.random.Generator, beside: float) -> list[tuple[float, float, float]]:
    """Places x, y and radii of objects that hardly cover each other."""
    other = ~np.eye(len(radii), dtype=bool)
    while True:
        x, y = (1 - radii) * rng.uniform(-1, 1, (2, len(radii)))
        away = np.hypot(x[:, None] - x, y[:, None] - y) - _APART * (radii[:, None] + radii)
        level = np.abs(x[:, None] - x) - beside
        if (away[other] >= 0).all() and (level[other] >= 0).all():
            return list(zip(x.tolist(), y.tolist(), radii.tolist(), strict=True))
