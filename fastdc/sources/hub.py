"""Models of the Hugging Face hub: ``hf://org/name``, or ``hf://org/name@revision`` for a branch, tag or commit.

The revision is resolved to a commit before anything is downloaded, and all files come from that commit. Which files are
needed is decided on the hub's list of files, so that no other file is fetched.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fastdc.support import InputError, one_line, require, shown

PREFIX = "hf://"

_NAME = r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}"
_SOURCE = re.compile(rf"({_NAME})(?:@([\w./-]{{1,200}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")  # plain names, at most one folder deep, and no pattern


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub at one commit.

    Attributes:
        name: Its id, org/name.
        commit: The commit, 40 hexadecimal digits.
        files: Paths of its files with plain names, at most one folder deep.
    """

    name: str
    commit: str
    files: frozenset[str] = field(repr=False)

    def fetch(self, files: Iterable[str]) -> Path:
        """Downloads files into the hub's cache.

        Args:
            files: Some of :attr:`files`.

        Returns:
            The folder of the commit.

        Raises:
            InputError: They cannot be fetched.
        """
        import huggingface_hub

        try:
            return Path(
                huggingface_hub.snapshot_download(self.name, revision=self.commit, allow_patterns=sorted(files))
            )
        except Exception as error:  # errors of the hub, its HTTP client and the system
            raise _failed(self.name, error) from None


def is_hub_name(source: str) -> bool:
    """Whether a text has the form org/name or org/name@revision, which needs the prefix to be taken for the hub."""
    return ".." not in source and _SOURCE.fullmatch(source) is not None


def find_repository(source: str) -> HubRepository:
    """Finds the commit and the files of a model on the hub; nothing is downloaded.

    Args:
        source: "hf://org/name" or "hf://org/name@revision".

    Raises:
        InputError: The text has another form, or the hub or the repository cannot be reached.
        MissingDependencyError: The hub's client is not installed.
    """
    match = _SOURCE.fullmatch(source.removeprefix(PREFIX))
    if match is None or ".." in source:
        raise InputError(f"a model of the hub must be {PREFIX}org/name or {PREFIX}org/name@revision, got {source:.200}")
    name, revision = match[1], match[2]
    require("diffusers", extra="export")  # brings the hub's client
    import huggingface_hub

    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:  # the user wants what the cache holds, with the commit that it has
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
            commit: str | None = folder.name
            found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        else:
            info = huggingface_hub.HfApi().model_info(name, revision=revision)
            commit, found = info.sha, [sibling.rfilename for sibling in info.siblings or ()]
    except Exception as error:  # errors of the hub, its HTTP client and the system
        raise _failed(source, error) from None
    if commit is None or not _COMMIT.fullmatch(commit):
        raise InputError(f"{source}: the hub must name a commit of 40 hexadecimal digits, got {shown(commit)}")
    return HubRepository(name, commit, frozenset(file for file in found if _FILE.fullmatch(file)))


def _failed(source: str, error: Exception) -> InputError:
    return InputError(f"{source} cannot be fetched from the Hugging Face hub: {one_line(error)}")
