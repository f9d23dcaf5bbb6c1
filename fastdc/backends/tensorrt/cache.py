"""Engines on disk: built once for each key, and checked before every use.

The name of an entry is the sha256 of the canonical JSON of its key. The key holds everything that the engine depends
on: hashes of the graph and the weights, precision, opset, profiles, options, flavour and full version of TensorRT, GPU,
compute capability and driver. (A plan cannot be named by its content: two builds of one graph differ.) Beside each plan
lies a JSON file with the same key, the plan's sha256, TensorRT's messages during the build, and the results of the
self-test.

Files are written whole or not at all, under one lock per entry: of two processes one builds, and the other waits and
reads. A plan that does not match its JSON file, or that TensorRT does not load, is built again with a warning.

Timing caches, which shorten the next build, are kept in one file per version and GPU, and merged when written.
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

from fastdc.backends.tensorrt.build import Built
from fastdc.support import BackendError, __version__, cache_folder, one_line, require, write_whole

SCHEMA = 2
"""Version of the entries' format; raised when a key gets a new meaning."""

LOCK_SECONDS = 7200.0
"""How long to wait for another process that builds the same engine."""

_TIMED_BY = ("flavour", "tensorrt", "gpu", "sm")  # the fields of a key that a timing cache depends on
_DAY = 86_400.0

E = TypeVar("E")


@dataclass(frozen=True, eq=False)
class Entry(Generic[E]):
    """An engine from the cache.

    Attributes:
        engine: The loaded engine.
        path: Path of its plan.
        self_test: Results of the self-test when the engine was built.
        built: Whether the engine was built just now.
    """

    engine: E
    path: Path
    self_test: Mapping[str, Any] = field(repr=False)
    built: bool = False


@dataclass(frozen=True)
class Maker(Generic[E]):
    """How to build, load and test an engine.

    Attributes:
        build: Makes a plan, given the timing cache of earlier builds, or b"".
        load: Makes an engine of a plan; raises BackendError if the plan cannot be used.
        test: Tests an engine and returns the results; raises BackendError if the engine fails.
        merge: Joins a new timing cache with the one on disk.
    """

    build: Callable[[bytes], Built]
    load: Callable[[bytes], E]
    test: Callable[[E], Mapping[str, Any]]
    merge: Callable[[bytes, bytes], bytes]


def canonical(value: Any) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def name_of(key: Mapping[str, Any]) -> str:
    """Name of an entry: the sha256 of its key and :data:`SCHEMA`."""
    return hashlib.sha256(canonical({**key, "schema": SCHEMA})).hexdigest()


class EngineCache:
    """A folder of engines.

    Args:
        folder: The folder; default ``$FASTDC_CACHE/engines`` or ``~/.cache/fastdc/engines``. The engines in a read-only
            folder can be used, but none can be added.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = cache_folder("engines") if folder is None else Path(folder)

    def open(self, key: Mapping[str, Any], maker: Maker[E]) -> Entry[E]:
        """The engine of a key: loaded from the folder, or built, tested and kept.

        Args:
            key: Everything that the plan depends on, as JSON values.
            maker: Builds, loads and tests the engine.

        Raises:
            BackendError: The engine cannot be built, fails its test, or cannot be kept.
            MissingDependencyError: filelock is not installed.
        """
        name = name_of(key)
        plan = self.folder / f"{name}.plan"
        with self._locked(name, LOCK_SECONDS) as writable:
            found = self._load(plan, key, maker)
            if found is not None:
                if writable:
                    with contextlib.suppress(OSError):
                        os.utime(plan)  # the time of last use, for prune
                return found
            if not writable:
                raise BackendError(f"the engine is not in {self.folder}, which cannot be written to")
            return self._build(plan, key, maker)

    def prune(self, *, older_than_days: float = 30.0, at_most_bytes: int | None = None) -> tuple[str, ...]:
        """Removes engines that were not used recently, then the least recently used ones until the rest fits.

        Engines that another process is using stay.

        Args:
            older_than_days: Engines are removed if their last use is longer ago than this.
            at_most_bytes: Total size of the plans that may stay; None for no limit.

        Returns:
            Names of the removed engines.
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
        for rest in self.folder.glob(".*.tmp"):  # left by processes that were stopped while they wrote
            with contextlib.suppress(OSError):
                if now - rest.stat().st_mtime > _DAY:
                    rest.unlink()
        return tuple(removed)

    def _remove(self, name: str) -> bool:
        try:
            with self._locked(name, 0.0) as writable:
                if writable:
                    for suffix in (".json", ".plan"):  # in this order: a plan without its JSON file is never used
                        (self.folder / f"{name}{suffix}").unlink(missing_ok=True)
                return writable
        except BackendError:
            return False

    @contextlib.contextmanager
    def _locked(self, name: str, wait: float) -> Iterator[bool]:
        """Holds the lock of an entry; yields whether the folder is writable. Lock files stay: removing one is a race.

        Args:
            name: Name of the entry.
            wait: How long to wait for another process, in seconds.
        """
        filelock = require("filelock", extra="tensorrt")
        lock = filelock.FileLock(self.folder / f"{name}.lock", timeout=wait)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise BackendError(
                f"another process has been building the engine {name[:12]} for {wait:.0f} s: {self.folder}"
            ) from None
        except OSError:  # a read-only folder
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _load(self, plan: Path, key: Mapping[str, Any], maker: Maker[E]) -> Entry[E] | None:
        """An entry that matches its JSON file; None if there is none or, with a warning, if it is damaged."""
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
        """Merges new timings into a file that other processes write, too; if that fails, only time is lost."""
        with contextlib.suppress(OSError, BackendError), self._locked(path.stem, 60.0) as writable:
            if writable:
                write_whole(path, merge(new, _bytes_of(path)))


def _notes(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON file beside a plan, checked against the key.

    Raises:
        BackendError: The file is damaged, or belongs to another key.
        OSError: The file cannot be read.
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
