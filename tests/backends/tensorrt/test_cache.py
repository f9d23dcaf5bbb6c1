"""The cache of engines: keys, damaged files, two processes at once, and read-only folders."""

import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from fastdc import BackendError
from fastdc.backends.tensorrt.build import Built
from fastdc.backends.tensorrt.cache import SCHEMA, EngineCache, Entry, Maker, name_of
from fastdc.support import cache_folder

pytest.importorskip("filelock")

KEY: dict[str, Any] = {
    "graph": "ab",
    "precision": "float32",
    "profiles": [[1, 8, 64]],
    "flavour": "tensorrt",
    "tensorrt": "11.4.0.106",
    "gpu": "A",
    "sm": "9.0",
}


class Counted:
    """A maker whose plans are numbered, and which records how often it builds."""

    def __init__(self, *, loads: bool = True, passes: bool = True) -> None:
        self.builds: list[bytes] = []
        self.loads, self.passes = loads, passes
        self.maker: Maker[str] = Maker(self.build, self.load, self.test, lambda new, old: old + new)

    def build(self, timing: bytes) -> Built:
        self.builds.append(timing)
        return Built(f"plan {len(self.builds)}".encode(), b"t", ("INFO: built",), 1.5)

    def load(self, plan: bytes) -> str:
        if not self.loads:
            raise BackendError("TensorRT does not load the plan")
        return plan.decode()

    def test(self, engine: str) -> dict[str, Any]:
        if not self.passes:
            raise BackendError("the engine differs from the CPU")
        return {"relative": 1e-7}


def opened(cache: EngineCache, counted: Counted, key: dict[str, Any] | None = None) -> Entry[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cache.open(key or KEY, counted.maker)


def test_an_engine_is_built_once_and_keeps_its_self_test(tmp_path: Path) -> None:
    cache, counted = EngineCache(tmp_path / "new" / "folder"), Counted()
    first = opened(cache, counted)
    assert (first.engine, first.built) == ("plan 1", True)
    again = opened(EngineCache(cache.folder), counted)
    assert (again.engine, again.built, again.self_test) == ("plan 1", False, {"relative": 1e-7})
    assert len(counted.builds) == 1
    assert cache.folder.stat().st_mode & 0o077 == 0, "nobody else may put plans there"
    notes = json.loads(first.path.with_suffix(".json").read_bytes())
    assert notes["key"] == KEY
    assert notes["plan_sha256"] == hashlib.sha256(b"plan 1").hexdigest()
    assert notes["build_log"] == ["INFO: built"]
    assert notes["schema"] == SCHEMA
    assert notes["date"][:2] == "20"


def test_every_field_of_the_key_makes_another_engine(tmp_path: Path) -> None:
    cache, counted = EngineCache(tmp_path), Counted()
    for name in KEY:
        opened(cache, counted, {**KEY, name: "other"})
    opened(cache, counted, {**KEY, "new": 1})
    assert len(counted.builds) == len(KEY) + 1
    assert name_of(KEY) == name_of(dict(reversed(KEY.items()))), "in any order"
    assert name_of(KEY) != name_of({**KEY, "sm": 9.0})


def damage(name: str, plan: Path) -> None:
    side = plan.with_suffix(".json")
    notes = json.loads(side.read_bytes())
    if name == "plan":
        plan.write_bytes(b"plan X")
    elif name == "truncated plan":
        plan.write_bytes(b"plan")
    elif name == "no json":
        side.unlink()
    elif name == "no json at all":
        side.write_bytes(b"{")
    elif name == "a list":
        side.write_bytes(b"[]")
    elif name == "another key":
        side.write_text(json.dumps({**notes, "key": {**KEY, "gpu": "B"}}))
    elif name == "no hash":
        del notes["plan_sha256"]
        side.write_text(json.dumps(notes))
    elif name == "older schema":
        side.write_text(json.dumps({**notes, "schema": SCHEMA - 1}))
    else:
        side.write_text(json.dumps({**notes, "self_test": None}))


KINDS = (
    "plan",
    "truncated plan",
    "no json",
    "no json at all",
    "a list",
    "another key",
    "no hash",
    "older schema",
    "no self-test",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_entry_is_built_again_with_a_warning(kind: str, tmp_path: Path) -> None:
    cache, counted = EngineCache(tmp_path), Counted()
    damage(kind, opened(cache, counted).path)
    with pytest.warns(RuntimeWarning, match=r"\.plan is built again: "):
        second = cache.open(KEY, counted.maker)
    assert (second.engine, second.built) == ("plan 2", True)
    assert opened(cache, counted).engine == "plan 2", "the entry is whole again"


def test_a_plan_that_does_not_load_is_built_again(tmp_path: Path) -> None:
    cache, counted = EngineCache(tmp_path), Counted()
    opened(cache, counted)
    loads = iter((False, True))

    def load(plan: bytes) -> str:
        counted.loads = next(loads)
        return counted.load(plan)

    with pytest.warns(RuntimeWarning, match="is built again: TensorRT does not load the plan"):
        found = cache.open(KEY, Maker(counted.build, load, counted.test, counted.maker.merge))
    assert found.engine == "plan 2"


@pytest.mark.parametrize("fault", ["loads", "passes"])
def test_an_engine_that_is_refused_is_not_kept(fault: str, tmp_path: Path) -> None:
    cache, counted = EngineCache(tmp_path), Counted(**{fault: False})
    with pytest.raises(BackendError, match=r"does not load|differs from the CPU"):
        opened(cache, counted)
    assert not list(tmp_path.glob("*.plan")) + list(tmp_path.glob("*.json"))


def test_timing_caches_are_merged_per_version_and_gpu(tmp_path: Path) -> None:
    cache, counted = EngineCache(tmp_path), Counted()
    for key in (KEY, {**KEY, "graph": "cd"}, {**KEY, "graph": "ef"}):
        opened(cache, counted, key)
    opened(cache, counted, {**KEY, "gpu": "B"})
    opened(cache, counted, {**KEY, "tensorrt": "11.4.0.107"})
    assert counted.builds == [b"", b"t", b"tt", b"", b""]
    assert sorted(path.read_bytes() for path in tmp_path.glob("timing-*.cache")) == [b"t", b"t", b"ttt"]


PROCESS = """
import os, sys, time
from fastdc.backends.tensorrt.build import Built
from fastdc.backends.tensorrt.cache import EngineCache, Maker
folder, number = sys.argv[1:]
def build(timing):
    with open(folder + "/builds", "a") as file:
        file.write(number)
    time.sleep(0.7)
    return Built(b"plan of " + number.encode())
open(folder + "/ready" + number, "w").close()
while not all(os.path.exists(folder + "/ready" + one) for one in "12"):
    time.sleep(0.01)
entry = EngineCache(folder).open({"graph": "one"}, Maker(build, bytes.decode, lambda engine: {}, lambda new, old: new))
print(entry.engine, entry.built)
"""


def test_two_processes_build_once(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), number], stdout=subprocess.PIPE, text=True)
        for number in "12"
    ]
    said = [process.communicate(timeout=100)[0].split() for process in started]
    builds = (tmp_path / "builds").read_text()
    assert builds in ("1", "2"), "each process adds its number when it builds"
    assert [words[:3] for words in said] == 2 * [["plan", "of", builds]]
    assert sorted(words[3] for words in said) == ["False", "True"]


