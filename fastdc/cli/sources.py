"""The sources that a command line names: paths, patterns that the shell has not expanded, and standard input as "-"."""

import glob
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from fastdc.support import InputError, shown

STDIN = "-"
DIGITS = "digits"  # the data set that comes with fastdc, for certify --data

_BYTES_PER_PIXEL = 64  # of --max-pixels: what all images of an input may take, 4 GiB by default
_SUFFIXES = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz"}


def expanded(sources: Sequence[str]) -> list[str]:
    """The sources with patterns such as ``'photos/*.png'`` replaced by the files that match, in sorted order.

    A file whose name has ``*``, ``?`` or ``[`` in it stands for itself.

    Raises:
        InputError: A source does not exist, a pattern matches nothing, or standard input is named twice.
    """
    found: list[str] = []
    for source in sources:
        if source == STDIN or _exists(source):
            found.append(source)
        elif glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise InputError(f"no file matches {shown(source)}")
            found += matches
        else:
            raise InputError(f"{source}: does not exist" if source else "expected the name of a file or folder, got ''")
    if found.count(STDIN) > 1:
        raise InputError("'-', the standard input, can be read once only")
    return found


def check_sources(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    """The callback of an argument or option that names sources: several are :func:`expanded`, one must exist.

    It is called before anything else is imported.
    """
    if isinstance(value, tuple):
        return tuple(expanded(value))
    if value is not None and not (value == DIGITS and param.name == "data"):
        expanded([value])
    return value


@contextmanager
def on_disk(sources: Sequence[str], max_pixels: int) -> Iterator[tuple[list[str], str | None]]:
    """Copies standard input to a temporary file if a source is "-".

    Args:
        sources: What :func:`expanded` gives.
        max_pixels: Most pixels of one image; standard input may have 64 times as many bytes.

    Yields:
        The sources as paths, and the path of the temporary file if there is one.

    Raises:
        InputError: Standard input is a terminal, empty or too large.
    """
    if STDIN not in sources:
        yield list(sources), None
        return
    with tempfile.TemporaryDirectory(prefix="fastdc-") as folder:
        path = str(_copied(Path(folder), _BYTES_PER_PIXEL * max_pixels))
        try:
            yield [path if source == STDIN else source for source in sources], path
        except InputError as error:
            raise InputError(str(error).replace(path, "standard input")) from None


def _copied(folder: Path, most: int) -> Path:
    stream = sys.stdin.buffer
    if stream.isatty():
        raise InputError("'-' reads an image or an array from standard input, which is the keyboard: use a pipe or <")
    start = stream.read(8)
    if not start:
        raise InputError("standard input is empty: expected an image file, .npy or .npz")
    suffix = next((suffix for magic, suffix in _SUFFIXES.items() if start.startswith(magic)), "")
    path = folder / f"stdin{suffix}"
    with path.open("wb") as file:
        file.write(start)
        while chunk := stream.read(2**20):
            if file.tell() + len(chunk) > most:
                raise InputError(f"standard input has more than {most:,} bytes: raise --max-pixels")
            file.write(chunk)
    return path


def _exists(source: str) -> bool:
    try:
        return bool(source) and Path(source).exists()
    except (OSError, ValueError):  # for example, a NUL byte in the name; the reader says more
        return True
