"""The scoring of the code that was released with the compositional evaluation (otmive/diffusion_classifier_clip, at
fe2dd18), so that published numbers can be compared.

It scores a diffusion model in another way than the evaluation that its data describes, and than it scores CLIP:

    single objects        Images are labelled by the place of their folder in alphabetical order, through a list in
                          which the 12th seen class, purple cylinder (22), is named purple cone (20). An image of a
                          purple cylinder is right if the answer is "purple cone".
    two objects,          Each pair's table is scored on the images of all pairs of the split, and its first row is
    relational            right of each. An image counts once per pair, and is right of it if the answer is what the
                          pair's own images show.

So a table of one pair mostly asks about images that show neither of its objects, and even a perfect model is right of
few. The paper's protocol cannot be recovered from such a number. Kinds of errors refer to the pair of the table, and
texts that are also true are "other", as there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastdc.matching.cells import Cell, Group
from fastdc.matching.kinds import ALSO_TRUE, OTHER, kinds_of
from fastdc.support import InputError

CROSSED = ("two_object", "relational")
"""Tasks whose tables are scored on all images of a split."""

_COLOURS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")
_SHAPES = ("cone", "cube", "cylinder", "sphere")
_CLASSES = tuple(f"{colour} {shape}" for colour in _COLOURS for shape in _SHAPES)

_SEEN = (1, 3, 4, 5, 10, 11, 13, 15, 18, 19, 20, 20, 23, 26, 27, 28, 31)  # the 12th should be 22
_LABELS: Mapping[str, tuple[int, ...]] = {
    "train": _SEEN,
    "id-val": _SEEN,
    "id-test": _SEEN,
    "val": (7, 8, 14, 29),
    "test": (0, 2, 6, 9, 12, 16, 17, 21, 24, 25, 30),
}
_FOLDERS = {split: (*labels[:11], 22, *labels[12:]) if labels is _SEEN else labels for split, labels in _LABELS.items()}


def released_groups(cell: Cell, whole: Sequence[Group], taken: Sequence[Group]) -> list[Group]:
    """The groups of a cell as the released code scores them: of pairs, each table with the images of all.

    Other tasks, which that code does not have, are as they are.

    Args:
        cell: Task, split and setting.
        whole: The groups as the data has them.
        taken: Those with images to score.

    Raises:
        InputError: Single objects are not of the paper's classes, by whose order images are labelled.
    """
    if cell.task == "single":
        return _single(cell, whole, taken)
    if cell.task not in CROSSED:
        return list(taken)
    images = tuple(file for group in taken for file in group.files)
    kinds = (tuple(OTHER if kind == ALSO_TRUE else kind for kind in group.kinds) for group in whole)
    return [replace(group, files=images, kinds=own) for group, own in zip(whole, kinds, strict=True)]


def crossed_ids(ids: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """A name for each image of each table."""
    return [f"{one} | {group.folder.name}" for one, group in zip(ids, groups, strict=True)]


def _single(cell: Cell, whole: Sequence[Group], taken: Sequence[Group]) -> list[Group]:
    """The groups with the labels of the released list."""
    folders, labels = ([_CLASSES[k] for k in of[cell.split]] for of in (_FOLDERS, _LABELS))
    odd = sorted({group.name for group in whole} ^ set(folders))
    if odd:
        raise InputError(f"{whole[0].folder.parent}: the released scoring labels folders by their order and expects "
                         f"the paper's {len(folders)} classes; {odd[0]!r:.80} is missing or is another")  # fmt: skip
    label_of = dict(zip(folders, labels, strict=True))
    made = []
    for group in taken:
        names = [" ".join(name.replace("_", " ").casefold().split()) for name in group.names]
        truth = names.index(label_of[group.name])
        made.append(replace(group, truth=truth, kinds=kinds_of("single", group.names, truth)))
    return made
