"""A stand-in for the Hugging Face hub: a folder as a repository, with a record of what is asked for and fetched."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.utils._paths import filter_repo_objects

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Serves `repository` as org/name at :data:`COMMIT`.

    Attributes:
        repository: The folder whose files the repository has.
        cache: The folder to which files are fetched.
        asked: The revisions that were resolved.
        fetched: The files that were fetched, in this order, once each.
    """

    repository: Path
    cache: Path
    asked: list[str | None] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.repository).as_posix() for path in self.repository.rglob("*.*"))

    def model_info(self, repo_id: str, *, revision: str | None = None) -> SimpleNamespace:
        """As HfApi.model_info."""
        assert repo_id == "org/name"
        self.asked.append(revision)
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in self.files()])

    def snapshot_download(self, repo_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        """As the function of the hub's client."""
        assert (repo_id, revision) == ("org/name", COMMIT)
        place = self.cache / COMMIT
        for name in filter_repo_objects(self.files(), allow_patterns=allow_patterns):
            if name not in self.fetched:
                self.fetched.append(name)
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.repository / name, place / name)
        return str(place)


def served(repository: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that serves `repository` in place of the real one."""
    hub = Hub(repository, cache)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", hub.model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub
