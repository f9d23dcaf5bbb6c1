"""Bundles: what is written is read, atomically; and every broken or hostile folder is refused in one line.

Nothing here runs a network; graphs are judged by the backends (test_backends.py).
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import fails_with, manifest, tiny_bundle

from fastdc import BundleError, load_bundle
from fastdc.bundle import DENOISER, MANIFEST, WEIGHTS, write_bundle

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
                "weighting": st.sampled_from(["uniform", "edm", "vlb", "exp", "min_snr"]),
                "loss": st.sampled_from(["l2", "l1", "huber"]),
                "temperature": _positive,
            },
        ),
        "network": st.none() | st.dictionaries(_text, _json, max_size=2),
        "provenance": st.dictionaries(_text, _json, max_size=3),
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
    assert {name: read.read(name) for name in read.files} == files
    assert read.model.identity == hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    read.verify()
    assert [item.name for item in path.parent.iterdir()] == ["b"]


def test_defaults_that_are_left_out_are_the_documented_ones(tmp_path: Path) -> None:
    defaults = tiny_bundle(tmp_path / "b", defaults={}).model.defaults
    assert (defaults.draws, defaults.levels, defaults.weighting) == (100, None, "uniform")
    assert (defaults.loss, defaults.temperature) == ("l2", 1.0)


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


class _FailingWrite:
    """Fails the n-th call of a Path method, as a full disk would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, nth: int) -> None:
        original = getattr(Path, method)
        self.calls = 0

        def failing(path: Path, *args: Any) -> Any:
            self.calls += 1
            if self.calls == nth:
                raise OSError(28, "No space left on device")
            return original(path, *args)

        monkeypatch.setattr(Path, method, failing)


@pytest.mark.parametrize(("method", "nth"), [("write_bytes", 1), ("write_bytes", 2), ("write_bytes", 3), ("rename", 1)])
def test_a_failing_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, nth: int) -> None:
    _FailingWrite(monkeypatch, method, nth)
    with pytest.raises(OSError, match="No space"):
        write_bundle(tmp_path / "b", manifest(), {DENOISER: b"one", WEIGHTS: b"two"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("method", "nth"), [("write_bytes", 1), ("write_bytes", 2), ("rename", 1), ("rename", 2)])
def test_a_failing_overwrite_keeps_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, nth: int
) -> None:
    tiny_bundle(tmp_path / "b", b"one")
    with monkeypatch.context() as patch:
        _FailingWrite(patch, method, nth)
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
        {"version": 2},
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


# --- refusing --------------------------------------------------------------------------------------------------------


# Path of a field, values that are refused there, what the message names.
_BAD: list[tuple[str, list[Any], str]] = [
    ("format", ["other", None], "format"),
    ("version", [0, 2, -1, "1", True, 1.0, None, [1]], "version"),
    ("name", [None, 5, ["x"], "a\nb", "\x1b[2J", "\ud800"], "name"),
    ("description", [5, {}, []], "description"),
    ("network", [5, "mlp", []], "network"),
    ("provenance", [5, "me", []], "provenance"),
    ("image", [None, [1, 2, 3], "1x2x3"], "image"),
    ("image.shape", [None, 5, [], [1, 2], [1, 2, 3, 4], [0, 2, 3], [1, -2, 3], [1, 2.0, 3], [True, 2, 3]], "shape"),
    ("image.shape", [[1, 10**9, 10**9], ["1", 2, 3], {"c": 1}, [2**40, 1, 1]], "shape"),
    ("image.range", [None, [], [1.0, -1.0], [0.0, 0.0], [0.0], [0, 1, 2], ["a", "b"], [False, True]], "range"),
    ("classes", [None, [], {}, "ab", [1, 2], ["a", None], ["a\tb"], ["\ud800"]], "classes"),
    ("null_class", [-1, 1.5, "2", True, 10**9], "null_class"),
    ("schedule", [None, [], "edm"], "schedule"),
    ("schedule.kind", ["ve", None, 5, [], {}], "kind"),
    ("schedule.rho", [7], "rho"),
    ("schedule.sigma_min", [0.0, -1.0, 10.0, "0.1", None, True], "min"),
    ("parameterization", [None, "edm", []], "parameterization"),
    ("parameterization.kind", ["eps", None, 5, []], "parameterization"),
    ("parameterization.beta", [1], "parameterization"),
    ("parameterization.sigma_data", [0, -1.0, "0.5", None, True, []], "sigma_data"),
    ("defaults", [None, [], 4], "defaults"),
    ("defaults.steps", [4], "steps"),
    ("defaults.draws", [0, -4, 1.5, "4", None, True], "draws"),
    ("defaults.levels", [[], [1.0], [1.0, 0.1], [0.0, 1.0], 5, ["a", "b"]], "levels"),
    ("defaults.weighting", ["none", None, 5, []], "weighting"),
    ("defaults.loss", ["l3", None, 5, {}], "loss"),
    ("defaults.temperature", [0, -1.0, "1", None, True], "temperature"),
    ("files", [None, [], "denoiser.onnx"], "files"),
    (f"files.{DENOISER}", [None], DENOISER),
    (f"files.{DENOISER}", [{"bytes": 7}], "sha256"),
    (f"files.{DENOISER}.bytes", [-1, 7.0, "7", None, True], "bytes"),
    (f"files.{DENOISER}.bytes", [6, 8, 2**60], "truncated"),
    (f"files.{DENOISER}.sha256", [None, "", "0" * 63, "G" * 64, "A" * 64, 5], "sha256"),
]


