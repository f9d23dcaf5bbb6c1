"""Bundles: reading returns what was written, writing is atomic, and storing a calibration changes nothing else.

No test here runs a network. test_refusals.py tests invalid bundles; the backends' tests check graphs.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import load_bundle
from fastdc.bundle.folder import with_calibration, write_bundle
from fastdc.bundle.format import DENOISER, MANIFEST, MAX_FIRST, WEIGHTS
from fastdc.diffusion.level_weights import LevelWeights
from fastdc.diffusion.plan import PlanConfig
from fastdc.rules.calibration import Calibration
from fastdc.support import atomic_files
from helpers.worlds import CALIBRATION, CURVE, fails_with, manifest, tiny_bundle

_positive = st.floats(1e-3, 1e3)
_pair = st.tuples(_positive, _positive).map(sorted).filter(lambda pair: pair[0] < pair[1])
_text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=0, max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)
_schedules = st.one_of(
    st.builds(
        lambda pair, scale: {"kind": "edm", "sigma_min": pair[0], "sigma_max": pair[1], "timestep_scale": scale},
        _pair,
        _positive,
    ),
    st.builds(
        lambda beta, steps: {"kind": "ddpm", "beta_schedule": beta, "num_train_timesteps": steps},
        st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        st.integers(1, 2000),
    ),
    st.builds(lambda shift: {"kind": "flow", "shift": shift}, _positive),
)
_parameterizations = st.one_of(
    st.builds(lambda sd: {"kind": "edm", "sigma_data": sd}, _positive),
    st.sampled_from(["epsilon", "v_prediction", "sample", "flow"]).map(lambda kind: {"kind": kind}),
)
_curves = st.lists(st.tuples(_positive, _positive), min_size=1, max_size=4, unique_by=lambda knot: knot[0]).map(
    lambda knots: LevelWeights(*zip(*sorted(knots), strict=True))
)
_calibrations = st.builds(
    Calibration,
    limit=st.floats(0, 1e6),
    delta=st.floats(0.001, 0.999),
    risk=st.floats(0, 0.999),
    draws=st.integers(1, 10_000),
    images=st.integers(1, 10_000),
    seeds=st.integers(1, 100),
    bound=st.floats(0, 1e6),
    plan=st.dictionaries(_text, _json, max_size=3),
)
_manifests = st.fixed_dictionaries(
    {
        "name": _text,
        "description": _text,
        "image": st.fixed_dictionaries(
            {"shape": st.lists(st.integers(1, 64), min_size=3, max_size=3), "range": _pair.map(list)}
        ),
        "classes": st.lists(_text, min_size=1, max_size=5),
        "null_class": st.none() | st.integers(0, 1000),
        "schedule": _schedules,
        "parameterization": _parameterizations,
        "defaults": st.fixed_dictionaries(
            {},
            optional={
                "draws": st.integers(1, 10_000),
                "levels": st.none() | _pair.map(list),
                "weighting": st.sampled_from(["uniform", "edm", "vlb", "exp", "min_snr", "velocity"]),
                "loss": st.sampled_from(["l2", "l1", "huber"]),
                "temperature": _positive,
                "first": st.lists(_positive, max_size=3),
            },
        ),
        "network": st.none() | st.dictionaries(_text, _json, max_size=2),
        "provenance": st.dictionaries(_text, _json, max_size=3),
        "calibration": st.none() | _calibrations.map(Calibration.to_dict),
        "level_weights": st.none() | _curves.map(LevelWeights.to_dict),
        "training": st.none() | st.dictionaries(_text.filter("class_counts".__ne__), _json, max_size=2),
    }
)


@given(entry=_manifests, content=st.binary(max_size=64), weights=st.none() | st.binary(max_size=8))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, entry: dict[str, Any], content: bytes, weights: bytes | None
) -> None:
    files = {DENOISER: content} | ({} if weights is None else {WEIGHTS: weights})
    path = tmp_path_factory.mktemp("bundle") / "b"
    written = write_bundle(path, entry, files)
    read = load_bundle(path)
    assert read == written
    assert {key: read.manifest[key] for key in entry} == entry
    assert read.name == entry["name"]
    assert read.image_shape == tuple(entry["image"]["shape"])
    assert read.class_names == tuple(entry["classes"])
    assert read.model.null_class == entry["null_class"]
    assert read.model.value_range == tuple(entry["image"]["range"])
    assert read.model.defaults.first == tuple(entry["defaults"].get("first", ()))
    kept, curve = read.model.calibration, read.model.level_weights
    assert (kept and kept.to_dict()) == entry["calibration"]
    assert (curve and curve.to_dict()) == entry["level_weights"]
    assert kept is None or not kept.fits(PlanConfig(draws=4, levels=(0.1, 0.2)))  # a random plan is not this one
    assert {name: read.read(name) for name in read.files} == files
    assert read.model.identity == hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    read.verify()
    assert [item.name for item in path.parent.iterdir()] == ["b"]


def test_the_class_counts_of_the_training_data_are_read(tmp_path: Path) -> None:
    assert tiny_bundle(tmp_path / "a").model.class_counts is None
    assert tiny_bundle(tmp_path / "b", training={"class_counts": [30, 0]}).model.class_counts == (30, 0)
    assert tiny_bundle(tmp_path / "c", training={"class_counts": None, "more": 1}).model.class_counts is None


def test_defaults_that_are_left_out_are_the_documented_ones(tmp_path: Path) -> None:
    defaults = tiny_bundle(tmp_path / "b", defaults={}).model.defaults
    assert (defaults.draws, defaults.levels, defaults.weighting) == (100, None, "uniform")
    assert (defaults.loss, defaults.temperature, defaults.first) == ("l2", 1.0, ())


def test_a_large_file_is_copied_from_its_path_and_found_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "made.onnx").write_bytes(b"network")
    copied = write_bundle(tmp_path / "a", manifest(), {DENOISER: tmp_path / "made.onnx"})
    assert copied.manifest == tiny_bundle(tmp_path / "b", b"network").manifest
    assert copied.file(DENOISER) == tmp_path / "a" / DENOISER
    copied.file(DENOISER).write_bytes(b"netw0rk")
    fails_with(lambda: copied.file(DENOISER), DENOISER, "sha256")
    fails_with(lambda: copied.file(WEIGHTS), WEIGHTS)


def test_other_users_can_read_a_bundle(tmp_path: Path) -> None:
    """Its folder is staged by mkdtemp, which makes folders for their owner only."""
    assert tiny_bundle(tmp_path / "b").path.stat().st_mode & 0o777 == 0o755


def test_as_many_first_draws_as_the_format_allows(tmp_path: Path) -> None:
    defaults = {**manifest()["defaults"], "first": [1.0] * MAX_FIRST}
    assert len(tiny_bundle(tmp_path / "b", defaults=defaults).model.defaults.first) == MAX_FIRST == 10_000


# --- writing ---------------------------------------------------------------------------------------------------------


def test_overwriting_is_refused_by_default_and_replaces_when_allowed(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b", b"one")
    before = (tmp_path / "b" / MANIFEST).read_bytes()
    fails_with(lambda: tiny_bundle(tmp_path / "b", b"two"), str(tmp_path / "b"), "exists")
    assert (tmp_path / "b" / MANIFEST).read_bytes() == before
    replaced = write_bundle(tmp_path / "b", manifest(), {DENOISER: b"two"}, overwrite=True)
    assert replaced.read(DENOISER) == b"two"
    assert [item.name for item in tmp_path.iterdir()] == ["b"]


def test_a_broken_bundle_may_be_replaced(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b")
    (tmp_path / "b" / MANIFEST).write_text("{")
    assert write_bundle(tmp_path / "b", manifest(), {DENOISER: b"two"}, overwrite=True).read(DENOISER) == b"two"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_bundle_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("content")
    for name in ("empty", "full", "file"):
        fails_with(
            lambda name=name: write_bundle(tmp_path / name, manifest(), {DENOISER: b""}, overwrite=overwrite),  # type: ignore[misc]
            name,
            "not a bundle",
        )
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "content"
    assert list((tmp_path / "empty").iterdir()) == []


def test_overwriting_refuses_to_delete_what_is_not_the_bundles(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", b"one")
    (bundle.path / "notes.txt").write_text("mine")
    fails_with(
        lambda: write_bundle(bundle.path, manifest(), {DENOISER: b"two"}, overwrite=True), "notes.txt", "another path"
    )
    assert (bundle.path / "notes.txt").read_text() == "mine"
    assert load_bundle(bundle.path).read(DENOISER) == b"one"


class _FailingCall:
    """Makes the n-th call of a function fail as on a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, nth: int) -> None:
        original = getattr(owner, name)
        self.calls = 0

        def failing(*args: Any) -> Any:
            self.calls += 1
            if self.calls == nth:
                raise OSError(28, "No space left on device")
            return original(*args)

        monkeypatch.setattr(owner, name, failing)


