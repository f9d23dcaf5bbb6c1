"""What was done to images, told to the user: one line for each kind of conversion, and one-line errors.

No conversion is silent: the loaders count each of them here, and every command that reads images prints the lines.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from fastdc.support import FastdcError, InputError, one_line

_DETAILS_SHOWN = 3


def show(text: object) -> str:
    """Makes a path or name fit for a one-line message: control and undecodable characters become '?'."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


class WholeInputError(InputError):
    """An error about an input as a whole, which leaving out one of its images would not mend."""


@contextmanager
def reading(path: object, what: str) -> Iterator[None]:
    """Turns any exception that a decoder raises on a bad file into one :class:`InputError` that names the file.

    Decoders of arbitrary bytes raise many kinds (OSError, SyntaxError, struct.error, zlib.error, IndexError), so this
    is one of the few places where catching Exception is right. The block decodes and does nothing else.
    """
    try:
        yield
    except FastdcError:
        raise
    except MemoryError as error:  # no fault of the file
        raise WholeInputError(f"{show(path)}: not enough memory to read {what}") from error
    except Exception as error:
        raise InputError(f"{show(path)}: cannot be read as {what}: {show(one_line(error))}") from error


class Notes:
    """Counts conversions by kind and writes one line for each kind, in the order of first appearance."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._details: dict[tuple[str, str], dict[str, None]] = {}  # a dict keeps first-seen order

    def add(self, text: str, detail: str = "", *, noun: str = "image", count: int = 1) -> None:
        """Counts a conversion.

        Args:
            text: What happened, such as "resized to 8x8 from {}"; "{}" stands for the different details.
            detail: One of the details, such as "640x640".
            noun: Singular of the things that were converted; "" for a text about none, which is not counted.
            count: Number of things that were converted.
        """
        key = (noun, text)
        self._counts[key] = self._counts.get(key, 0) + count
        details = self._details.setdefault(key, {})
        if detail:
            details[detail] = None

    def merge(self, other: "Notes") -> None:
        """Adds all that another one has counted."""
        for key, count in other._counts.items():
            self._counts[key] = self._counts.get(key, 0) + count
            self._details.setdefault(key, {}).update(other._details[key])

    def lines(self) -> tuple[str, ...]:
        """Returns one line for each kind, such as ``"3 images resized to 8x8 from 640x640, 16x16"``."""
        lines = []
        for (noun, text), count in self._counts.items():
            shown = list(self._details[noun, text])
            listing = ", ".join(shown[:_DETAILS_SHOWN])
            if len(shown) > _DETAILS_SHOWN:
                listing += f" and {len(shown) - _DETAILS_SHOWN} more"
            counted = f"{count} {noun}{'s'[: count != 1]} " if noun else ""
            lines.append(counted + text.replace("{}", listing))
        return tuple(lines)
