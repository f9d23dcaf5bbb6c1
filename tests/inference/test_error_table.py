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

from fastdc import ErrorTable, InputError
from fastdc.diffusion.plan import PlanConfig, make_plan
from fastdc.inference.error_table import mean_errors
from fastdc.inference.error_table_file import VERSION
from helpers.worlds import classifier, fails_with, gaussian, unit_images


def table(n: int = 2, k: int = 3, j: int = 4, *, seed: int = 0, full: bool = False) -> ErrorTable:
    """A ragged table; some class of it has no draw and some class all, unless it is to be full."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, j + 1, (n, k), np.int32)
    counts.flat[: min(2, counts.size)] = [0, j][: counts.size]
    if full:
        counts[:] = j
    return ErrorTable(
        counts=counts,
        values=rng.random(counts.sum(), dtype=np.float32),
        sigma=np.linspace(0.1, 1.0, j),
        weights=np.ones(j, np.float32),
        streams=rng.integers(0, 2**56, n),
        seed=7,
        class_names=tuple(f"class {i}" for i in range(k)),
        plan={"draws": j, "levels": [0.1, 1.0]},
        model="m",
        identity="abc",
        rule="full" if full else "race",
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
    counts = draw(hnp.arrays(np.int32, (n, k), elements=st.integers(0, j)) | st.just(np.full((n, k), j, np.int32)))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return ErrorTable(
        counts=counts,
        values=draw(hnp.arrays(np.float32, int(counts.sum()), elements=finite)),
        sigma=draw(hnp.arrays(np.float64, j, elements=st.floats(1e-6, 1e6))),
        weights=draw(hnp.arrays(np.float32, j, elements=st.floats(0, 1e6, width=32))),
        streams=draw(hnp.arrays(np.int64, n, elements=st.integers(0, 2**56 - 1))),
        seed=draw(st.integers(0, 2**64 - 1)),
        class_names=tuple(draw(st.lists(names, min_size=k, max_size=k))),
        plan=draw(st.dictionaries(names, st.integers() | st.none() | st.floats(allow_nan=False))),
        model=draw(names),
        identity=draw(names),
        rule=draw(names),
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


def write_meta(path: Path, saved: ErrorTable, changes: dict[str, Any], **arrays: Any) -> None:
    """Saves a table with other meta data and, if any are given, these arrays instead of its own."""
    content = members(saved, path)
    meta = {**json.loads(str(content.pop("meta"))), **changes}
    np.savez(path, **(arrays or content), meta=np.array(json.dumps(meta)))


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
        archive.writestr("meta.npy", b"not an array")
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
    for name in ("values", "meta"):
        np.savez(path, **{**content, name: np.array([Evil()], dtype=object)})
        refused(path, "not a fastdc error table")
    assert not (tmp_path / "owned").exists()


COUNTS = np.array([[0, 4, 1], [2, 0, 3]], np.int32)
"""Counts that fit :func:`table`'s other arrays, with ten values."""

UNFIT: list[tuple[str, dict[str, Any]]] = [
    ("counts", {"counts": COUNTS[0]}),
    ("counts", {"counts": COUNTS[0, 0]}),
    ("counts", {"counts": COUNTS.astype(np.int64)}),
    ("counts", {"counts": COUNTS.astype(np.float32)}),
    ("counts", {"counts": np.full((2, 3), "4")}),
    ("0..4", {"counts": np.array([[5, 0, 0], [2, 0, 3]], np.int32)}),
    ("0..4", {"counts": np.array([[-1, 4, 2], [2, 0, 3]], np.int32)}),
    ("0..4", {"counts": np.full((2, 3), 2**31 - 1, np.int32), "values": np.zeros(0, np.float32)}),
    ("(9,)", {"counts": np.array([[0, 3, 1], [2, 0, 3]], np.int32)}),
    ("values", {"values": np.zeros(9, np.float32)}),
    ("values", {"values": np.zeros(11, np.float32)}),
    ("values", {"values": np.zeros(10)}),
    ("values", {"values": np.zeros((1, 10), np.float32)}),
    ("values", {"values": np.zeros(10, ">f4")}),
    ("finite, found nan", {"values": np.array([*[0] * 9, np.nan], np.float32)}),
    ("finite, found inf", {"values": np.array([np.inf, *[0] * 9], np.float32)}),
    ("finite, found -inf", {"values": np.array([0, -np.inf, *[0] * 8], np.float32)}),
    ("weights", {"sigma": np.zeros(5)}),
    ("0..3", {"sigma": np.zeros(3)}),
    ("0..0", {"sigma": np.float64(0)}),
    ("sigma", {"sigma": np.zeros(4, np.float32)}),
    ("sigma", {"sigma": np.zeros((4, 1))}),
    ("weights", {"weights": np.zeros((4, 1), np.float32)}),
    ("weights", {"weights": np.zeros(4)}),
    ("streams", {"streams": np.zeros(3, np.int64)}),
    ("streams", {"streams": np.int64(0)}),
    ("streams", {"streams": np.zeros(2)}),
]


