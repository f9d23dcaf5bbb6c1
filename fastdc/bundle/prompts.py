"""Prompts: the texts that describe the classes of a text-conditional diffusion model.

The network of such a model distinguishes prompts, not classes: condition p is prompt p, and ``class_of[p]`` is the
class that it describes. A class may have several prompts; the decision then pools their errors. Prompts come from a CSV
table in the community's form (columns ``prompt``, ``classname`` and ``classidx``, for example in the code of Li et al.,
arXiv 2303.16203), or from class names and templates such as "a photo of a {}." (Radford et al., arXiv 2103.00020).
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdc.support import InputError, checks, shown

COLUMNS = ("prompt", "classname", "classidx")

_ALIASES = {"prompt": (), "classname": (), "classidx": ("classindex", "classid")}
"""Other names of the columns. Case, spaces, hyphens and underscores do not count: class_name is classname."""

MAX_FILE_BYTES = 64_000_000
MAX_PROMPTS = 1_000_000
# Text encoders read 77 to 512 tokens; a longer text is from the wrong column.
MAX_CHARACTERS = 10_000


@dataclass(frozen=True)
class Prompts:
    """Texts and the classes that they describe.

    Attributes:
        texts: P prompts. None is empty, because the empty prompt is the model's "no class".
        class_of: P class indices in [0, K); every class has at least one prompt.
        class_names: K names; two classes may share a name ("crane" in ImageNet).

    Raises:
        InputError: The lengths differ, a text is empty or too long, or a class has no prompt.
    """

    texts: tuple[str, ...]
    class_of: tuple[int, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.texts:
            raise InputError("prompts must hold at least one text")
        if len(self.class_of) != len(self.texts):
            raise InputError(f"{len(self.texts)} prompts need a class each, got {len(self.class_of)}")
        if len(self.texts) > MAX_PROMPTS:
            raise InputError(f"at most {MAX_PROMPTS:,} prompts can be used, got {len(self.texts):,}")
        for index, text in enumerate(self.texts):
            problem = _problem(text)
            if problem:
                raise InputError(f"prompt {index} {problem}")
        for index, name in enumerate(self.class_names):
            problem = _problem(name)
            if problem:
                raise InputError(f"name {index} of the classes {problem}")
        classes = len(self.class_names)
        wrong = next((k for k in self.class_of if not checks.is_whole(k) or not 0 <= k < classes), None)
        if wrong is not None:
            raise InputError(f"class_of must hold class indices in [0, {classes}), got {wrong}")
        without = sorted(set(range(classes)) - set(self.class_of))
        if without:
            raise InputError(f"class {without[0]} ({self.class_names[without[0]]!r}) has no prompt")

    def __len__(self) -> int:
        return len(self.texts)


def read_prompts(path: str | Path) -> Prompts:
    """Reads the prompts of a CSV file.

    The header names at least the columns ``prompt``, ``classname`` and ``classidx``, in any order; ``class_name``,
    ``class_idx``, ``class_index`` and ``class_id`` are understood, too. Other columns, empty lines and spaces around a
    field are ignored. Class indices run from 0 to K - 1, in any order; an index appears on
    several rows if the class has several prompts, always with the same name.

    Args:
        path: The file, in UTF-8.

    Raises:
        InputError: The file cannot be read, a column is missing, or a row cannot be used; the message names its line.

    Example:
        >>> from fastdc.bundle import read_prompts
        >>> (folder / "pets.csv").write_text("prompt,classname,classidx\\na cat,cat,0\\na dog,dog,1\\n") > 0
        True
        >>> read_prompts(folder / "pets.csv").texts
        ('a cat', 'a dog')
    """
    return read_prompts_with(path)[0]


def read_prompts_with(path: str | Path, column: str = "") -> tuple[Prompts, tuple[str, ...] | None]:
    """Reads prompts like :func:`read_prompts`, and one more column, such as what choosing a prompt would mean.

    Args:
        path: The file, in UTF-8.
        column: Name of the column.

    Returns:
        The prompts, and the column's field of each; None if the file has no such column.

    Raises:
        InputError: As :func:`read_prompts`, or the header names the column twice.

    Example:
        >>> from fastdc.bundle import read_prompts_with
        >>> (folder / "k.csv").write_text("prompt,classname,classidx,kind\\na cat,cat,0,right\\n") > 0
        True
        >>> read_prompts_with(folder / "k.csv", "kind")[1]
        ('right',)
    """
    path = Path(path)
    reader = csv.reader(io.StringIO(_read(path), newline=""), strict=True, skipinitialspace=True)
    texts: list[str] = []
    class_of: list[int] = []
    more: list[str] = []
    named: dict[int, tuple[str, int]] = {}  # class -> its name and the line that gave it
    try:
        header = next(reader, [])
        columns, extra = _columns(path, header), _place_of(path, header, column)
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            line = f"{path}, line {reader.line_num}"
            text, name, k = _fields(line, row, columns)
            first, at = named.setdefault(k, (name, reader.line_num))
            if first != name:
                raise InputError(f"{line}: class {k} is called {name!r:.80}, but {first!r:.80} on line {at}")
            texts.append(text)
            class_of.append(k)
            if extra is not None:
                more.append(row[extra].strip() if extra < len(row) else "")
            if len(texts) > MAX_PROMPTS:
                raise InputError(f"{line}: at most {MAX_PROMPTS:,} prompts can be used")
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a row of CSV: {error}") from None
    if not texts:
        raise InputError(f"{path} holds no prompts below its header")
    for k, found in enumerate(sorted(named)):
        if found != k:
            raise InputError(f"{path}: classidx must run from 0 without gaps, {k} is missing (largest: {max(named)})")
    prompts = Prompts(tuple(texts), tuple(class_of), tuple(named[k][0] for k in range(len(named))))
    return prompts, None if extra is None else tuple(more)


def prompts_of(class_names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)) -> Prompts:
    """Prompts made of class names: every template is filled with every name. The prompts of a class are adjacent.

    Args:
        class_names: Names of the K classes.
        templates: Texts with exactly one ``{}``, which the name replaces, and no other brace.

    Raises:
        InputError: A template does not have exactly one ``{}``, or a name is empty.

    Example:
        >>> from fastdc.bundle import prompts_of
        >>> prompts_of(["cat", "dog"]).texts
        ('a photo of a cat.', 'a photo of a dog.')
    """
    if isinstance(class_names, str) or isinstance(templates, str):
        raise InputError("class_names and templates must be lists of texts, got one text")
    if not templates:
        raise InputError("templates must hold at least one text")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise InputError(
                f"a template must have exactly one {{}} for the name and no other brace, got {shown(template)}"
            )
    return Prompts(
        texts=tuple(template.replace("{}", name) for name in class_names for template in templates),
        class_of=tuple(k for k in range(len(class_names)) for _ in templates),
        class_names=tuple(class_names),
    )


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Reads class names from a text file with one name per line, or from a JSON file with a list of names.

    Args:
        path: The file, in UTF-8.

    Raises:
        InputError: The file cannot be read, holds no names, or holds an empty name, which would shift later names.

    Example:
        >>> from fastdc.bundle import read_class_names
        >>> (folder / "pets.txt").write_text("cat\\ndog\\n") > 0
        True
        >>> read_class_names(folder / "pets.txt")
        ('cat', 'dog')
    """
    path = Path(path)
    content = _read(path)
    if content.lstrip().startswith("["):
        try:
            names = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} starts like a JSON list but is not one: {error}") from None
        wrong = next((name for name in names if not isinstance(name, str)), None)
        if wrong is not None:
            raise InputError(f"{path} must be a list of names, got an entry of type {type(wrong).__name__}")
        where = "entry"
    else:
        names = content.rstrip().splitlines()
        where = "line"
    if not names:
        raise InputError(f"{path} holds no class names")
    found = tuple(name.strip() for name in names)
    for number, name in enumerate(found, 1):
        problem = _problem(name)
        if problem:
            raise InputError(f"{path}, {where} {number}: the class name {problem}")
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise InputError(f"{path} must have at most {MAX_FILE_BYTES // 10**6} MB")
        return content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be text in UTF-8, byte {error.start} is not") from None


