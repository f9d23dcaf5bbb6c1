"""Manifests made of tables that other people publish: which rows count, their classes and their splits.

    chexpert   CheXpert-small (Irvin et al., arXiv 1901.07031), as Favero et al. (arXiv 2502.03687) select it: the first
               frontal view of each patient's first study; blank is 0; rows that are uncertain (-1) about the finding or
               about "No Finding" are dropped; of the others those with exactly one of the two; as many of each
    isic       ISIC 2020: image_name and target (1: melanoma); the file is NAME.jpg, often in a folder images
    table      any other table with a column for the image files and one for the labels

The rows are shuffled and split by patient, so that no patient is in two splits, and neither is a file that has several
rows. Favero et al. drew their rows with
another generator: these are not their 16,324 + 2,040 + 2,040 images. Tables of their own splits are taken as they are,
each as one split.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastdc.data.budget import Budget
from fastdc.data.inputs import existing
from fastdc.data.manifests import LABEL_NAMES, PATH_NAMES, SUFFIXES, layout_of, plain_column, table_rows
from fastdc.data.notes import show
from fastdc.support import InputError, Int64, Mask, checks, did_you_mean, shown, write_whole

LAYOUTS = ("auto", "chexpert", "isic", "table")
"""Kinds of tables; "auto": by the names of their columns."""

SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.1, 0.1)
FINDING, NO_FINDING = "Pleural Effusion", "No Finding"
_FIRST_VIEW = re.compile(r"(^|[/\\])study1[/\\]view1_frontal\.[A-Za-z]+$")
_PATIENT = re.compile(r"(?:^|[/\\])(patient\d+)[/\\]")
_IMAGE_FOLDERS = ("images", "", "train", "jpeg/train")
_SUFFIXES = (".jpg", ".jpeg", ".png")
_TARGETS = {"0": "benign", "1": "melanoma", "0.0": "benign", "1.0": "melanoma"}
_PATIENT_NAMES = ("patient", "patient_id", "patientid")


@dataclass(frozen=True)
class MadeManifest:
    """A manifest that was made of a table.

    Attributes:
        path: The manifest.
        layout: The table's layout.
        counts: Number of images by split and by class.
        notes: What was left out and why, one line each.
    """

    path: Path
    layout: str
    counts: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]


@dataclass(eq=False)
class _Table:
    """The rows of a table, n of them, and what has been found of each."""

    name: str
    lines: list[int]
    columns: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    states_groups: bool = True  # whether the manifest's column patient is for the groups

    def column(self, wanted: str, why: str) -> list[str]:
        """The cells of a column, by its name in any case.

        Raises:
            InputError: There is no such column.
        """
        return [cell.strip() for cell in self.columns[self.spelled(wanted, why)]]

    def spelled(self, wanted: str, why: str) -> str:
        """The name of a column as the table spells it.

        Raises:
            InputError: There is no such column.
        """
        for name in self.columns:
            if plain_column(name) == plain_column(wanted):
                return name
        has = ", ".join(show(name)[:40] for name in list(self.columns)[:20])
        raise InputError(
            f"{self.name}: has no column {shown(wanted)}, {why}; its columns are {has}"
            f"{did_you_mean(wanted, list(self.columns))}"
        )

    def has(self, wanted: str) -> bool:
        """Whether there is a column of this name."""
        return plain_column(wanted) in map(plain_column, self.columns)

    def keep(self, rows: Mask, why: str) -> None:
        """Keeps some of the rows, and notes why the others are left out."""
        if rows.all():
            return
        self.notes.append(f"{int((~rows).sum())} rows left out: {why}")
        kept = np.flatnonzero(rows).tolist()
        self.lines = [self.lines[k] for k in kept]
        self.columns = {name: [cells[k] for k in kept] for name, cells in self.columns.items()}
        for name in ("files", "labels", "groups"):
            values = getattr(self, name)
            setattr(self, name, [values[k] for k in kept] if values else values)
        if not kept:
            raise InputError(f"{self.name}: no row is left: {'; '.join(self.notes)}")


def make_manifest(
    table: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layout: str = "auto",
    label_column: str | None = None,
    against: str = NO_FINDING,
    root: str | os.PathLike[str] | None = None,
    group_column: str | None = None,
    balance: bool | None = None,
    fractions: Sequence[float] = FRACTIONS,
    split: str | None = None,
    seed: int = 42,
) -> MadeManifest:
    """Writes a manifest of a published table: path, label, split, patient, and all other columns.

    Args:
        table: The table: .csv, .tsv, .jsonl or .parquet.
        out: The manifest to write, a .csv; an existing one is replaced.
        layout: One of :data:`LAYOUTS`.
        label_column: Column of the labels; None: "Pleural Effusion" of CheXpert, "target" of ISIC, or a usual name.
        against: Column of CheXpert that marks the other class.
        root: Folder of the image files; None: that of the table.
        group_column: Column that says what belongs together, such as the patient; a row without a value belongs to no
            other. None: the patient, where known.
        balance: Whether as many rows of each class are kept; None: of CheXpert.
        fractions: Shares of the splits train, val and test, which sum to 1.
        split: Name of the one split that all rows are; None: they are split. All rows of the layout are then kept, so
            `balance` is not for it.
        seed: Seed of the choice of rows, their order and their splits.

    Example:
        >>> from fastdc.data import make_manifest
        >>> rows = [(folder / f"{k}.png").touch() or f"{k}.png,{k % 2}" for k in range(10)]
        >>> _ = (folder / "table.csv").write_text("\\n".join(["path,grade", *rows]))
        >>> len(make_manifest(folder / "table.csv", folder / "set.csv", label_column="grade").counts)
        3

    Raises:
        InputError: The table is damaged, is not of the layout, or names no image file that exists; an option is out of
            range, or has no effect on the layout; or the manifest cannot be written.
        MissingDependencyError: It is a Parquet file, and pyarrow is not installed.
    """
    checks.one_of("layout", layout, LAYOUTS)
    shares = _checked_fractions(fractions)
    _check_split(split, balance)
    path, target = existing(table), _checked_target(Path(out))
    rows = _read(path)
    found = (layout_of(list(rows.columns)) or "table") if layout == "auto" else layout
    _select(rows, found, label_column, against, path.parent if root is None else Path(root))
    if group_column is not None:
        rows.groups = _known_groups(rows.column(group_column, "which --group-column names"))
        rows.states_groups = not rows.has("patient")
    rng = np.random.default_rng(checks.seed(seed))
    if split is None and (found == "chexpert" if balance is None else balance):
        _balance(rows, rng)
    _note_one_class(rows)
    splits = _split(rows, shares, rng) if split is None else [split] * len(rows.lines)
    _write(target, rows, splits)
    return MadeManifest(target, found, _counts(rows, splits), tuple(rows.notes))


def _note_one_class(rows: _Table) -> None:
    if len(set(rows.labels)) == 1:
        rows.notes.append(f"all rows are of one class, {show(rows.labels[0])}: training needs two")


def _check_split(split: object, balance: bool | None) -> None:
    if split is not None and (not isinstance(split, str) or not split.strip() or balance):
        raise InputError(f"split must be a name, without balance, got {shown(split)}{' and balance' * bool(balance)}")


def _counts(rows: _Table, splits: Sequence[str]) -> dict[str, Counter[str]]:
    """Number of images by split and by class."""
    pairs = list(zip(splits, rows.labels, strict=True))
    names = [name for name in dict.fromkeys((*SPLITS, *splits)) if name in splits]
    return {name: Counter(label for of, label in pairs if of == name) for name in names}


def _checked_target(target: Path) -> Path:
    if target.suffix.lower() != ".csv":
        raise InputError(f"the manifest needs a name that ends in .csv, got {shown(str(target))}")
    return target


def _checked_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    shares = tuple(fractions) if isinstance(fractions, Sequence) else ()
    finite = len(shares) == len(SPLITS) and all(map(checks.is_finite, shares))
    if not finite or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(
            f"fractions must be 3 shares from 0 that sum to 1, of train, val and test, got {shown(fractions)}"
        )
    return tuple(map(float, shares))


def _known_groups(cells: Sequence[str]) -> list[str]:
    """Groups of rows; a row without a value is alone."""
    return [cell or f"row {k}" for k, cell in enumerate(cells)]


def _read(path: Path) -> _Table:
    if path.is_dir():
        raise InputError(f"{show(path)}: is a folder: expected a table ({', '.join(SUFFIXES)})")
    rows = table_rows(path, Budget(None))
    header = next(rows, None)
    if header is None:
        raise InputError(f"{show(path)}: is empty: expected a header")
    lines, cells = [], []
    for line, values in rows:
        lines.append(line)
        cells.append(values)
    if not lines:
        raise InputError(f"{show(path)}: has a header and no rows: expected one for each image")
    plain = [plain_column(name) for name in header[1]]
    if twice := next((name for k, name in enumerate(plain) if name in plain[:k]), None):
        raise InputError(f"{show(path)}: has two columns {show(twice)!r:.60}, in any case: expected different names")
    columns = [list(of) for of in zip(*cells, strict=True)]
    return _Table(show(path), lines, dict(zip(header[1], columns, strict=True)))


def _select(rows: _Table, layout: str, column: str | None, against: str, root: Path) -> None:
    """Finds files, labels and groups of the rows that count, and keeps these."""
    if against != NO_FINDING and layout != "chexpert":
        raise InputError(f"against is for chexpert tables, and {rows.name} is of layout {layout}: expected none")
    if layout == "chexpert":
        _chexpert(rows, column or FINDING, against, root)
    elif layout == "isic":
        _isic(rows, column or "target", root)
    else:
        _plain(rows, column, root)


def _chexpert(rows: _Table, finding: str, against: str, root: Path) -> None:
    """The selection of Favero et al., for any finding."""
    why = "which a CheXpert table has"
    finding, against = (rows.spelled(name, why).strip() for name in (finding, against))
    paths = rows.column("Path", why)
    first = np.array([bool(_FIRST_VIEW.search(path)) for path in paths])
    rows.keep(first, "not the first frontal view of a first study")
    values = [_marks(rows, name, rows.column(name, why)) for name in (finding, against)]
    uncertain = (values[0] == -1) | (values[1] == -1)
    rows.keep(~uncertain, f"uncertain about {finding} or {against}")
    own, other = (one[~uncertain] for one in values)
    rows.keep(own + other == 1, f"both of {finding} and {against}, or neither")
    rows.labels = [finding if mark else against for mark in own[own + other == 1]]
    rows.notes += [f"no row of {name} is left" for name in (finding, against) if name not in rows.labels]
    paths = rows.column("Path", why)
    rows.groups = [found.group(1) if (found := _PATIENT.search(path)) else path for path in paths]
    rows.files = _placed(rows, [path.replace("\\", "/") for path in paths], root, (str, _without_first))


def _marks(rows: _Table, name: str, cells: Sequence[str]) -> Int64:
    """The marks -1, 0 and 1 of a finding; blank is 0.

    Raises:
        InputError: A cell is something else.
    """
    known = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
    for line, cell in zip(rows.lines, cells, strict=True):
        if cell not in known:
            raise InputError(
                f"{rows.name}: line {line} has {show(cell)!r:.40} for {name}: expected 1, 0, -1 or nothing"
            )
    return np.array([known[cell] for cell in cells], np.int64)


def _isic(rows: _Table, column: str, root: Path) -> None:
    why = "which an ISIC table has"
    names, targets = rows.column("image_name", why), rows.column(column, why)
    rows.labels = [_TARGETS.get(target, target) if plain_column(column) == "target" else target for target in targets]
    rows.files = _placed(rows, names, root, tuple(_in_folder(f, s) for f in _IMAGE_FOLDERS for s in _SUFFIXES))
    rows.groups = _known_groups(rows.column("patient_id", why)) if rows.has("patient_id") else []
    rows.keep(np.array([bool(label) for label in rows.labels]), f"without a {column}")


def _plain(rows: _Table, column: str | None, root: Path) -> None:
    def first(known: Sequence[str], what: str) -> str:
        for name in known:
            if rows.has(name):
                return name
        raise InputError(
            f"{rows.name}: has no column for {what}, such as {', '.join(known[:3])}; --label-column names one"
        )

    rows.labels = rows.column(column or first(LABEL_NAMES, "the labels"), "which --label-column names")
    files = rows.column(first(PATH_NAMES, "the image files"), "")
    rows.files = _placed(rows, files, root, (str,))
    patient = next((name for name in _PATIENT_NAMES if rows.has(name)), None)
    rows.groups = [] if patient is None else _known_groups(rows.column(patient, ""))
    rows.keep(np.array([bool(label) for label in rows.labels]), "without a label")


def _without_first(path: str) -> str:
    return path.partition("/")[2]


def _in_folder(folder: str, suffix: str) -> Callable[[str], str]:
    return lambda name: f"{folder}/{name}{suffix}" if folder else f"{name}{suffix}"


def _placed(rows: _Table, names: Sequence[str], root: Path, ways: Sequence[Callable[[str], str]]) -> list[str]:
    """The files of the names, in the first way in which one of the first names is a file.

    Raises:
        InputError: There is none.
    """
    for name in names[:100]:
        for way in ways:
            if name and _is_file(root / way(name)):
                return [str(root / way(one)) for one in names]
    tried = " or ".join(str(root / way(names[0])) for way in ways[:2])
    raise InputError(
        f"{rows.name}: the image files were not found, such as {show(tried)}: --root FOLDER says where they are"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name that is too long, or has a NUL byte
        return False


def _balance(rows: _Table, rng: np.random.Generator) -> None:
    """Keeps as many rows of each class, drawn at random."""
    labels = np.array(rows.labels, object)
    names = sorted(set(rows.labels))
    least = min(rows.labels.count(name) for name in names)
    kept = np.zeros(len(labels), np.bool_)
    for name in names:
        kept[rng.permutation(np.flatnonzero(labels == name))[:least]] = True
    rows.keep(kept, f"more than {least} of a class")


def _split(rows: _Table, shares: Sequence[float], rng: np.random.Generator) -> list[str]:
    """A split for each row: groups in random order, cut where the shares of the rows are reached."""
    if rows.has("split"):
        rows.notes.append("its column split is replaced: --split NAME takes all rows as one split")
    groups = _joined(rows.groups or rows.files, rows.files)
    sizes = Counter(groups)
    names = sorted(sizes)
    order = [names[k] for k in rng.permutation(len(names))]
    ends = np.cumsum([sizes[name] for name in order]) - np.array([sizes[name] for name in order]) / 2
    cuts = np.cumsum(shares)[:-1] * len(rows.lines)
    places = np.searchsorted(cuts, ends, side="left").tolist()
    of = {name: SPLITS[place] for name, place in zip(order, places, strict=True)}
    return [of[group] for group in groups]


def _joined(groups: Sequence[str], files: Sequence[str]) -> list[str]:
    """The groups, those that share a file as one."""
    of: dict[str, str] = {}

    def first(group: str) -> str:
        while group in of:
            group = of[group]
        return group

    seen: dict[str, str] = {}
    for group, file in zip(groups, files, strict=True):
        one, other = first(group), first(seen.setdefault(file, group))
        if one != other:
            of[one] = other
    return [first(group) for group in groups]


def _write(target: Path, rows: _Table, splits: Sequence[str]) -> None:
    """Writes the manifest, sorted by split, then as the table is; paths are relative to its folder."""
    patient = ["patient"] if rows.groups and rows.states_groups else []
    ours = ("path", "label", "split", *patient)
    others = [name for name in rows.columns if plain_column(name) not in ours]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split", *patient, *others])
    folder = target.resolve().parent
    rank = {name: place for place, name in enumerate(SPLITS)}
    for k in sorted(range(len(splits)), key=lambda k: rank.get(splits[k], len(rank))):
        try:
            path = os.path.relpath(Path(rows.files[k]).resolve(), folder)
        except (OSError, ValueError) as error:  # such as a NUL byte
            raise InputError(f"{rows.name}: line {rows.lines[k]} names no file: {shown(str(error))}") from None
        group = [rows.groups[k]] if patient else []
        writer.writerow([path, rows.labels[k], splits[k], *group, *(rows.columns[name][k] for name in others)])
    try:
        write_whole(target, text.getvalue().encode("utf-8"))
    except UnicodeEncodeError:
        raise InputError(f"{rows.name}: has a character that is no text: a surrogate") from None
    except OSError as error:
        raise InputError(f"{show(target)}: cannot be written: {error.strerror or error}") from error
