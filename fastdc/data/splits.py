"""The splits of a data set, such as training, validation and test images, and which of them a command takes.

A folder has splits if all its sub-folders are named after them (ROOT/train, ROOT/val, ROOT/test), a manifest if it has
a column for them, and an .npz file of the MedMNIST layout by the names of its arrays. "valid", "validation" and "dev"
are other names of "val".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fastdc.data.notes import Notes, WholeInputError, show

_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
_NAMES = {"train", "val", "test"}
_WAY_OUT = "--split NAME (split)"


@dataclass(frozen=True)
class Split:
    """Which split is wanted of sources that have splits.

    Attributes:
        name: The one that the user names; then every source must have it.
        natural: The one to take otherwise; None: the user must name one.
    """

    name: str | None = None
    natural: str | None = None

    def choose(self, names: Sequence[str], source: object, notes: Notes) -> str:
        """The wanted one of a source's splits, which is noted.

        Raises:
            WholeInputError: There is no such split, or nobody said which.
        """
        wanted = self.name if self.name is not None else self.natural
        found = [name for name in names if name == wanted]
        found = found or [name for name in names if wanted is not None and plain_split(name) == plain_split(wanted)]
        has = ", ".join(show(name)[:40] for name in names[:8]) + (
            f" ... ({len(names)} in all)" if len(names) > 8 else ""
        )
        if len(found) == 1:
            notes.add(f"split {show(found[0])} of {show(source)} used; it has {has}", noun="")
            return found[0]
        if self.name is not None:
            raise WholeInputError(f"{show(source)}: has no split {show(self.name)!r:.60}, its splits are {has}")
        none = f" and none for {self.natural}" if self.natural is not None else ""
        raise WholeInputError(f"{show(source)}: has the splits {has}{none}: name one with {_WAY_OUT}")

    def missing(self, source: object) -> None:
        """Refuses a source without splits if the user names one.

        Raises:
            WholeInputError: The user names a split.
        """
        if self.name is not None:
            raise WholeInputError(f"{show(source)}: has no splits, but {show(self.name)!r:.60} was asked for")


def plain_split(name: str) -> str:
    """The plain name of a split: "val" for "Validation"; other names stay as they are.

    Example:
        >>> from fastdc.data import plain_split
        >>> plain_split("valid"), plain_split("fold 1")
        ('val', 'fold 1')
    """
    lowered = name.lower()
    return lowered if lowered in _NAMES else _ALIASES.get(lowered, name)


def is_split(name: str) -> bool:
    """Whether a folder has the name of a split."""
    return plain_split(name) in _NAMES
