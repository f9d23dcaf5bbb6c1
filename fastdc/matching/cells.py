"""The cells of the compositional evaluation's tables, and images that share their candidates."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Cell:
    """One column of the paper's tables.

    Attributes:
        task: "single", "two_object", "relational", or the name of another task's folder.
        split: One of :data:`~fastdc.matching.SPLITS`.
        generalised: Whether candidates are of seen and unseen classes alike.
    """

    task: str
    split: str
    generalised: bool = False

    @property
    def setting(self) -> str:
        """The setting, "ZSL" or "GZSL"."""
        return "GZSL" if self.generalised else "ZSL"

    def __str__(self) -> str:
        return f"{self.task} {self.split} {self.setting}"


@dataclass(frozen=True)
class Group:
    """Images that share their candidates.

    Attributes:
        folder: Their folder below the split.
        name: Name of the right text.
        files: The PNG files.
        texts: Candidate texts.
        names: Names of the candidates.
        truth: The place of the right one.
        kinds: What it means to choose each.
    """

    folder: Path
    name: str
    files: tuple[Path, ...]
    texts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    truth: int = 0
    kinds: tuple[str, ...] = ()
