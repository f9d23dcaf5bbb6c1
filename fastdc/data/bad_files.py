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
            shown = "; ".join(f"{line:.200}" for line in lines[:_NAMED])
            raise InputError(f"{some} images can{'not' * (bad < count)} be used: {shown}{more}{hint}")
        for line in lines[:_NOTED]:
            notes.add(f"left out: {line}", noun="")
        if bad > _NOTED:
            notes.add(f"left out: {bad - _NOTED} more images, {bad} of {count} in all", noun="")