@pytest.mark.parametrize(("named", "arrays"), UNFIT)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, named: str, arrays: dict[str, Any]) -> None:
    valid = replace(table(), counts=COUNTS, values=np.arange(10, dtype=np.float32))
    changes: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    fails_with(lambda: replace(valid, **changes), named, kind=InputError)
    path = tmp_path / "x.npz"
    np.savez(path, **{**members(valid, path), **arrays})
    refused(path, named)


def test_an_array_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    content = members(table(), path)
    for name in content:
        np.savez(path, **{other: array for other, array in content.items() if other != name})
        refused(path, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "other"),
        ("format", None),
        ("version", VERSION + 1),
        ("version", 1),
        ("version", 0),
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
        ("rule", None),
        ("rule", 5),
    ],
)
def test_meta_data_that_does_not_fit_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "x.npz"
    write_meta(path, table(), {name: value})
    refused(path, *(["format version", "upgrade"] if name == "version" else [name]))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000])
def test_meta_data_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **{**members(table(), path), "meta": np.array(text)})
    refused(path, "not a fastdc error table")


# --- ragged and dense ------------------------------------------------------------------------------------------------


@given(tables())
def test_dense_errors_are_the_values_in_order(made: ErrorTable) -> None:
    values = iter(made.values.tolist())
    want = [
        [[next(values) if j < count else np.nan for j in range(made.draws)] for count in image]
        for image in made.counts.tolist()
    ]
    np.testing.assert_array_equal(made.errors, np.reshape(want, made.errors.shape))
    assert made.errors.dtype == np.float32
    assert not made.errors.flags.writeable


def test_a_full_table_is_dense_without_a_copy() -> None:
    made = table(3, full=True)
    assert np.shares_memory(made.errors, made.values)
    assert made.values.flags.writeable, "only the view is read-only"


def plan_of(draws: int) -> Any:
    world = gaussian()
    return world.model, make_plan(world.schedule, world.model.parameterization, PlanConfig(draws=draws))


def test_a_run_gives_rows() -> None:
    model, plan = plan_of(4)
    want = table(3)
    rows = [(part.counts[0], part.values) for part in want.chunks(1)]
    streams = np.arange(3)
    made = ErrorTable.from_rows(model, plan, streams, 5, rows, rule="race")
    np.testing.assert_array_equal(made.errors, want.errors)
    np.testing.assert_array_equal(made.sigma, plan.levels.sigma / plan.levels.alpha)
    np.testing.assert_array_equal(made.weights, plan.rows[:, 6])
    assert (made.seed, made.rule, made.plan, made.class_names) == (5, "race", plan.config.to_dict(), model.class_names)
    nothing = (np.zeros(3, np.int32), np.empty(0, np.float32))
    assert ErrorTable.from_rows(model, plan, np.arange(2), 0, [nothing, rows[0]]).evaluations[0] == 0
    assert ErrorTable.from_rows(model, plan, np.arange(0), 0, []).errors.shape == (0, 3, 4)


