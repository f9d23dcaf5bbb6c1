"""Prompts from CSV files, templates and lists of names; an unusable row is named by its line."""

import csv
from pathlib import Path

import pytest

from fastdc.bundle.prompts import MAX_CHARACTERS, Prompts, prompts_of, read_class_names, read_prompts
from fastdc.support.exceptions import InputError


def _write(tmp_path: Path, text: str, name: str = "prompts.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_a_table_in_any_order_of_columns_and_rows(tmp_path: Path) -> None:
    rows = [
        {"source": "x", "classidx": "1", "prompt": 'a "big", red dog', "classname": "dog"},
        {"source": "y", "classidx": "0", "prompt": "a cat", "classname": "cat"},
        {"source": "z", "classidx": "1", "prompt": "a hound\nat home", "classname": "dog"},
    ]
    path = tmp_path / "prompts.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # with a byte order mark
        writer = csv.DictWriter(file, fieldnames=["source", "classidx", "prompt", "classname"])
        writer.writeheader()
        writer.writerows(rows)
    prompts = read_prompts(path)
    assert prompts.texts == ('a "big", red dog', "a cat", "a hound\nat home")
    assert prompts.class_of == (1, 0, 1)
    assert prompts.class_names == ("cat", "dog")
    assert len(prompts) == 3


def test_spaces_empty_lines_unicode_and_classes_of_one_name(tmp_path: Path) -> None:
    path = _write(tmp_path, "prompt, classname, CLASSIDX\r\n\r\n a crane , crane , 0\r\n,,\r\n鶴 é,crane,1\r\n")
    prompts = read_prompts(path)
    assert prompts == Prompts(("a crane", "鶴 é"), (0, 1), ("crane", "crane"))


@pytest.mark.parametrize("name", ["class_name", "Class Name", "CLASSNAME", "class-name"])
@pytest.mark.parametrize("index", ["classidx", "class_idx", "class_index", "Class ID", "classid"])
def test_other_names_of_the_columns(tmp_path: Path, name: str, index: str) -> None:
    assert read_prompts(_write(tmp_path, f"{index},prompt,{name}\n0,a cat,cat\n")) == Prompts(
        ("a cat",), (0,), ("cat",)
    )
    both = f"class_id,{index},prompt,{name},classname,classidx\n7,8,a cat,no,cat,0\n"  # the exact names win
    if "classidx" not in index and "CLASSNAME" not in name:
        assert read_prompts(_write(tmp_path, both)).class_names == ("cat",)
    with pytest.raises(InputError, match="once each"):
        read_prompts(_write(tmp_path, "class_id,class_idx,prompt,class_name\n0,0,a cat,cat\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header that names prompt, class_name (or classname) and classidx once"),
        ("prompt,classname\na,b\n", "header that names"),
        ("prompt,prompt,classname,classidx\na,b,c,0\n", "once each"),
        ("prompt,classname,classidx\n", "holds no prompts"),
        ("prompt,classname,classidx\na,b,0\nc,d\n", "line 3: expected at least 3 fields, got 2"),
        ("prompt,classname,classidx\na,b,zero\n", "line 2: classidx must be a whole number from 0, got 'zero'"),
        ("prompt,classname,classidx\na,b,-1\n", "line 2: classidx"),
        ("prompt,classname,classidx\na,b,1.0\n", "line 2: classidx"),
        ("prompt,classname,classidx\na,b,²\n", "line 2: classidx"),
        ("prompt,classname,classidx\na,b,99999999999999999999\n", "line 2: classidx"),
        ("prompt,classname,classidx\n\n ,b,0\n", "line 3: prompt is empty"),
        ("prompt,classname,classidx\na,,0\n", "line 2: classname is empty"),
        ("prompt,classname,classidx\na,b,0\nc,d,0\n", "line 3: class 0 is called 'd', but 'b' on line 2"),
        ("prompt,classname,classidx\na,b,0\nc,d,2\n", "1 is missing"),
        ("prompt,classname,classidx\na,b,1\n", "0 is missing"),
        ('prompt,classname,classidx\n"a,b,0\n', "not a row of CSV"),
        ('prompt,classname,classidx\n"a" x,b,0\n', "line 2: not a row of CSV"),
        ("prompt,classname,classidx\n" + "a" * (MAX_CHARACTERS + 1) + ",b,0\n", "line 2: prompt must have at most"),
    ],
)
def test_bad_tables_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(_write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path)
    latin = tmp_path / "latin.csv"
    latin.write_bytes("prompt,classname,classidx\né,b,0\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8, byte 26"):
        read_prompts(latin)
    monkeypatch.setattr("fastdc.bundle.prompts.MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match="at most"):
        read_prompts(latin)


def test_templates_are_filled_class_by_class() -> None:
    prompts = prompts_of(["cat", "dog {x}"], ["a photo of a {}.", "a {} at night"])
    assert prompts.texts == ("a photo of a cat.", "a cat at night", "a photo of a dog {x}.", "a dog {x} at night")
    assert prompts.class_of == (0, 0, 1, 1)
    assert prompts.class_names == ("cat", "dog {x}")
    assert prompts_of(["cat"]).texts == ("a photo of a cat.",)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {name}", "{} {name}", "{}}"])
def test_templates_need_exactly_one_place(template: str) -> None:
    with pytest.raises(InputError, match="exactly one"):
        prompts_of(["cat"], [template])


def test_prompts_of_wrong_arguments() -> None:
    with pytest.raises(InputError, match="one text"):
        prompts_of("cat")
    with pytest.raises(InputError, match="one text"):
        prompts_of(["cat"], "a {}")
    with pytest.raises(InputError, match="at least one"):
        prompts_of([])
    with pytest.raises(InputError, match="at least one"):
        prompts_of(["cat"], [])
    with pytest.raises(InputError, match="name 1 of the classes is empty"):
        prompts_of(["cat", " "])


@pytest.mark.parametrize(
    ("texts", "class_of", "names", "message"),
    [
        ((), (), (), "at least one"),
        (("a",), (0, 1), ("x", "y"), "class each"),
        (("a", ""), (0, 1), ("x", "y"), "prompt 1 is empty"),
        (("a", "b"), (0, 2), ("x", "y"), "indices in \\[0, 2\\), got 2"),
        (("a", "b"), (0, 0), ("x", "y"), "class 1 \\('y'\\) has no prompt"),
    ],
)
def test_prompts_are_checked(
    texts: tuple[str, ...], class_of: tuple[int, ...], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Prompts(texts, class_of, names)


def test_class_names_of_lines_and_of_json(tmp_path: Path) -> None:
    assert read_class_names(_write(tmp_path, "\ufefftench\r\n great white shark \r\n\r\n")) == (
        "tench",
        "great white shark",
    )
    assert read_class_names(_write(tmp_path, ' ["tench", "鶴"]')) == ("tench", "鶴")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n \n", "holds no class names"),
        ("[]", "holds no class names"),
        ("a\n\nb\n", "line 2: the class name is empty"),
        ('["a", ""]', "entry 2: the class name is empty"),
        ('["a", 3]', "entry of type int"),
        ('["a", ', "starts like a JSON list but is not one"),
        ("[" * 100_000, "starts like a JSON list but is not one"),
    ],
)
def test_bad_class_names_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_class_names(_write(tmp_path, text))
