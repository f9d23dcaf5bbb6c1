"""Tables of images and texts: CSV, TSV, JSON lines or Parquet.

    image, prompt[, truth][, kind]                     a row per candidate of an image; truth: 1 for the right text
    image_0, image_1, caption_0, caption_1[, id][, tag]   a row per pair; caption_0 describes image_0

The second form is that of Winoground's examples.jsonl (Thrush et al., arXiv 2204.03162), whose images are named without
".png" and lie in a folder ``images`` beside it. Images are named relative to the table's folder. Names of columns may
have capitals; "text" and "caption" are "prompt", and the names of columns of images in manifests are "image".
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fastdc.data import table_rows
from fastdc.matching.pairs import pair_trials
from fastdc.matching.trials import RIGHT, Trials
from fastdc.support import InputError, Mask, did_you_mean, shown

_IMAGES = ("image", "path", "file_name", "filename", "file", "image_path", "image_file", "file_path", "filepath", "img")
_PROMPTS = ("prompt", "text", "caption")
_PAIR = ("image_0", "image_1", "caption_0", "caption_1")
_OPTIONAL, _PAIR_OPTIONAL = ("truth", "kind"), ("id", "tag")
_MEANT = dict.fromkeys(("correct", "is_correct", "right", "is_right", "true", "is_true"), "truth")
"""Columns that others have in place of "truth"."""
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no", "")
_MOST_ROWS = 4_000_000

_Rows: TypeAlias = list[tuple[int, list[str]]]


@dataclass(eq=False)
class _Asked:
    """One image's rows.

    Attributes:
        kinds: The kind of each text, in the order of the rows.
        right: The places of the right ones.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    right: list[int] = field(default_factory=list)


def pairs_table(path: str | os.PathLike[str]) -> bool:
    """Whether a table is one of pairs of images and captions.

    Args:
        path: The table.

    Example:
        >>> from fastdc.matching import pairs_table
        >>> (folder / "pairs.csv").write_text("image_0,image_1,caption_0,caption_1\\n") > 0
        True
        >>> pairs_table(folder / "pairs.csv")
        True

    Raises:
        InputError: The table cannot be read.
    """
    _, header = next(table_rows(Path(path)), (0, []))
    return set(_PAIR) <= {name.strip().lower() for name in header}