def test_a_lock_that_is_held_for_too_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    from fastdc.backends.tensorrt import cache as module

    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    cache, counted = EngineCache(tmp_path), Counted()
    with (
        filelock.FileLock(tmp_path / f"{name_of(KEY)}.lock"),
        pytest.raises(BackendError, match="another process has been building the engine"),
    ):
        opened(cache, counted)
    assert counted.builds == []
    assert opened(cache, counted).built


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_serves_its_engines(tmp_path: Path) -> None:
    cache, counted = EngineCache(tmp_path), Counted()
    opened(cache, counted)
    tmp_path.chmod(0o500)
    try:
        _check_read_only(cache, counted)
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_file_system_serves_its_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock can be made there."""
    import filelock

    cache, counted = EngineCache(tmp_path), Counted()
    opened(cache, counted)

    def acquire(self: Any, *arguments: Any, **more: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    _check_read_only(cache, counted)


def _check_read_only(cache: EngineCache, counted: Counted) -> None:
    assert opened(cache, counted).engine == "plan 1"
    with pytest.raises(BackendError, match=r"the engine is not in .*, which cannot be written to"):
        opened(cache, counted, {**KEY, "graph": "cd"})
    assert cache.prune(older_than_days=-1) == ()
    assert opened(cache, counted).engine == "plan 1"


def test_prune_removes_engines_that_were_not_used_recently(tmp_path: Path) -> None:
    cache, counted = EngineCache(tmp_path), Counted()
    paths = [opened(cache, counted, {**KEY, "graph": name}).path for name in "abcd"]
    for path, days in zip(paths, (40, 3, 2, 1), strict=True):
        at = time.time() - 86_400 * days
        os.utime(path, (at, at))
    (tmp_path / ".x.plan-12.tmp").write_bytes(b"left")
    os.utime(tmp_path / ".x.plan-12.tmp", (0, 0))
    assert cache.prune() == (paths[0].stem,)
    assert not (tmp_path / ".x.plan-12.tmp").exists()
    assert opened(cache, counted, {**KEY, "graph": "b"}).engine == "plan 2", "this counts as a use"
    size = len(b"plan 1")
    assert cache.prune(at_most_bytes=2 * size) == (paths[2].stem,)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == sorted(path.stem for path in (paths[1], paths[3]))
    assert cache.prune(at_most_bytes=0) == (paths[1].stem, paths[3].stem)
    assert EngineCache(tmp_path / "absent").prune() == ()


def test_prune_leaves_engines_that_another_process_uses(tmp_path: Path) -> None:
    import filelock

    cache, counted = EngineCache(tmp_path), Counted()
    path = opened(cache, counted).path
    with filelock.FileLock(path.with_suffix(".lock")):
        assert cache.prune(older_than_days=-1) == ()
    assert cache.prune(older_than_days=-1) == (path.stem,)


def test_the_folder_of_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FASTDC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder("engines") == tmp_path / ".cache" / "fastdc" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("engines") == tmp_path / ".cache" / "fastdc" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder("engines") == Path("/var/cache/me/fastdc/engines")
    monkeypatch.setenv("FASTDC_CACHE", str(tmp_path / "own"))
    assert cache_folder("engines") == EngineCache().folder == tmp_path / "own" / "engines"
