"""ErrorTable: saved and loaded bit for bit, joined only where runs agree, and nothing foreign is taken for one."""

import json
import os
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from worlds import classifier, fails_with, gaussian, unit_images

from fastdc import ErrorTable, InputError
from fastdc.errors import VERSION, mean_errors


def table(n: int = 2, k: int = 3, j: int = 4, *, seed: int = 0) -> ErrorTable:
    rng = np.random.default_rng(seed)
    return ErrorTable(
        errors=rng.random((n, k, j), dtype=np.float32),
        sigma=np.linspace(0.1, 1.0, j),
        weights=np.ones(j, np.float32),
        streams=rng.integers(0, 2**56, n),
        seed=7,
        class_names=tuple(f"class {i}" for i in range(k)),
        plan={"draws": j, "levels": [0.1, 1.0]},
        model="m",
        identity="abc",
    )


def assert_equal_tables(one: ErrorTable, other: ErrorTable) -> None:
    for item in fields(ErrorTable):
        left, right = getattr(one, item.name), getattr(other, item.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)  # NaN equals NaN
        else:
            assert left == right
            assert type(left) is type(right)


@st.composite
def tables(draw: st.DrawFn) -> ErrorTable:
    n, k, j = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    names = st.text(max_size=6)
    return ErrorTable(
        errors=draw(hnp.arrays(np.float32, (n, k, j), elements=st.floats(width=32))),
        sigma=draw(hnp.arrays(np.float64, j, elements=st.floats(1e-6, 1e6))),
        weights=draw(hnp.arrays(np.float32, j, elements=st.floats(0, 1e6, width=32))),
        streams=draw(hnp.arrays(np.int64, n, elements=st.integers(0, 2**56 - 1))),
        seed=draw(st.integers(0, 2**64 - 1)),
        class_names=tuple(draw(st.lists(names, min_size=k, max_size=k))),
        plan=draw(st.dictionaries(names, st.integers() | st.none() | st.floats(allow_nan=False))),
        model=draw(names),
        identity=draw(names),
        version=draw(names),
    )


@given(tables())
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, saved: ErrorTable) -> None:
    path = tmp_path_factory.mktemp("table") / "errors.npz"
    saved.save(path)
    assert_equal_tables(ErrorTable.load(path), saved)
    assert [item.name for item in path.parent.iterdir()] == ["errors.npz"]


def test_saving_replaces_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "errors"  # no suffix is added
    table(seed=1).save(path)
    table(seed=2).save(path)
    assert_equal_tables(ErrorTable.load(path), table(seed=2))
    assert [item.name for item in tmp_path.iterdir()] == ["errors"]