FSYNC, RENAME = (os, "fsync"), (Path, "rename")


@pytest.mark.parametrize(("call", "nth"), [(FSYNC, 1), (FSYNC, 2), (FSYNC, 3), (RENAME, 1)])
def test_a_failing_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, str], nth: int
) -> None:
    _FailingCall(monkeypatch, *call, nth)
    with pytest.raises(OSError, match="No space"):
        write_bundle(tmp_path / "b", manifest(), {DENOISER: b"one", WEIGHTS: b"two"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("call", "nth"), [(FSYNC, 1), (FSYNC, 2), (RENAME, 1), (RENAME, 2)])
def test_a_failing_overwrite_keeps_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, str], nth: int, steps: int
) -> None:
    if call == RENAME and steps == 1:
        call, nth = (atomic_files, "_exchange"), 1
    tiny_bundle(tmp_path / "b", b"one")
    with monkeypatch.context() as patch:
        if steps == 2:
            patch.setattr(atomic_files, "_exchange", lambda *_: False)
        _FailingCall(patch, *call, nth)
        with pytest.raises(OSError, match="No space"):
            write_bundle(tmp_path / "b", manifest(), {DENOISER: b"two"}, overwrite=True)
    assert load_bundle(tmp_path / "b").read(DENOISER) == b"one"
    assert [item.name for item in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    "change",
    [
        {"defaults": {"temperature": float("nan")}},
        {"name": "\ud800"},
        {"provenance": {"when": object()}},
        {"provenance": {"huge": 10**30}},
        {"version": 4},
        {"format": "other"},
        {"classes": []},
    ],
)
def test_an_invalid_manifest_is_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    fails_with(lambda: tiny_bundle(tmp_path / "deep" / "b", **change))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_needs_its_denoiser(tmp_path: Path) -> None:
    fails_with(lambda: write_bundle(tmp_path / "b", manifest(), {WEIGHTS: b""}), DENOISER)
    assert list(tmp_path.iterdir()) == []