def _edit(bundle_path: Path, field: str, value: Any) -> None:
    """Puts a value at a dotted path of a manifest (file names keep their dot)."""
    whole = json.loads((bundle_path / MANIFEST).read_text())
    keys = field.replace(DENOISER, "\0").split(".")
    entry = whole
    for key in keys[:-1]:
        entry = entry[key.replace("\0", DENOISER)]
    entry[keys[-1].replace("\0", DENOISER)] = value
    (bundle_path / MANIFEST).write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("field", "value", "named"), [(field, value, named) for field, values, named in _BAD for value in values]
)
def test_every_bad_field_is_refused_by_name(tmp_path: Path, field: str, value: Any, named: str) -> None:
    tiny_bundle(tmp_path / "b")
    load_bundle(tmp_path / "b")
    _edit(tmp_path / "b", field, value)
    fails_with(lambda: load_bundle(tmp_path / "b"), str(tmp_path / "b"), named)


@pytest.mark.parametrize(
    "field", ["format", "version", "name", "image", "classes", "schedule", "parameterization", "defaults", "files"]
)
def test_every_missing_field_is_refused_by_name(tmp_path: Path, field: str) -> None:
    tiny_bundle(tmp_path / "b")
    whole = json.loads((tmp_path / "b" / MANIFEST).read_text())
    del whole[field]
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(whole))
    fails_with(lambda: load_bundle(tmp_path / "b"), field)


@pytest.mark.parametrize("field", ["description", "null_class", "network", "provenance"])
def test_optional_fields_may_be_left_out(tmp_path: Path, field: str) -> None:
    tiny_bundle(tmp_path / "b")
    whole = json.loads((tmp_path / "b" / MANIFEST).read_text())
    del whole[field]
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(whole))
    assert load_bundle(tmp_path / "b").model.null_class in (None, 2)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\x00\xff\xfe garbage",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"null",
        b"[]",
        b'"fastdc-bundle"',
        b'{"format": "fastdc-bundle", "version": NaN}',
        b'{"format": "fastdc-bundle", "version": 1' + b"0" * 5000 + b"}",
    ],
)
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    tiny_bundle(tmp_path / "b")
    (tmp_path / "b" / MANIFEST).write_bytes(text)
    fails_with(lambda: load_bundle(tmp_path / "b"), MANIFEST)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"temperature": 0.5', '"temperature": NaN'),
        ('"temperature": 0.5', '"temperature": 1e999'),
        ('"sigma_data": 0.5', '"sigma_data": Infinity'),
        ('"sigma_data": 0.5', '"sigma_data": 1' + "0" * 400),
        ('"timestep_scale": 0.25', '"timestep_scale": 1e999'),
        ("-1.0", "NaN"),
        ("-1.0", "-1e999"),
        ("-1.0", "-1" + "0" * 400),
    ],
)
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, old: str, new: str) -> None:
    tiny_bundle(tmp_path / "b")
    text = (tmp_path / "b" / MANIFEST).read_text()
    assert old in text
    (tmp_path / "b" / MANIFEST).write_text(text.replace(old, new, 1))
    fails_with(lambda: load_bundle(tmp_path / "b"), MANIFEST)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        ".hidden",
        MANIFEST,
        "x" * 300,
        "\ud800",
        "é",
    ],
)
def test_names_that_leave_the_folder_or_hide_in_it_are_refused(tmp_path: Path, name: str) -> None:
    tiny_bundle(tmp_path / "b")
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    _edit(tmp_path / "b", "files", {DENOISER: entry, name: entry})
    fails_with(lambda: load_bundle(tmp_path / "b"), "files", "plain file name")
    fails_with(
        lambda: write_bundle(tmp_path / "c", manifest(), {DENOISER: b"", name: b""}),
        "manifest" if name == "\ud800" else "files",
    )
    assert not (tmp_path / "c").exists()


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    for name in (DENOISER, MANIFEST):
        bundle = tiny_bundle(tmp_path / name)
        target = tmp_path / f"{name}-elsewhere"
        (bundle.path / name).rename(target)
        (bundle.path / name).symlink_to(target)
        fails_with(lambda path=bundle.path: load_bundle(path), str(bundle.path))  # type: ignore[misc]


def test_missing_things_are_named(tmp_path: Path) -> None:
    fails_with(lambda: load_bundle(tmp_path / "nothing"), "nothing", MANIFEST)
    (tmp_path / "folder").mkdir()
    fails_with(lambda: load_bundle(tmp_path / "folder"), "folder", MANIFEST)
    (tmp_path / "file").write_text("x")
    fails_with(lambda: load_bundle(tmp_path / "file"), "file", MANIFEST)
    (tmp_path / "nested" / MANIFEST).mkdir(parents=True)
    fails_with(lambda: load_bundle(tmp_path / "nested"), "nested", MANIFEST)
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle("x" * 5000)
    bundle = tiny_bundle(tmp_path / "b")
    os.remove(bundle.path / DENOISER)
    fails_with(lambda: load_bundle(bundle.path), DENOISER)
    fails_with(lambda: bundle.read(DENOISER), DENOISER)
    fails_with(lambda: bundle.read(WEIGHTS), WEIGHTS)


def test_a_flipped_byte_is_found_when_the_file_is_read(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", b"network")
    (bundle.path / DENOISER).write_bytes(b"netw0rk")
    loaded = load_bundle(bundle.path)
    fails_with(lambda: loaded.read(DENOISER), DENOISER, "sha256")
    fails_with(loaded.verify, DENOISER, "sha256")
