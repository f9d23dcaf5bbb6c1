"""Tables of results: plain values, chosen rows, files and HTML."""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.support import SHOWN_ROWS, chosen_rows, html_table, plain, save_table
from helpers.worlds import fails_with

COLUMNS: dict[str, Any] = {
    "label": np.array([3, 8]),
    "name": ['a, "b"\nc', "\udc80"],
    "p": np.array([0.1, np.nan]),
}


def save(path: Any, **more: Any) -> None:
    save_table(path, columns=COLUMNS, entries=lambda: [{"a": 1}], whole=lambda: {}, arrays=dict, **more)


def test_plain_values_are_json_whatever_they_were() -> None:
    value = {"a": (np.float32(0.5), np.int64(2), True, None), 3: np.array([[np.inf, 1.0]]), "n": [math.nan], "s": "x"}
    made = plain(value)
    assert made == {"a": [0.5, 2, True, None], "3": [[None, 1.0]], "n": [None], "s": "x"}
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_rows_are_chosen_as_numpy_chooses_them() -> None:
    every = np.arange(5)
    keys: list[Any] = [slice(1, 4), slice(None, None, -2), [3, -1], every[:0], every % 2 == 0]
    for key in keys:
        np.testing.assert_array_equal(chosen_rows(key, 5), every[key])
    assert len(np.atleast_1d(chosen_rows([], 5))) == 0
    for number in (0, -5, 4, np.int64(2), np.uint8(1)):
        found = chosen_rows(number, 5)
        assert type(found) is int
        assert found == every[number]


@pytest.mark.parametrize(
    "key", [1.0, "a", None, True, (0, 1), [True], [[1]], [1.5], [[1], [2, 3]], np.zeros((5, 5), bool), ["a"], {}]
)
def test_other_keys_are_refused_in_one_line(key: Any) -> None:
    fails_with(lambda: chosen_rows(key, 5), "images are chosen by", kind=InputError)


@pytest.mark.parametrize("key", [5, -6, [5], [0, -6]])
def test_rows_out_of_range_are_index_errors(key: Any) -> None:
    """As Python's sequences have it: loops by index end with one."""
    with pytest.raises(IndexError, match="out of range"):
        chosen_rows(key, 5)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_names_with_any_end_of_line_stay_in_their_field(tmp_path: Path, end: str) -> None:
    names = [f"a{end}b", end, "=cmd()"]
    save_table(tmp_path / "a.csv", columns={"name": names, "k": [1, 2, 3]}, entries=list, whole=dict, arrays=dict)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1:] == [[name, str(k)] for k, name in enumerate(names, 1)]
    assert (tmp_path / "a.csv").read_bytes().endswith(b"=cmd(),3\n")


def test_csv_keeps_any_text_and_leaves_unknown_values_empty(tmp_path: Path) -> None:
    save(tmp_path / "a.CSV")
    with (tmp_path / "a.CSV").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["label", "name", "p"], ["3", 'a, "b"\nc', "0.1"], ["8", "\\udc80", ""]]


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("old")

    def broken() -> Any:
        yield {"a": 1}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_table(tmp_path / "a.jsonl", columns={}, entries=broken, whole=dict, arrays=dict)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.jsonl", "old")]
    fails_with(lambda: save(tmp_path / "none" / "a.csv"), "cannot be written", "No such file", kind=InputError)
    fails_with(lambda: save(tmp_path / "a.xlsx"), "a.xlsx", ".csv, .json, .jsonl, .npz", kind=InputError)
    fails_with(lambda: save(tmp_path / "csv", more={".tsv": print}), ".npz, .tsv", kind=InputError)
    fails_with(lambda: save(3), "path", "got 3", kind=InputError)
    (tmp_path / "folder.csv").mkdir()
    fails_with(lambda: save(tmp_path / "folder.csv"), "cannot be written", kind=InputError)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "folder.csv"]


def test_html_escapes_all_text_and_shows_the_beginning() -> None:
    evil = "<script>alert('x')</script>"
    text = html_table(evil, {evil: [evil, "&"], "p": np.array([0.123456, np.nan])}, rows=2)
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") == 3
    assert "<td>0.1235</td>" in text
    assert "nan" not in text
    assert "more" not in text
    long = html_table("", {"i": np.arange(SHOWN_ROWS), "name": ["x" * 1000] * SHOWN_ROWS}, rows=1234)
    assert "and 1,214 more" in long
    assert len(long) < 4000
