"""Reads a folder of the compositional evaluation: images with candidate texts, for each task, split and setting.

    single_object/SPLIT/"blue cube"/*.png           single_prompts.csv, a row per class
    two_object/SPLIT/c1_s1_c2_s2/"c1 s1"/*.png      two_object_prompts/two_obj_{train,val,test}[_gen]/c1_s1_c2_s2.csv
    relational/SPLIT/s1_rel_s2/"s1 rel s2"/*.png    rel_prompts/rel_{train,val,test}[_gen]/s1_rel_s2.csv
    TASK/SPLIT/GROUP/NAME/*.png                     TASK_prompts/TASK_{train,val,test}[_gen]/GROUP.csv

This is the layout of Pearson et al. (arXiv 2508.20783); :mod:`fastdc.matching.layout_folders` knows other names of its
folders. In a pair's table the first row is the right text, named as the folder of its images. Both seen splits have the
train tables. Of single objects, the candidates are the classes of the split's own folders, or in the generalised
setting all rows of the table.

No image is opened here; names, tables and folders are all checked before anything else is done.
"""

import csv
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fastdc.bundle import read_prompts_with
from fastdc.matching.cells import Cell, Group
from fastdc.matching.kinds import kinds_of, pair_of
from fastdc.matching.layout_folders import (
    EVALUATED,
    SETTINGS,
    SPLITS,
    Places,
    asked_of,
    folders_in,
    others_in,
    pictures_in,
    split_of,
    task_of,
)
from fastdc.matching.released import CROSSED, crossed_ids, released_groups
from fastdc.matching.trials import RIGHT, Trials
from fastdc.support import InputError, checks, shown

RELEASED = "otmive"
"""The code whose scoring is offered beside the evaluation's own."""

_NAMED = 5  # folders in a warning

Made = TypeVar("Made")


def read_layout(
    root: str | Path,
    *,
    tasks: Sequence[str] = (),
    splits: Sequence[str] = (),
    settings: Sequence[str] = SETTINGS,
    images: int | None = None,
    prompts: Mapping[str, str | Path] | None = None,
    compat: str | None = None,
) -> dict[Cell, Trials]:
    """The images and candidates of every task, split and setting.

    Args:
        root: The folder with the tasks, or with one folder that has them.
        tasks: The tasks to read, by their own names or those of their folders.  Default: all.
        splits: The splits to read, as far as a task has them.  Default: id-val, id-test, val, test, which may be called
            as their folders: ID_val, ID_test, ood_val, ood_test.
        settings: "zsl", "gzsl" or both.
        images: Most images of a split of a task, taken evenly from its groups, the same in both settings.
        prompts: Folders of prompts that have other names: by "TASK" the folder of all tables, or the table of single
            objects; by "TASK/BASE" and "TASK/BASE_gen", with BASE train, val or test, the folder of one split's tables.
        compat: "otmive": what the released code scores a diffusion model on, see :mod:`fastdc.matching.released`.

    Raises:
        InputError: The layout is wrong; the message names the folder, the file or the row.

    Warns:
        UserWarning: There are image files that are not read: of other kinds, in other places, or in folders of tasks
            that have not the name of a split.

    Example:
        >>> from fastdc.matching import read_layout
        >>> read_layout(folder / "none")
        Traceback (most recent call last):
        fastdc.support.exceptions.InputError: ...
    """
    if images is not None:
        checks.whole("images", images, low=1)
    if compat not in (None, RELEASED):
        raise InputError(f"compat must be {RELEASED!r} or None, got {shown(compat)}")
    root = Path(root)
    wanted = asked_of("setting", tuple(one.lower() for one in settings), SETTINGS, root)
    places = Places.of(root, {name: Path(path) for name, path in (prompts or {}).items()})
    cells: dict[Cell, Trials] = {}
    unread: list[Path] = []
    for task, split, folder in _splits(places, tasks, splits):
        groups = _groups(task, folder)
        unread += others_in(folder, (file for group in groups for file in group.files))
        for setting in wanted:
            cell = Cell(task, split, setting == "gzsl")
            whole = _single(places, groups, cell) if task == "single" else _paired(places, groups, cell)
            taken = _taken(whole, images)
            cells[cell] = _trials(root, cell, whole, taken, compat)
    if not cells:
        raise InputError(f"{root} has no split to evaluate: expected {', '.join(EVALUATED)}, or train by name")
    unknown = places.unknown(tuple(dict.fromkeys(cell.task for cell in cells)) if tasks else ())
    for told in _left_out(root, unknown, unread):
        warnings.warn(told, stacklevel=2)
    return cells


def _left_out(root: Path, folders: Sequence[Path], files: Sequence[Path]) -> Iterator[str]:
    """What to say about folders that are no splits, and image files that are not read."""
    if folders:
        named = ", ".join(one.relative_to(root).as_posix() for one in folders[:_NAMED])
        more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
        known = "a split is called train, ID_val, ID_test, ood_val or ood_test"
        yield f"{root}: no split by name, so not read: {named}{more}; {known}"
    if files:
        such = f"{len(files)} image file{'s'[: len(files) != 1]}, such as {files[0].relative_to(root)}"
        yield f"{root}: {such}, not read: expected .png files in the folders of texts"


def _splits(places: Places, tasks: Sequence[str], splits: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """Task, split and folder of the splits to read.

    Raises:
        InputError: A task is not there, or no task has a split.
    """
    wanted = tuple(one if one in places.tasks or task_of(one) not in places.tasks else task_of(one) for one in tasks)
    chosen = asked_of("task", wanted, tuple(places.tasks), places.root)
    there = {task: places.splits(task) for task in chosen}
    known = tuple(split for split in SPLITS if any(split in own for own in there.values()))
    asked = (
        asked_of("split", tuple(split_of(one) or one for one in splits), known, places.root) if splits else EVALUATED
    )
    for task, own in there.items():
        yield from ((task, split, own[split]) for split in own if split in asked)


def _trials(root: Path, cell: Cell, whole: Sequence[Group], taken: Sequence[Group], compat: str | None) -> Trials:
    """The images of a cell, each with its group's candidates."""
    groups = taken if compat is None else released_groups(cell, whole, taken)
    each = [(file, group) for group in groups for file in group.files]
    ids = [file.relative_to(root).as_posix() for file, _ in each]
    return Trials.of(
        [str(file) for file, _ in each],
        [group.texts for _, group in each],
        [group.truth for _, group in each],
        ids=ids if compat is None or cell.task not in CROSSED else crossed_ids(ids, [group for _, group in each]),
        groups=[group.folder.name for _, group in each],
        kinds=[group.kinds for _, group in each],
    )


def _groups(task: str, split: Path) -> list[Group]:
    """The groups of a split, without candidates.

    Raises:
        InputError: There are none, a name has not the form that the task needs, or a folder has no images.
    """
    found = []
    for folder in folders_in(split):
        if task == "single":
            found.append(Group(folder, _words(folder.name), tuple(pictures_in(folder))))
            continue
        inner = folders_in(folder)
        if not inner and pictures_in(folder):  # one folder level, as the paper's relational/train
            group = Group(folder, _words(folder.name), tuple(pictures_in(folder)))
            found.append(replace(group, folder=folder.with_name(folder.name.replace(" ", "_"))))
        elif len(inner) == 1:
            found.append(Group(folder, _words(inner[0].name), tuple(pictures_in(inner[0]))))
        else:
            raise InputError(f"{folder} has {len(inner)} folders: expected one, named as the right text of its images")
    if not found:
        raise InputError(f"{split} has no folders: expected one per {'class' if task == 'single' else 'group'}")
    for one in found:
        if not one.files:
            raise InputError(f"{one.folder}{'' if task == 'single' else f'/{one.name}'} holds no .png file")
        _check_name(task, one)
    return found


def _check_name(task: str, group: Group) -> None:
    """Refuses a folder of a pair whose name does not say what its images show."""
    if task == "two_object":
        said = " ".join(_located(f"{group.folder}", lambda: pair_of(group.folder.name))[0])
    elif task == "relational":
        said = _words(group.folder.name)
    else:
        return
    if said != group.name:
        raise InputError(f"{group.folder}: expected images of {said!r:.80} in it, got the folder {group.name!r:.80}")


def _single(places: Places, groups: Sequence[Group], cell: Cell) -> list[Group]:
    """The groups with the classes of the split, or all classes, as candidates."""
    path = places.table(cell.task)
    texts, names, _ = _table(path)
    at = {_words(name): place for place, name in enumerate(names)}
    wrong = next((group for group in groups if group.name not in at), None)
    if wrong is not None:
        raise InputError(
            f"{wrong.folder}: expected a class of {path}, such as {names[0]!r:.80}, got {wrong.name!r:.80}"
        )
    own = sorted({at[group.name] for group in groups})
    rows = list(range(len(texts))) if cell.generalised else own
    if len(rows) < 2:
        raise InputError(f"{groups[0].folder.parent}: expected folders of at least 2 classes, got one")
    chosen, called = [texts[row] for row in rows], [names[row] for row in rows]
    return [_with(path, cell.task, group, chosen, called, rows.index(at[group.name])) for group in groups]


def _paired(places: Places, groups: Sequence[Group], cell: Cell) -> list[Group]:
    """The groups with the candidates of their own tables."""
    folder = places.tables(cell.task, cell.split, generalised=cell.generalised)
    made = []
    for group in groups:
        path = folder / f"{group.folder.name}.csv"
        if not path.is_file():
            raise InputError(f"{path} is missing: expected the candidates of the images in {group.files[0].parent}")
        texts, names, kinds = _table(path)
        if _words(names[0]) != group.name:
            raise InputError(
                f"{path}, line {_line_of(path, 0)}: expected the right text, {group.name!r:.80}, got {names[0]!r:.80}"
            )
        made.append(_with(path, cell.task, group, texts, names, 0, kinds))
    return made


def _table(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...] | None]:
    """Texts, names and given kinds of a table's rows.

    Raises:
        InputError: The table cannot be read, a text or class is there twice, or it has one row.
    """
    prompts, kinds = read_prompts_with(path, "kind")
    names = tuple(prompts.class_names[k] for k in prompts.class_of)
    for what, several in (("text", prompts.texts), ("class", tuple(map(_words, names)))):
        seen: dict[str, int] = {}
        for row, one in enumerate(several):
            if seen.setdefault(one, row) != row:
                at, first = _line_of(path, row), _line_of(path, seen[one])
                raise InputError(f"{path}, line {at}: expected another {what} than on line {first}, got {one!r:.80}")
    if len(names) < 2:
        raise InputError(f"{path} has one row: expected 2 candidates or more")
    return prompts.texts, names, kinds


