"""Engines on disk: built once for everything that they depend on, checked before they are used, never trusted.

An entry's name is the sha256 of the canonical JSON of its key, and the key holds every input: the graph's semantic hash
and its weights', precision, opset, profiles, options, flavour and full version of TensorRT, GPU, compute capability and
driver. (Plans cannot be named by content: two builds of one graph differ.) Beside each plan lies a JSON file with the
same key, the plan's sha256, what TensorRT said while it built, and what the self-test found.

Files are written whole or not at all, under a lock an entry, so that of two processes one builds and the other waits
and reads. A plan that is not what its JSON file says, or that TensorRT does not load, is built again with a warning.

Timing caches, which make the next build shorter, are kept a file for each version and GPU, and merged when written.
"""

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastdc.backends.protocol import one_line
from fastdc.backends.tensorrt.build import Built
from fastdc.support import BackendError, __version__, require, write_whole

SCHEMA = 2
"""Of entries; raised when a key gets a new meaning."""

_TIMED_BY = ("flavour", "tensorrt", "gpu", "sm")  # of a key: what a timing cache holds for
_DAY = 86_400.0
_LOCK_SECONDS = 7200.0

E = TypeVar("E")


@dataclass(frozen=True, eq=False)
class Entry(Generic[E]):
    """An engine from the cache.

    Attributes:
        engine: As loaded.
        path: Of its plan.
        self_test: What the self-test found when it was built.
        built: It was built now.
    """

    engine: E
    path: Path
    self_test: Mapping[str, Any] = field(repr=False)
    built: bool = False


@dataclass(frozen=True)
class Maker(Generic[E]):
    """How an engine comes about.

    Attributes:
        build: Makes a plan, given the timing cache of earlier builds or b"".
        load: Makes an engine of a plan; raises BackendError for one that cannot be used.
        test: Checks an engine and says what it found; raises BackendError for one that is refused.
        merge: Joins a new timing cache with the one on disk.
    """

    build: Callable[[bytes], Built]
    load: Callable[[bytes], E]
    test: Callable[[E], Mapping[str, Any]]
    merge: Callable[[bytes, bytes], bytes] = lambda new, old: new


def cache_folder() -> Path:
    """``$FASTDC_CACHE/engines``, or ``fastdc/engines`` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    own = os.environ.get("FASTDC_CACHE")
    if own:
        return Path(own) / "engines"
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"  # the XDG standard ignores relative ones
    return base / "fastdc" / "engines"


def canonical(value: Any) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def name_of(key: Mapping[str, Any]) -> str:
    """An entry's name: sha256 of its key and :data:`SCHEMA`."""
    return hashlib.sha256(canonical({**key, "schema": SCHEMA})).hexdigest()


class EngineCache:
    """A folder of engines.

    Args:
        folder: Where; default :func:`cache_folder`. One that cannot be written to serves what it holds.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = cache_folder() if folder is None else Path(folder)

    def open(self, key: Mapping[str, Any], maker: Maker[E]) -> Entry[E]:
        """The engine of a key: loaded, or built, tested and kept.

        Args:
            key: Everything that the plan depends on, as JSON.
            maker: What builds, loads and tests it.

        Raises:
            BackendError: It cannot be built, fails its test, or cannot be kept.
            MissingDependencyError: filelock is not installed.
        """
        name = name_of(key)
        plan = self.folder / f"{name}.plan"
        with self._locked(name) as writable:
            found = self._load(plan, key, maker)
            if found is not None:
                if writable:
                    with contextlib.suppress(OSError):
                        os.utime(plan)  # when it was last used, for prune
                return found
            if not writable:
                raise BackendError(f"the engine is not in {self.folder}, which cannot be written to")
            return self._build(plan, key, maker)

    def prune(self, *, older_than_days: float = 30.0, at_most_bytes: int | None = None) -> tuple[str, ...]:
        """Removes engines that were not used for long, and then the oldest until the rest fits.

        Entries that another process holds stay.

        Args:
            older_than_days: Since their last use.
            at_most_bytes: Of all plans that stay; None: no bound.

        Returns:
            The names of what was removed.
        """
        now, removed, kept = time.time(), [], 0
        plans = sorted(self.folder.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True)
        for plan in plans:
            status = plan.stat()
            fits = at_most_bytes is None or kept + status.st_size <= at_most_bytes
            if now - status.st_mtime <= older_than_days * _DAY and fits:
                kept += status.st_size
            elif self._remove(plan.stem):
                removed.append(plan.stem)
        for rest in self.folder.glob(".*.tmp"):  # of processes that were stopped while they wrote
            with contextlib.suppress(OSError):
                if now - rest.stat().st_mtime > _DAY:
                    rest.unlink()
        return tuple(removed)

    def _remove(self, name: str) -> bool:
        try:
            with self._locked(name, wait=0.0) as writable:
                if writable:
                    for suffix in (".json", ".plan"):  # in this order: a plan alone is never used
                        (self.folder / f"{name}{suffix}").unlink(missing_ok=True)
                return writable
        except BackendError:
            return False

    @contextlib.contextmanager
    def _locked(self, name: str, wait: float = _LOCK_SECONDS) -> Iterator[bool]:
        """Holds an entry; yields whether the folder can be written to. Lock files stay: removing one is a race."""
        filelock = require("filelock", extra="tensorrt")
        lock = filelock.FileLock(self.folder / f"{name}.lock", timeout=wait)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise BackendError(
                f"another process has been building the engine {name[:12]} for {wait:.0f} s: {self.folder}"
            ) from None
        except OSError:  # a folder that is only to be read from
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _load(self, plan: Path, key: Mapping[str, Any], maker: Maker[E]) -> Entry[E] | None:
        """An entry that is what it says, or None, with a warning if there is something else in its place."""
        if not plan.exists():
            return None
        try:
            notes = _notes(plan.with_suffix(".json"), key)
            content = plan.read_bytes()
            if hashlib.sha256(content).hexdigest() != notes["plan_sha256"]:
                raise BackendError("the plan's sha256 is not the one in its JSON file")
            return Entry(maker.load(content), plan, notes["self_test"])
        except (BackendError, OSError) as error:
            warnings.warn(f"{plan} is built again: {one_line(error)}", RuntimeWarning, stacklevel=4)
            return None

    def _build(self, plan: Path, key: Mapping[str, Any], maker: Maker[E]) -> Entry[E]:
        timing = self.folder / f"timing-{name_of({name: key.get(name) for name in _TIMED_BY})[:32]}.cache"
        built = maker.build(_bytes_of(timing))
        engine = maker.load(built.plan)
        found = maker.test(engine)
        notes = {
            "schema": SCHEMA,
            "key": dict(key),
            "plan_sha256": hashlib.sha256(built.plan).hexdigest(),
            "plan_bytes": len(built.plan),
            "build_seconds": round(built.seconds, 3),
            "build_log": list(built.log),
            "self_test": dict(found),
            "fastdc": __version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            write_whole(plan, built.plan)
            write_whole(plan.with_suffix(".json"), json.dumps(notes, indent=1).encode())
        except OSError as error:
            raise BackendError(f"the engine cannot be kept in {self.folder}: {error.strerror}") from None
        if built.timing_cache:
            self._keep_timing(timing, built.timing_cache, maker.merge)
        return Entry(engine, plan, found, built=True)

    def _keep_timing(self, path: Path, new: bytes, merge: Callable[[bytes, bytes], bytes]) -> None:
        """What others measured meanwhile stays; a file that cannot be written costs time and no more."""
        with contextlib.suppress(OSError, BackendError), self._locked(path.stem, wait=60.0) as writable:
            if writable:
                write_whole(path, merge(new, _bytes_of(path)))


def _notes(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON file beside a plan, if it is one and of this key.

    Raises:
        BackendError: It is not.
        OSError: It cannot be read.
    """
    try:
        notes = json.loads(path.read_bytes())
        same = canonical(notes["key"]) == canonical(dict(key)) and notes["schema"] == SCHEMA
        whole = isinstance(notes["plan_sha256"], str) and isinstance(notes["self_test"], dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        same = whole = False
    if not (same and whole):
        raise BackendError("its JSON file is not that of this engine")
    return dict(notes)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
