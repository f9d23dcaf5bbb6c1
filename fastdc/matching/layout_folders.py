"""Where things are in a folder of the compositional evaluation: tasks, splits, and tables of prompts.

Names are compared without case, spaces, hyphens and underscores, and under the names that they have in the data of
Pearson et al. (arXiv 2508.20783) and in the code that was released with it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdc.support import InputError, did_you_mean, shown

SPLITS = ("train", "id-val", "id-test", "val", "test")
"""Splits: seen classes to train on, to choose with and to test on; unseen classes to choose with and to test on."""

EVALUATED = SPLITS[1:]
"""The splits of the paper's tables."""

_BASES = tuple(base + end for base in ("train", "val", "test") for end in ("", "_gen"))  # of tables

SETTINGS = ("zsl", "gzsl")
"""Candidates of the image's own side, or of seen and unseen classes alike (generalised)."""

_TASKS = {"single": "singleobject", "two_object": "twoobject", "relational": "relational"}
_NAMED = "single_object, two_object or relational"
_SPLIT_NAMES = {
    "train": ("train",),
    "id-val": ("idval",),
    "id-test": ("idtest",),
    "val": ("oodval", "val"),
    "test": ("oodtest", "test"),
}
_TABLES = ("singleprompts.csv", "clevrpromptscone.csv")  # of single objects

_PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".dcm"))

_SETS = (
    re.compile(r"(?P<stem>[a-z]+?)(?P<base>train|val|test)(?P<gen>gen)?"),
    re.compile(r"(?P<base>train|val|test)(?P<stem>[a-z]+?)prompts(?P<gen>gen)?"),
    re.compile(r"beth(?P<stem>[a-z]+?)prompts(?P<base>val)?(?P<gen>gen)?"),
    re.compile(r"(?P<gen>gen)(?P<stem>[a-z]+?)prompts(?P<base>)"),
)
"""Names of the folders with a split's tables: rel_val_gen, val_rel_prompts_gen, beth_rel_prompts_val, gen_rel_prompts
(the last two without a split in their names are of val)."""


def plain_name(name: str) -> str:
    """A name as it is compared."""
    return re.sub(r"[-_\s]", "", name).casefold()


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones.

    Raises:
        InputError: The folder cannot be read.
    """
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None


def pictures_in(folder: Path) -> list[Path]:
    """The PNG files in a folder, by name.

    Raises:
        InputError: The folder cannot be read.
    """
    try:
        found = [one for one in folder.iterdir() if one.suffix.lower() == ".png" and not one.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None
    return sorted(found)


def others_in(folder: Path, read: Iterable[Path]) -> list[Path]:
    """The image files anywhere in a folder that are not among those that are read, by name."""
    known = set(read)
    found = (one for one in folder.rglob("*") if one.suffix.lower() in _PICTURES and one not in known)
    return sorted(one for one in found if not any(part.startswith(".") for part in one.relative_to(folder).parts))


@dataclass(frozen=True)
class Places:
    """The folders of a data set.

    Attributes:
        root: The folder that was given.
        tasks: The folder of each task.
        given: Folders and files of prompts that take the place of those found: by "TASK", the folder of all tables, or
            the one table of single objects; by "TASK/BASE" and "TASK/BASE_gen", with BASE train, val or test, the
            folder of one split's tables.
    """

    root: Path
    tasks: Mapping[str, Path]
    given: Mapping[str, Path]

    @classmethod
    def of(cls, root: Path, given: Mapping[str, Path]) -> "Places":
        """Looks for tasks in a folder, or in the one folder in it that has some.

        Raises:
            InputError: There are none.
        """
        if not root.is_dir():
            raise InputError(f"{root} is not a folder: expected one with folders such as {_NAMED}")
        tasks = _tasks_in(root)
        if not tasks:
            inner = [found for found in map(_tasks_in, folders_in(root)) if found]
            if len(inner) != 1:
                raise InputError(f"{root} has no tasks: expected folders such as {_NAMED}, with splits such as ID_val")
            tasks = inner[0]
        for one in given:
            task, slash, name = one.partition("/")
            if task not in tasks:
                raise InputError(f"prompts for {shown(one)}: {root} has the tasks {', '.join(tasks)}")
            if slash and task == "single":
                raise InputError(f"prompts for {shown(one)}: expected single, whose prompts are one table")
            if slash and name not in _BASES:
                raise InputError(f"prompts for {shown(one)}: expected {task}/ and one of {', '.join(_BASES)}")
        return cls(root, tasks, given)

    def splits(self, task: str) -> dict[str, Path]:
        """The folder of each split of a task, in the order of :data:`SPLITS`.

        Raises:
            InputError: Two folders have names of one split.
        """
        found: dict[str, Path] = {}
        for folder in folders_in(self.tasks[task]):
            split = split_of(folder.name)
            if split in found:
                raise InputError(f"{found[split]} and {folder} are both the split {split}: expected one of them")
            if split is not None:
                found[split] = folder
        return {split: found[split] for split in SPLITS if split in found}

    def unknown(self, tasks: Sequence[str] = ()) -> list[Path]:
        """The folders with pictures where splits are expected, whose names are of none.

        Args:
            tasks: Where to look; none: in all tasks, and for folders of the paper's tasks that have no split.
        """
        homes = [self.tasks[task] for task in tasks or self.tasks]
        found = [one for home in homes for one in folders_in(home) if split_of(one.name) is None]
        for one in () if tasks else folders_in(homes[0].parent):
            if task_of(one.name) in _TASKS and one not in homes:
                found.append(one)
        return [one for one in found if next(one.rglob("*.png"), None) is not None]

    def table(self, task: str) -> Path:
        """The one table of the prompts of single objects.

        Raises:
            InputError: There is none.
        """
        if task in self.given:
            return self.given[task]
        for place in self._around(self.tasks[task]):
            for path in sorted(place.glob("*.csv")):
                if plain_name(path.name) in _TABLES:
                    return path
        raise InputError(f"{self.root} has no single_prompts.csv: expected it there, beside or in {self.tasks[task]}")

    def tables(self, task: str, split: str, *, generalised: bool) -> Path:
        """The folder with a table for each group of a split.

        Raises:
            InputError: There is none, or two folders have its names.
        """
        base = "train" if split in ("train", "id-val", "id-test") else split
        name = f"{base}_gen" if generalised else base
        if f"{task}/{name}" in self.given:
            return self.given[f"{task}/{name}"]
        parents = [self.given[task]] if task in self.given else self._prompt_folders(task)
        found = [
            folder
            for parent in parents
            for folder in folders_in(parent)
            if _set_of(folder.name, task) == (base, generalised)
        ]
        if len(found) > 1:
            raise InputError(f"{found[0]} and {found[1]} both have the prompts of {task}, {name}: expected one of them")
        if not found:
            setting = "GZSL" if generalised else "ZSL"
            where = parents[0] if parents else self.root / f"{task}_prompts"
            wanted = where / f"{_stem(task)}_{name}"
            raise InputError(f"no prompts of {task} {split} {setting}: expected a table per group in a folder {wanted}")
        return found[0]

    def _prompt_folders(self, task: str) -> list[Path]:
        """The folders whose names begin as the task's and end in "prompts"."""
        found = []
        for place in self._around(self.tasks[task]):
            for folder in folders_in(place):
                stem = plain_name(folder.name).removesuffix("prompts")
                if stem != plain_name(folder.name) and _is_stem(stem, task):
                    found.append(folder)
        return found

    def _around(self, folder: Path) -> list[Path]:
        """Where prompts of a task may be."""
        places = [self.root, folder.parent, folder]
        places += [place / "prompts" for place in places]
        return [place for place in dict.fromkeys(places) if place.is_dir()]