def _line_of(path: Path, row: int) -> int:
    """The line of a table, as an editor counts, on which a row below the header ends."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        lines = [reader.line_num for fields in reader if any(field.strip() for field in fields)]
    return lines[row + 1]


def _with(
    path: Path,
    task: str,
    group: Group,
    texts: Sequence[str],
    names: Sequence[str],
    truth: int,
    given: Sequence[str] | None = None,
) -> Group:
    """A group with its candidates and what it means to choose each."""
    if given is not None and task not in ("single", "two_object", "relational"):
        kinds = tuple(RIGHT if at == truth else kind or "wrong" for at, kind in enumerate(given))
        again = next((at for at, kind in enumerate(given) if kind == RIGHT and at != truth), None)
        if again is not None:
            raise InputError(
                f"{path}, line {_line_of(path, again)}: expected the kind of a wrong text, got {shown(RIGHT)}"
            )
    else:
        kinds = _located(f"{path}", lambda: kinds_of(task, names, truth, group.folder.name))
    return replace(group, texts=tuple(texts), names=tuple(names), truth=truth, kinds=kinds)


def _located(where: str, made: Callable[[], Made]) -> Made:
    """What a function makes; its error names the file or folder."""
    try:
        return made()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _taken(groups: Sequence[Group], most: int | None) -> list[Group]:
    """At most so many images, evenly from the groups, by hashes of their names; groups without any are left out."""
    if most is None or sum(len(group.files) for group in groups) <= most:
        return list(groups)
    ranked = []
    for group in groups:
        ordered = sorted(group.files, key=_hash)
        ranked += [(rank, _hash(file), file) for rank, file in enumerate(ordered)]
    chosen = {file for _, _, file in sorted(ranked)[:most]}
    kept = [replace(group, files=tuple(file for file in group.files if file in chosen)) for group in groups]
    return [group for group in kept if group.files]


def _hash(file: Path) -> bytes:
    return hashlib.blake2b("/".join(file.parts[-3:]).encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _words(name: str) -> str:
    """A name as words: lower case, single spaces, no underscores."""
    return " ".join(name.replace("_", " ").casefold().split())