def _columns(path: Path, header: list[str]) -> list[int]:
    """Indices of :data:`COLUMNS` in a header. A column of the very name goes before its aliases."""
    names = [name.strip().lower() for name in header]
    plain = ["".join(char for char in name if char not in "_- ") for name in names]
    found: list[int] = []
    for column in COLUMNS:
        exact = [at for at, name in enumerate(names) if name == column]
        places = exact or [at for at, name in enumerate(plain) if name in (column, *_ALIASES[column])]
        if len(places) != 1:
            raise InputError(
                f"{path} must start with a header that names prompt, class_name (or classname) and classidx once each, "
                f"got {','.join(header)!r:.80}"
            )
        found += places
    return found


def _place_of(path: Path, header: list[str], column: str) -> int | None:
    """The index of a further column, or None."""
    places = [at for at, name in enumerate(header) if column and name.strip().lower() == column]
    if len(places) > 1:
        raise InputError(f"{path} must start with a header that names {column} at most once")
    return places[0] if places else None


def _fields(line: str, row: list[str], columns: list[int]) -> tuple[str, str, int]:
    """Prompt, class name and class index of a row."""
    if len(row) <= max(columns):
        raise InputError(f"{line}: expected at least {max(columns) + 1} fields, got {len(row)}")
    text, name, index = (row[column].strip() for column in columns)
    k = _class_index(line, index)
    for field, value in (("prompt", text), ("classname", name)):
        problem = _problem(value)
        if problem:
            raise InputError(f"{line}: {field} {problem}")
    return text, name, k


def _class_index(line: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InputError(f"{line}: classidx must be a whole number from 0, got {text!r:.80}")
    return int(text)


def _problem(text: object) -> str | None:
    """The reason why a text cannot be a prompt or a name, or None."""
    if not isinstance(text, str):
        return f"must be text, got {type(text).__name__}"
    if not text.strip():
        return "is empty"
    if len(text) > MAX_CHARACTERS:
        return f"must have at most {MAX_CHARACTERS:,} characters, got {len(text):,}"
    return None
