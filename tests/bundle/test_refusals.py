"""Bundles: every broken or hostile folder is refused with one line that names the fault.

No test here runs a network; the backends' tests check graphs.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fastdc import BundleError, load_bundle
from fastdc.bundle.folder import with_calibration, write_bundle
from fastdc.bundle.format import CLASSES, DENOISER, MANIFEST, MAX_FIRST, PREFIX, REST, WEIGHTS
from helpers.worlds import CALIBRATION, CURVE, fails_with, manifest, tiny_bundle

# Path of a field, invalid values for it, and the name that the message must contain.
_BAD: list[tuple[str, list[Any], str]] = [
    ("format", ["other", None], "format"),
    ("cost", [[1], {}, {"parameters": 1, "flops": 0}, {"parameters": 1, "flops": "9"}], "cost"),
    ("version", [0, 4, -1, "1", True, 1.0, None, [1]], "version"),
    ("name", [None, 5, ["x"], "a\nb", "\x1b[2J", "\x9b2J", "\ud800"], "name"),
    ("description", [5, {}, []], "description"),
    ("network", [5, "mlp", []], "network"),
    ("provenance", [5, "me", []], "provenance"),
    ("image", [None, [1, 2, 3], "1x2x3"], "image"),
    (
        "image.shape",
        [None, 5, [], [1, 2], [1, 2, 3, 4], [0, 2, 3], [1, -2, 3], [1, 2.0, 3], [True, 2, 3]],
        "image.shape",
    ),
    ("image.shape", [[1, 10**9, 10**9], ["1", 2, 3], {"c": 1}, [2**40, 1, 1]], "image.shape"),
    ("image.range", [None, [], [1.0, -1.0], [0.0, 0.0], [0.0], [0, 1, 2], ["a", "b"], [False, True]], "image.range"),
    ("image.window", [5, [], [1.0, -1.0], [0.0, 0.0], [0.0], [0, 1, 2], ["a", "b"], [False, True]], "image.window"),
    ("classes", [None, [], {}, "ab", [1, 2], ["a", None], ["a\tb"], ["\ud800"]], "classes"),
    ("null_class", [-1, 1.5, "2", True, 10**9], "null_class"),
    ("prompts", [5, [], "a", ["a", 1], ["a", "b\n"]], "prompts"),
    ("class_of", [None, [0], [0, 2], [-1, 1], [0, True], "01"], "class"),
    ("latent", [5, [1, 2, 3], {}, {"shape": [1, 2]}, {"shape": [1, 2, 2]}], "latent"),
    ("precision", [None, "float64", 16, []], "precision"),
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
    ("defaults.first", [None, 0.5, "1", {}, [0], [-1.0], ["1"], [True], [None], [[1.0]]], "first"),
    ("defaults.first", [[1.0] * (MAX_FIRST + 1)], "first"),
    ("calibration", [5, [], "race", True, {}, {"limit": 1.0}], "calibration"),
    ("calibration.limit", [None, -1.0, "1", True, []], "limit"),
    ("calibration.delta", [None, -0.1, 1.0, 2, "0.01"], "delta"),
    ("calibration.risk", [None, -0.1, 1, "0"], "risk"),
    ("calibration.bound", [None, -1.0, {}], "bound"),
    ("calibration.draws", [None, 0, 1.5, True, 2**62], "draws"),
    ("calibration.images", [0, "9", 2.0], "images"),
    ("calibration.seeds", [0, -1, None], "seeds"),
    ("calibration.plan", [None, [], "default"], "plan"),
    ("calibration.alpha", [0.01], "alpha"),
    ("level_weights", [5, [], "edm", True, {}, {"ratio": [1.0]}], "level_weights"),
    ("level_weights.ratio", [None, [], [1.0], [2.0, 1.0], [0.0, 1.0], ["1", "2"], {"a": 1}, "12"], "level_weights"),
    ("level_weights.weight", [None, [], [1.0], [0, 0], [-1.0, 1.0], [True, True], [[1], [2]]], "level_weights"),
    ("level_weights.bins", [20], "level_weights"),
    ("training", [5, [], "much", True], "training"),
    *(
        ("training", [{"class_counts": counts}], "class_counts")
        for counts in (5, [], [1], [1, 2, 3], [0, 0], [1, -1], [1, 1.5], ["1", 2], {"a": 1, "b": 2})
    ),
    ("files", [None, [], "denoiser.onnx"], "files"),
    (f"files.{DENOISER}", [None], DENOISER),
    (f"files.{DENOISER}", [{"bytes": 7}], "sha256"),
    (f"files.{DENOISER}.bytes", [-1, 7.0, "7", None, True], "bytes"),
    (f"files.{DENOISER}.bytes", [6, 8, 2**60], "truncated"),
    (f"files.{DENOISER}.sha256", [None, "", "0" * 63, "G" * 64, "A" * 64, 5], "sha256"),
]


def _edit(bundle_path: Path, field: str, value: Any) -> None:
    """Sets the field at a dotted path of a manifest; file names keep their dot."""
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
    bundle = tiny_bundle(tmp_path / "b", prompts=["an a", "a b"], class_of=[0, 1])
    with_calibration(bundle, CALIBRATION, level_weights=CURVE, defaults={"first": [0.5]})
    _edit(tmp_path / "b", field, value)
    fails_with(lambda: load_bundle(tmp_path / "b"), str(tmp_path / "b"), named)


@pytest.mark.parametrize("part", [PREFIX, CLASSES])
def test_parts_of_the_denoiser_need_its_rest(tmp_path: Path, part: str) -> None:
    files = {DENOISER: b"whole", part: b"part"}
    fails_with(lambda: write_bundle(tmp_path / "b", manifest(), files), REST)
    assert write_bundle(tmp_path / "b", manifest(), {**files, REST: b"rest"}).manifest["version"] == 2


@pytest.mark.parametrize("field", ["pair_flops", "class_flops", "cell_flops"])
@pytest.mark.parametrize("value", [None, "9", -1, True])
def test_a_denoiser_in_parts_states_what_each_costs(tmp_path: Path, field: str, value: Any) -> None:
    cost = {"parameters": 0, "flops": 1, "pair_flops": 0, "class_flops": 0, "cell_flops": 0}
    files = {DENOISER: b"whole", REST: b"rest"}
    assert write_bundle(tmp_path / "a", {**manifest(), "cost": cost}, files).flops == 1
    fails_with(lambda: write_bundle(tmp_path / "b", {**manifest(), "cost": {**cost, field: value}}, files), field)


@pytest.mark.parametrize(
    "field", ["format", "version", "name", "image", "classes", "schedule", "parameterization", "defaults", "files"]
)
def test_every_missing_field_is_refused_by_name(tmp_path: Path, field: str) -> None:
    tiny_bundle(tmp_path / "b")
    whole = json.loads((tmp_path / "b" / MANIFEST).read_text())
    del whole[field]
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(whole))
    fails_with(lambda: load_bundle(tmp_path / "b"), field)


def test_unknown_fields_outside_the_defaults_are_ignored(tmp_path: Path) -> None:
    """So version 1 could gain calibrations: an older reader ignores them and evaluates every class in full."""
    bundle = tiny_bundle(tmp_path / "b", remark={"anything": [1]})
    assert load_bundle(bundle.path).model == dataclasses.replace(
        tiny_bundle(tmp_path / "c").model, identity=bundle.model.identity
    )


@pytest.mark.parametrize(
    "field", ["description", "null_class", "network", "provenance", "calibration", "level_weights"]
)
def test_optional_fields_may_be_left_out(tmp_path: Path, field: str) -> None:
    tiny_bundle(tmp_path / "b")
    with_calibration(tmp_path / "b", CALIBRATION, level_weights=CURVE)
    whole = json.loads((tmp_path / "b" / MANIFEST).read_text())
    del whole[field]
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(whole))
    without = load_bundle(tmp_path / "b").model
    (tmp_path / "b" / MANIFEST).write_text(json.dumps({**whole, field: None}))
    null = load_bundle(tmp_path / "b").model
    assert without == dataclasses.replace(null, identity=without.identity)
    assert without.null_class == (None if field == "null_class" else 2)
    assert without.calibration == (None if field == "calibration" else CALIBRATION)
    assert without.level_weights == (None if field == "level_weights" else CURVE)


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
        ('"limit": 1.5', '"limit": 1e999'),
        ('"bound": 7.5', '"bound": Infinity'),
        ('"weight": [\n      0.5', '"weight": [\n      1e999'),
    ],
)
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, old: str, new: str) -> None:
    with_calibration(tiny_bundle(tmp_path / "b"), CALIBRATION, level_weights=CURVE)
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


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
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
