"""The place of a bundle: a kill at any line leaves a complete bundle, and two processes do not write to one place."""

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from fastdc.bundle import find_model, load_bundle, place, with_calibration, write_bundle
from fastdc.bundle.format import DENOISER, WEIGHTS
from fastdc.bundle.place import bundle_place
from fastdc.support import InputError, atomic_files
from helpers.stops import killed_at_each_line
from helpers.worlds import CALIBRATION, fails_with, manifest, tiny_bundle

HOLDER = """
import sys, time
from fastdc.bundle import bundle_place
with bundle_place(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_line_leaves_the_old_bundle_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic_files, "_exchange", lambda *_: False)
    target = tmp_path / "b"
    files = {DENOISER: b"new", WEIGHTS: b"weights"}
    tiny_bundle(target, b"old")
    seen = set()
    for _ in killed_at_each_line(lambda: write_bundle(target, manifest(), files, overwrite=True), place, atomic_files):
        bundle = load_bundle(find_model(target))
        bundle.verify()
        seen.add(bundle.read(DENOISER))
        write_bundle(target, manifest(), {DENOISER: b"old"}, overwrite=True)  # as at the start, and nothing is left
        assert os.listdir(tmp_path) == ["b"]
    assert seen == {b"old", b"new"}


def test_a_kill_at_any_line_of_a_first_export_leaves_nothing_or_a_bundle(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "b"
    found = set()
    for _ in killed_at_each_line(lambda: write_bundle(target, manifest(), {DENOISER: b"new"}), place):
        found.add(target.exists())
        if target.exists():
            load_bundle(target).verify()
        write_bundle(target, manifest(), {DENOISER: b"new"}, overwrite=True)
        assert os.listdir(tmp_path / "deep") == ["b"]
        for file in target.iterdir():
            file.unlink()
        target.rmdir()
        target.parent.rmdir()
    assert found == {False, True}


def half_replaced(target: Path) -> Path:
    """A bundle whose process was killed between the two steps of its replacement; the bundle as it is called now."""
    if not target.exists():
        tiny_bundle(target, b"old")
    old = target.with_name(f".{target.name}.staging") / "old"
    old.parent.mkdir()
    (old.parent / "fastdc-staging").touch()
    return target.rename(old)


def test_a_bundle_whose_replacement_was_killed_is_found_or_named(tmp_path: Path) -> None:
    old = half_replaced(tmp_path / "b")
    with bundle_place(tmp_path / "other"):
        assert load_bundle(tmp_path / "b").read(DENOISER) == b"old"
    half_replaced(tmp_path / "b")
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "b"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # which gives the bundle its name back
        half_replaced(tmp_path / "b")
        fails_with(lambda: load_bundle(tmp_path / "b"), str(old), f"process {child.pid} is writing")
        child.kill()
    assert load_bundle(tmp_path / "b").read(DENOISER) == b"old"


def test_two_processes_do_not_write_to_one_place(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    with subprocess.Popen([sys.executable, "-c", HOLDER, bundle.path], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        said = f"{bundle.path} is in use: process {child.pid} is writing to it"
        fails_with(
            lambda: write_bundle(bundle.path, manifest(), {DENOISER: b""}, overwrite=True), said, kind=InputError
        )
        fails_with(lambda: with_calibration(bundle, CALIBRATION), said, kind=InputError)
        assert load_bundle(bundle.path) == bundle  # reading goes on
        child.send_signal(signal.SIGKILL)
    with_calibration(bundle, CALIBRATION)
    assert os.listdir(tmp_path) == ["b"]


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b", b"old")
    (tmp_path / "link").symlink_to("b")
    write_bundle(tmp_path / "link", manifest(), {DENOISER: b"new"}, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert load_bundle(tmp_path / "b").read(DENOISER) == b"new"


def test_impossible_places_are_refused(tmp_path: Path) -> None:
    fails_with(lambda: write_bundle("/", manifest(), {DENOISER: b""}, overwrite=True), "not a bundle")
    (tmp_path / ".b.lock").mkdir()
    fails_with(lambda: tiny_bundle(tmp_path / "b"), "is not a file", kind=InputError)


def test_folders_of_the_user_beside_a_bundle_are_left_alone(tmp_path: Path) -> None:
    for name in (".b.new", ".b.old", ".b.staging"):
        (tmp_path / name / "new").mkdir(parents=True)
        (tmp_path / name / "new" / "thesis.txt").write_text("mine")
    (tmp_path / ".c.staging").symlink_to(".b.staging")
    for name in ("b", "c"):
        fails_with(partial(tiny_bundle, tmp_path / name), f".{name}.staging is in the way: rename it")
    shutil.move(tmp_path / ".b.staging", tmp_path / "renamed")
    for _ in range(2):
        write_bundle(tmp_path / "b", manifest(), {DENOISER: b"new"}, overwrite=True)
    for name in (".b.new", ".b.old", "renamed"):
        assert (tmp_path / name / "new" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / ".b.staging").exists()