def test_rows_that_do_not_fit_are_refused() -> None:
    model, plan = plan_of(4)
    one = (np.array([1, 0, 2], np.int32), np.ones(3, np.float32))
    more, fewer = (one[0], np.ones(4, np.float32)), (one[0], np.ones(2, np.float32))
    cases: list[tuple[list[Any], str]] = [
        ([one], "streams"),
        ([one, one, one], "streams"),
        ([more, fewer], "image 0"),  # though all values are as many as all counts
        ([one, (np.ones(2, np.int32), np.ones(2, np.float32))], "image 1"),
        ([one, (np.array([5, 0, 0], np.int32), np.ones(5, np.float32))], "0..4"),
        ([one, (one[0], np.full(3, np.nan, np.float32))], "finite"),
        ([one, (one[0], np.ones(3))], "float32"),
    ]
    for rows, named in cases:
        fails_with(lambda r=rows: ErrorTable.from_rows(model, plan, np.arange(2), 0, r), named, kind=InputError)  # type: ignore[misc]


@given(tables(), st.integers(0, 4), st.integers(0, 4))
def test_rows_are_the_table_of_some_images(made: ErrorTable, start: int, stop: int) -> None:
    part = made.rows(start, stop)
    np.testing.assert_array_equal(part.errors, made.errors[start:stop])
    np.testing.assert_array_equal(part.streams, made.streams[start:stop])
    assert len(part) == len(made.errors[start:stop])


@given(tables(), st.integers(1, 40))
def test_chunks_are_bounded_and_join_to_the_table(made: ErrorTable, cells: int) -> None:
    parts = list(made.chunks(cells))
    assert all(part.errors.size <= cells or len(part) == 1 for part in parts)
    assert_equal_tables(ErrorTable.concatenate(parts), made)
    assert all(np.shares_memory(part.values, made.values) for part in parts if len(part.values))


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
        ("rule", "full"),
        ("sigma", np.linspace(0.1, 2.0, 4)),
        ("weights", np.zeros(4, np.float32)),
    ],
)
def test_runs_that_differ_are_not_joined(name: str, value: Any) -> None:
    other = replace(table(), **{name: value})
    fails_with(lambda: ErrorTable.concatenate([table(), other]), name, kind=InputError)


def test_joining_nothing_is_refused() -> None:
    fails_with(lambda: ErrorTable.concatenate([]), "no table", kind=InputError)


@given(tables())
def test_means_and_evaluations_by_counting(made: ErrorTable) -> None:
    known = [[[value for value in row if not np.isnan(value)] for row in image] for image in made.errors.tolist()]
    assert made.evaluations.tolist() == [sum(map(len, image)) for image in known]
    assert made.evaluations.dtype == np.int64
    want = [[sum(row) / len(row) if row else np.nan for row in image] for image in known]
    slack = 4 * np.finfo(np.float64).eps * np.abs(made.values).max(initial=0)  # values of both signs may cancel
    np.testing.assert_allclose(made.mean(), np.reshape(want, made.counts.shape), rtol=0, atol=slack)
    assert made.mean().dtype == np.float64
    np.testing.assert_array_equal(made.mean(), mean_errors(made.errors))


def test_means_do_not_depend_on_the_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(7, 3, 1000)
    whole = made.mean()
    np.testing.assert_array_equal(
        whole, [[mean_errors(row[None, None])[0, 0] for row in image] for image in made.errors]
    )
    monkeypatch.setattr(ErrorTable.chunks, "__defaults__", (2 * 3 * 1000,))
    np.testing.assert_array_equal(made.mean(), whole)


def test_a_packed_table_has_the_evaluated_classes_of_each_image() -> None:
    rng = np.random.default_rng(0)
    counts = np.where(rng.random((40, 9)) < 0.3, rng.integers(1, 5, (40, 9)), 0).astype(np.int32)
    counts[:, 4] = 2  # one at least
    values = rng.random(counts.sum(), dtype=np.float32)
    large = table(40, 9)
    large = replace(large, counts=counts, values=values)
    packed, classes = large.packed()
    assert packed.counts.shape[1] == (counts > 0).sum(axis=1).max() < 9
    for i in range(40):
        known = np.flatnonzero(counts[i])
        assert classes[i].tolist() == [*known.tolist(), *[-1] * (classes.shape[1] - len(known))]
        np.testing.assert_array_equal(packed.errors[i, : len(known)], large.errors[i, known])
    empty = large.rows(0, 0)
    assert empty.packed()[0] is empty
