"""Images that cannot be used: all of them are found, and reported together or left out.

A folder of thousands of images often has some that are truncated or empty. They are read to the end, so that one error
names all of them instead of the first; or, if the user wants that, they are left out, each with a note and its reason.
An error that is not about one image, such as a budget that is spent, ends the reading at once.
"""

from fastdc.data.notes import Notes, show
from fastdc.support import InputError

_NAMED = 3  # in an error
_NOTED = 20  # lines of notes

_WAY_OUT = "--skip-bad (skip_bad)"

NO_IMAGE = "is not an image in a format that fastdc reads"
"""Why a file cannot be used, before the formats in brackets, which are the same for all files."""


class BadFiles:
    """The images of one input that cannot be used.

    Attributes:
        skip: Whether they are left out; if not, :meth:`settle` refuses the input.
        found: The name of each, and why it cannot be used.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.found: list[tuple[str, str]] = []

    def add(self, name: str, error: object) -> None:
        """Counts an image; the error may begin with its name."""
        self.found.append((name, str(error).removeprefix(f"{show(name)}: ")))

    def settle(self, usable: int, notes: Notes) -> None:
        """Notes what is left out beside `usable` images, after all of them have been read.

        Raises:
            InputError: Some cannot be used and are not to be left out, or none can be used.
        """
        if not self.found:
            return
        lines = [f"{show(name)}: {why}" for name, why in self.found]
        bad, count = len(lines), usable + len(lines)
        if count == 1:
            raise InputError(lines[0])
        if bad == count or not self.skip:
            some = f"none of {count}" if bad == count else f"{bad} of {count}"
            more = f"; ... and {bad - _NAMED} more" if bad > _NAMED else ""
            hint = "" if bad == count else f"; {_WAY_OUT} leaves {'it' if bad == 1 else 'them'} out"
            named, formats = _without_formats(lines[:_NAMED])
            shown = "; ".join(f"{line:.200}" for line in named)
            ends = f"{more}{hint}{'; ' * bool(formats)}{formats}"
            raise InputError(f"{some} images can{'not' * (bad < count)} be used: {shown}{ends}")
        named, formats = _without_formats(lines[:_NOTED])
        for line in named:
            notes.add(f"left out: {line}", noun="")
        if formats:
            notes.add(formats, noun="")
        if bad > _NOTED:
            notes.add(f"left out: {bad - _NOTED} more images, {bad} of {count} in all", noun="")


def _without_formats(lines: list[str]) -> tuple[list[str], str]:
    """Lines without the formats that fastdc reads, and these by themselves, if more than one line names them."""
    parts = [line.partition(f"{NO_IMAGE} (") for line in lines]
    formats = [after for _, said, after in parts if said]
    if len(formats) < 2:
        return lines, ""
    return [before + NO_IMAGE * bool(said) for before, said, _ in parts], f"fastdc reads {formats[0][:-1]}"