def unread_columns(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The columns of a table of trials, rankings or pairs that nothing reads.

    Args:
        path: The table.

    Example:
        >>> from fastdc.matching import unread_columns
        >>> (folder / "more.csv").write_text("image,prompt,truth,split\\n") > 0
        True
        >>> unread_columns(folder / "more.csv")
        ('split',)

    Raises:
        InputError: The table cannot be read.
    """
    _, header = next(table_rows(Path(path)), (0, []))
    names = [name.strip().lower() for name in header]
    if set(_PAIR) <= set(names):
        read = {*_PAIR, *_PAIR_OPTIONAL}
    else:
        found = [next((name for name in some if name in names), "") for some in (_IMAGES, _PROMPTS)]
        read = {*found, *_OPTIONAL}
    return tuple(given for given, name in zip(header, names, strict=True) if name not in read)


def read_trials(path: str | os.PathLike[str]) -> Trials:
    """The trials of a table with a row per image and candidate text.

    Args:
        path: The table, with the columns image and prompt, and perhaps truth and kind.

    Returns:
        Images in the order in which they first appear, each with its texts in the order of its rows.

    Example:
        >>> from fastdc.matching import read_trials
        >>> (folder / "asked.csv").write_text("image,prompt,truth\\na.png,a cat,0\\na.png,a dog,1\\n") > 0
        True
        >>> _ = (folder / "a.png").write_bytes(b"")
        >>> read_trials(folder / "asked.csv").truth
        array([1])

    Raises:
        InputError: The table cannot be read, a column is missing, an image file is missing, or a row does not fit; the
            message names its line.
    """
    path = Path(path)
    asked, columns = _asked(path)
    return Trials.of(
        list(asked),
        [list(one.kinds) for one in asked.values()],
        [one.right[0] if one.right else -1 for one in asked.values()],
        kinds=[list(one.kinds.values()) for one in asked.values()] if "kind" in columns else (),
    )


def read_rankings(path: str | os.PathLike[str]) -> tuple[list[str], list[str], Mask]:
    """The images of a table, its texts, and which text describes which image.

    Args:
        path: The table, with the columns image and prompt. A row says that the prompt describes the image, unless a
            column truth says otherwise.

    Returns:
        n paths of images, the P texts that describe one of them, and bool (n, P).

    Example:
        >>> from fastdc.matching import read_rankings
        >>> (folder / "known.csv").write_text("image,prompt\\na.png,a cat\\nb.png,a dog\\n") > 0
        True
        >>> _ = [(folder / name).write_bytes(b"") for name in ("a.png", "b.png")]
        >>> read_rankings(folder / "known.csv")[2].tolist()
        [[True, False], [False, True]]

    Raises:
        InputError: As :func:`read_trials`.
    """
    path = Path(path)
    asked, columns = _asked(path, several=True)
    described: list[list[str]] = []
    for one in asked.values():
        own = list(one.kinds)
        described.append([own[at] for at in one.right] if "truth" in columns else own)
    some = set().union(*described)
    texts = dict.fromkeys(text for one in asked.values() for text in one.kinds if text in some)
    places = {text: at for at, text in enumerate(texts)}
    if not places:
        raise InputError(f"{path}: expected a right prompt of an image at least, got none")
    right = np.zeros((len(asked), len(places)), np.bool_)
    for row, own in enumerate(described):
        right[row, [places[text] for text in own]] = True
    return list(asked), list(places), right


def read_pairs(path: str | os.PathLike[str]) -> Trials:
    """The trials of a table of pairs, as :func:`fastdc.matching.pair_trials` makes them.

    Args:
        path: The table, with the columns image_0, image_1, caption_0 and caption_1, and perhaps id and tag.

    Example:
        >>> from fastdc.matching import read_pairs
        >>> rows = "image_0,image_1,caption_0,caption_1\\na.png,b.png,a cat,a dog\\n"
        >>> _ = (folder / "pairs.csv").write_text(rows), [(folder / f"{n}.png").write_bytes(b"") for n in "ab"]
        >>> read_pairs(folder / "pairs.csv").texts
        ('a cat', 'a dog')

    Raises:
        InputError: As :func:`read_trials`.
    """
    path = Path(path)
    header, rows = _table(path)
    _check_meant(path, header, _PAIR_OPTIONAL)
    places = [_place(path, header, (name,)) for name in _PAIR]
    ids, tags = (header.index(name) if name in header else None for name in ("id", "tag"))
    images, captions = [], []
    for line, cells in rows:
        first, second = (cells[place].strip() for place in places[2:])
        if not first or not second or first == second:
            raise InputError(f"{path}, line {line}: expected two different captions, got {shown([first, second])}")
        captions.append((first, second))
        images += [_image(path, line, cells[place]) for place in places[:2]]
    return pair_trials(
        images,
        captions,
        ids=None if ids is None else [cells[ids] for _, cells in rows],
        tags=() if tags is None else [cells[tags] or "none" for _, cells in rows],
    )


def _asked(path: Path, *, several: bool = False) -> tuple[dict[str, _Asked], list[str]]:
    """The rows of each image by its path, and the columns; of which `several` may be right or one."""
    header, rows = _table(path)
    image, prompt = _place(path, header, _IMAGES), _place(path, header, _PROMPTS)
    _check_meant(path, header, _OPTIONAL)
    truth, kind = (header.index(name) if name in header else None for name in ("truth", "kind"))
    asked: dict[str, _Asked] = {}
    files: dict[str, str] = {}
    for line, cells in rows:
        name, text = cells[image].strip(), cells[prompt].strip()
        if not text:
            raise InputError(f"{path}, line {line}: the prompt is empty")
        if name not in files:
            files[name] = _image(path, line, name)
        one = asked.setdefault(files[name], _Asked())
        if text in one.kinds:
            raise InputError(f"{path}, line {line}: {shown(name, 60)} has the prompt {shown(text, 60)} twice")
        if truth is not None and _is_right(path, line, cells[truth]):
            if one.right and not several:
                raise InputError(f"{path}, line {line}: {shown(name, 60)} has two right prompts, expected one")
            one.right.append(len(one.kinds))
        right = bool(one.right) and one.right[-1] == len(one.kinds)
        given = "" if kind is None else cells[kind].strip()
        if given == RIGHT and not right:
            raise InputError(f"{path}, line {line}: expected a kind of wrong prompt, as truth is not 1, got {RIGHT!r}")
        one.kinds[text] = RIGHT if right else given or "wrong"
    return asked, header


def _table(path: Path) -> tuple[list[str], _Rows]:
    """The names of the columns in small letters, and the rows with their lines."""
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".parquet"):
        raise InputError(f"{path}: expected a table: .csv, .tsv, .jsonl or .parquet")
    if not path.is_file():
        raise InputError(f"{path} is not a file: expected a table of images and texts")
    rows = table_rows(path)
    _, header = next(rows, (0, []))
    found: _Rows = []
    for line, cells in rows:
        found.append((line, cells))
        if len(found) > _MOST_ROWS:
            raise InputError(f"{path}: at most {_MOST_ROWS:,} rows can be used")
    if not found:
        raise InputError(f"{path} holds no rows below its header")
    return [name.strip().lower() for name in header], found


def _place(path: Path, header: list[str], names: Sequence[str]) -> int:
    """The column of the first of these names that there is."""
    for name in names:
        if name in header:
            return header.index(name)
    raise InputError(f"{path}: expected a column {names[0]}, got the columns {', '.join(header)!r:.200}")


def _check_meant(path: Path, header: list[str], optional: tuple[str, ...]) -> None:
    """Refuses a column that is nearly one that may be missing, and would silently not be read."""
    missing = [name for name in optional if name not in header]
    for name in header:
        known = _MEANT.get(name)
        meant = f"; did you mean {known!r}?" if known in missing else did_you_mean(name, missing)
        if meant and name not in (*_IMAGES, *_PROMPTS, *_PAIR):
            raise InputError(f"{path}: unknown column {shown(name, 60)}{meant}")


def _image(path: Path, line: int, name: str) -> str:
    """The file of an image, whose name may lack ".png", beside the table or in the folder images."""
    given = Path(name.strip())
    for folder in (path.parent, path.parent / "images"):
        for file in (folder / given, folder / f"{given}.png"):
            if os.path.isfile(file):  # False for names that no file can have
                return str(file)
    raise InputError(f"{path}, line {line}: there is no image {shown(name, 80)} in {path.parent}")


def _is_right(path: Path, line: int, cell: str) -> bool:
    word = cell.strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise InputError(f"{path}, line {line}: truth must be 1 or 0, got {shown(cell, 40)}")
    return word in _TRUE