def _tasks_in(root: Path) -> dict[str, Path]:
    """The folders with splits, by task: those of the paper first."""
    found: dict[str, Path] = {}
    for folder in folders_in(root):
        if any(split_of(one.name) for one in folders_in(folder)):
            task = task_of(folder.name)
            if task in found:
                raise InputError(f"{found[task]} and {folder} are both the task {task}: expected one of them")
            found[task] = folder
    return {task: found[task] for task in (*_TASKS, *sorted(set(found) - set(_TASKS))) if task in found}


def task_of(name: str) -> str:
    """The task that a folder's name says."""
    plain = plain_name(name)
    known = next((task for task, full in _TASKS.items() if _is_stem(plain.removesuffix("s"), task, full)), None)
    return known or re.sub(r"[-\s]+", "_", name.strip()).casefold()


def split_of(name: str) -> str | None:
    """The split that a folder's name says, or None."""
    return next((split for split, names in _SPLIT_NAMES.items() if plain_name(name) in names), None)


def _set_of(name: str, task: str) -> tuple[str, bool] | None:
    """Which split's prompts a folder has, and whether generalised; None if they are not the task's."""
    for pattern in _SETS:
        found = pattern.fullmatch(plain_name(name))
        if found is not None and _is_stem(found["stem"], task):
            return found["base"] or "val", found["gen"] is not None
    return None


def _is_stem(stem: str, task: str, full: str = "") -> bool:
    """Whether a task's name begins with a word, such as twoobj or count."""
    return len(stem) >= 3 and (full or plain_name(_TASKS.get(task, task))).startswith(stem)


def _stem(task: str) -> str:
    return {"two_object": "two_obj", "relational": "rel"}.get(task, task)


def asked_of(what: str, asked: tuple[str, ...], known: tuple[str, ...], where: Path) -> tuple[str, ...]:
    """The tasks or splits to read.

    Args:
        what: "task" or "split".
        asked: Those that are wanted; none: all.
        known: Those that there are.
        where: The folder, for messages.

    Raises:
        InputError: One is not there.
    """
    wrong = next((one for one in asked if one not in known), None)
    if wrong is not None:
        has = f"has the {what}s {', '.join(known)}" if known else f"has no {what}"
        raise InputError(f"{where} {has}, got {what} {shown(wrong)}{did_you_mean(wrong, known)}")
    return tuple(one for one in known if one in asked) if asked else known