# --- calibrating -----------------------------------------------------------------------------------------------------


def test_a_calibration_is_added_without_touching_anything_else(tmp_path: Path) -> None:
    before = tiny_bundle(tmp_path / "b", remark="kept")
    os.chmod(before.path / MANIFEST, 0o640)
    file = (before.path / DENOISER).stat()
    after = with_calibration(before, CALIBRATION, level_weights=CURVE, defaults={"first": [0.5, 2]})
    assert after == load_bundle(tmp_path / "b")
    assert (after.model.calibration, after.model.level_weights) == (CALIBRATION, CURVE)
    assert after.model.defaults == dataclasses.replace(before.model.defaults, first=(0.5, 2.0))
    assert after.manifest == {
        **before.manifest,
        "defaults": {**before.manifest["defaults"], "first": [0.5, 2]},
        "calibration": CALIBRATION.to_dict(),
        "level_weights": CURVE.to_dict(),
    }
    assert after.model.identity != before.model.identity
    assert os.stat(after.path / MANIFEST).st_mode & 0o777 == 0o640
    kept = (after.path / DENOISER).stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (file.st_ino, file.st_mtime_ns)
    assert sorted(item.name for item in after.path.iterdir()) == [DENOISER, MANIFEST]


def test_a_second_calibration_replaces_the_first_and_keeps_what_is_not_given(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b")
    with_calibration(tmp_path / "b", CALIBRATION, level_weights=CURVE, defaults={"first": [0.5]})
    other = dataclasses.replace(CALIBRATION, limit=3.0)
    model = with_calibration(str(tmp_path / "b"), other).model
    assert (model.calibration, model.level_weights, model.defaults.first) == (other, CURVE, (0.5,))
    assert with_calibration(tmp_path / "b", other, defaults={"first": []}).model.defaults.first == ()


def test_a_calibration_fits_the_plan_that_it_is_of(tmp_path: Path) -> None:
    plan = PlanConfig(draws=128, levels=(0.1, 1.0), weighting="edm", first=(0.5,))
    entry = {key: value for key, value in plan.to_dict().items() if key != "draws"}
    tiny_bundle(tmp_path / "b")
    read = with_calibration(tmp_path / "b", dataclasses.replace(CALIBRATION, plan=entry)).model.calibration
    assert read is not None
    assert read.fits(plan)
    assert read.fits(dataclasses.replace(plan, draws=4))
    assert not read.fits(dataclasses.replace(plan, first=()))


def noised(method: str, noise: float, limit: float = 1.0) -> Calibration:
    """A calibration for noisy images."""
    return dataclasses.replace(CALIBRATION, limit=limit, plan={"method": method, "noise": noise, "levels": [0.6, 2]})


def test_calibrations_for_noisy_images_stand_beside_the_plain_one(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b")
    with_calibration(tmp_path / "b", CALIBRATION)
    for made in (noised("epndc", 0.5), noised("apndc", 0.5), noised("epndc", 0.25), noised("epndc", 0.5, 2.0)):
        model = with_calibration(tmp_path / "b", made).model
    assert model.calibration == CALIBRATION
    assert model.noised_calibrations == (noised("apndc", 0.5), noised("epndc", 0.25), noised("epndc", 0.5, 2.0))
    with_mean = dataclasses.replace(CALIBRATION, plan={**noised("apndc", 0.5).plan, "denoiser": "mean"})
    first, *rest = model.noised_calibrations
    assert with_calibration(tmp_path / "b", with_mean).model.noised_calibrations == (first, with_mean, *rest)
    plan = PlanConfig(8, levels=(0.6, 2), method="epndc", noise=0.5)
    assert model.calibration_for(plan) == noised("epndc", 0.5, 2.0)
    assert model.calibration_for(dataclasses.replace(plan, noise=0.4)) is None
    assert model.calibration_for(dataclasses.replace(plan, levels=(0.7, 2.0))) is None


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({}, "list"),
        (5, "list"),
        ([5], "object"),
        ([CALIBRATION.to_dict()], "method and noise"),
        ([{**noised("epndc", 0.5).to_dict(), "draws": 10**9}], "draws"),
        ([{**noised("epndc", 0.5).to_dict(), "limit": -1}], "limit"),
        ([noised("epndc", 0.5).to_dict()] * 257, "256"),
    ],
)
def test_bad_calibrations_for_noisy_images_are_refused(tmp_path: Path, entries: Any, named: str) -> None:
    fails_with(
        lambda: tiny_bundle(tmp_path / "b", noised_calibrations=entries),
        "noised_calibrations" if named in ("list", "256") else "calibration",
        named,
    )


@pytest.mark.parametrize("first", [[-1.0], [float("nan")], ["1"], [True], [object()]])
def test_a_calibration_that_is_not_valid_leaves_the_bundle_alone(tmp_path: Path, first: Any) -> None:
    tiny_bundle(tmp_path / "b")
    before = (tmp_path / "b" / MANIFEST).read_bytes()
    fails_with(lambda: with_calibration(tmp_path / "b", CALIBRATION, defaults={"first": first}), str(tmp_path / "b"))
    assert (tmp_path / "b" / MANIFEST).read_bytes() == before
    assert sorted(item.name for item in (tmp_path / "b").iterdir()) == [DENOISER, MANIFEST]


def test_a_bundle_that_changed_since_it_was_loaded_is_not_calibrated(tmp_path: Path) -> None:
    old = tiny_bundle(tmp_path / "b", b"one")
    new = write_bundle(tmp_path / "b", manifest(), {DENOISER: b"another"}, overwrite=True)
    fails_with(lambda: with_calibration(old, CALIBRATION), "changed")
    assert load_bundle(tmp_path / "b") == new


@pytest.mark.parametrize("name", [DENOISER, MANIFEST])
def test_calibrating_follows_no_links(tmp_path: Path, name: str) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    target = tmp_path / "elsewhere"
    (bundle.path / name).rename(target)
    (bundle.path / name).symlink_to(target)
    content = target.read_bytes()
    fails_with(lambda: with_calibration(bundle.path, CALIBRATION), str(bundle.path))
    assert target.read_bytes() == content
    assert (bundle.path / name).is_symlink()


def test_no_bundle_is_not_calibrated(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "b", tmp_path / "nothing"):
        fails_with(lambda path=path: with_calibration(path, CALIBRATION), MANIFEST)  # type: ignore[misc]
    assert list((tmp_path / "b").iterdir()) == []


def test_a_failing_calibration_keeps_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bundle(tmp_path / "b")
    before = (tmp_path / "b" / MANIFEST).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            with_calibration(tmp_path / "b", CALIBRATION)
    _FailingCall(monkeypatch, Path, "replace", 1)
    with pytest.raises(OSError, match="No space"):
        with_calibration(tmp_path / "b", CALIBRATION)
    assert (tmp_path / "b" / MANIFEST).read_bytes() == before
    assert sorted(item.name for item in (tmp_path / "b").iterdir()) == [DENOISER, MANIFEST]