def test_a_saved_file_has_the_users_permissions(tmp_path: Path) -> None:
    table().save(tmp_path / "errors.npz")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "errors.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failing_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "errors.npz"
    table(seed=1).save(path)

    def failing(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", failing)
        fails_with(lambda: table(seed=2).save(path), "errors.npz", "No space", kind=InputError)
    assert_equal_tables(ErrorTable.load(path), table(seed=1))
    assert [item.name for item in tmp_path.iterdir()] == ["errors.npz"]
    fails_with(lambda: table().save(tmp_path / "missing" / "errors.npz"), "missing", kind=InputError)


# --- what is no table ------------------------------------------------------------------------------------------------


def members(saved: ErrorTable, path: Path) -> dict[str, Any]:
    saved.save(path)
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


def refused(path: Path, *parts: str) -> None:
    fails_with(lambda: ErrorTable.load(path), str(path), *parts, kind=InputError)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    refused(path)  # missing
    refused(tmp_path)  # a folder
    for content in (b"", b"\x00" * 100, b"PK\x03\x04garbage", b"just some text"):
        path.write_bytes(content)
        refused(path, "not a fastdc error table")
    np.save(tmp_path / "x.npy", np.zeros(3))
    refused(tmp_path / "x.npy", "not a fastdc error table")
    np.savez(path, images=np.zeros((2, 1, 4, 4)))
    refused(path, "not a fastdc error table")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("errors.npy", b"not an array")
    refused(path, "not a fastdc error table")


def test_every_truncation_and_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """No corruption may end in another exception, nor change a number unnoticed (zip members carry a CRC)."""
    path = tmp_path / "x.npz"
    saved = table()
    saved.save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        refused(path)
    for position in range(0, len(whole), 11):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            loaded = ErrorTable.load(path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert_equal_tables(loaded, saved)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "x.npz"
    content = members(table(), path)
    for name in ("errors", "meta"):
        np.savez(path, **{**content, name: np.array([Evil()], dtype=object)})
        refused(path, "not a fastdc error table")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("errors", np.zeros((2, 3), np.float32)),
        ("errors", np.zeros((2, 3, 5), np.float32)),
        ("errors", np.zeros((2, 2, 4), np.float32)),
        ("errors", np.zeros((2, 3, 4), np.float64)),
        ("errors", np.zeros((2, 3, 4), "U1")),
        ("errors", np.float32(0)),
        ("sigma", np.zeros(5)),
        ("sigma", np.zeros(4, np.float32)),
        ("weights", np.zeros((4, 1), np.float32)),
        ("streams", np.zeros(3, np.int64)),
        ("streams", np.int64(0)),
        ("streams", np.zeros(2)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **{**members(table(), path), name: value})
    refused(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "other"),
        ("format", None),
        ("version", VERSION + 1),
        ("version", "1"),
        ("version", None),
        ("seed", "7"),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("class_names", ["a", "b"]),
        ("class_names", "abc"),
        ("class_names", [1, 2, 3]),
        ("plan", []),
        ("model", None),
        ("identity", 5),
        ("fastdc", None),
    ],
)
def test_meta_data_that_does_not_fit_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "x.npz"
    content = members(table(), path)
    meta = {**json.loads(str(content["meta"])), name: value}
    np.savez(path, **{**content, "meta": np.array(json.dumps(meta))})
    refused(path, *(["format version", "upgrade"] if value == VERSION + 1 else [name]))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000])
def test_meta_data_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **{**members(table(), path), "meta": np.array(text)})
    refused(path, "not a fastdc error table")


# --- joining and reading ---------------------------------------------------------------------------------------------


def test_tables_of_several_runs_are_one_table() -> None:
    clf = classifier(gaussian())
    images = unit_images(5)
    whole = clf.errors(images, draws=3)
    parts = [clf.errors(images[:1], draws=3), clf.errors(images[1:4], draws=3), clf.errors(images[4:], draws=3)]
    assert_equal_tables(ErrorTable.concatenate(parts), whole)
    assert_equal_tables(ErrorTable.concatenate(parts[:1]), parts[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 8),
        ("class_names", ("a", "b", "c")),
        ("plan", {"draws": 4}),
        ("model", "other"),
        ("identity", ""),
        ("sigma", np.linspace(0.1, 2.0, 4)),
        ("weights", np.zeros(4, np.float32)),
    ],
)
def test_runs_that_differ_are_not_joined(name: str, value: Any) -> None:
    other = replace(table(), **{name: value})
    fails_with(lambda: ErrorTable.concatenate([table(), other]), name, kind=InputError)


def test_joining_nothing_is_refused() -> None:
    fails_with(lambda: ErrorTable.concatenate([]), "no table", kind=InputError)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.just(np.nan) | st.floats(0, 100, width=32),
    )
)
def test_means_and_evaluations_by_counting(errors: Any) -> None:
    counted = replace(table(*errors.shape), errors=errors)
    known = [[[value for value in row if not np.isnan(value)] for row in image] for image in errors.tolist()]
    assert counted.evaluations.tolist() == [sum(map(len, image)) for image in known]
    assert counted.evaluations.dtype == np.int64
    want = [[sum(row) / len(row) if row else np.nan for row in image] for image in known]
    np.testing.assert_allclose(counted.mean(), want, rtol=1e-12)
    assert counted.mean().dtype == np.float64
    np.testing.assert_array_equal(counted.mean(), mean_errors(errors))
