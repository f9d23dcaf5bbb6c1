"""Manifests: tables of image files, read as pandas reads them, and the ways a table can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastdc.data import (
    check_class_folders,
    find_splits,
    load_images,
    load_labelled,
    load_with_labels,
    prepare,
)
from fastdc.support import InputError

SHAPE = (1, 4, 4)
TABLE = """path,label,split,site,age
0.png,cat,train,north,7
"sub, folder/1.png",dog,train,"a ""quoted"" one, ü",
2.png,cat,val,north,61
3.png,dog,test,,61
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose level is ten times their number."""
    (tmp_path / "sub, folder").mkdir()
    for number, name in enumerate(("0", "sub, folder/1", "2", "3")):
        Image.new("L", (4, 4), 10 * number).save(tmp_path / f"{name}.png")
    return tmp_path


def written(folder: Path, text: str, name: str = "set.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def levels(images: NDArray[np.generic]) -> list[int]:
    return [int(level) for level in images[:, 0, 0, 0].tolist()]


def test_a_manifest_is_what_pandas_reads(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = written(folder, TABLE)
    want = pandas.read_csv(path, dtype=str, keep_default_na=False)
    for split in ("train", "val", "test"):
        loaded, rows = load_labelled(path, split=split), want[want.split == split]
        assert list(loaded.ids) == [str(folder / name) for name in rows.path]
        assert [loaded.class_names[k] for k in loaded.labels] == rows.label.tolist()
        assert {name: list(cells) for name, cells in loaded.columns.items()} == rows[["site", "age"]].to_dict("list")
        assert loaded.part(slice(0, 1)).columns["age"] == (rows.age.iloc[0],)
    assert find_splits(path) == ("train", "val", "test")
    classified = load_images(path, SHAPE, classes=["dog", "cat"])
    assert levels(classified.images) == [30]
    assert classified.labels is not None
    assert (classified.labels.tolist(), classified.columns["age"]) == ([0], ("61",))
    assert classified.notes == (f"split test of {path} used; it has train, val, test",)
    assert load_with_labels(path, SHAPE, classes=["cat", "dog"], split="train")[1].tolist() == [0, 1]
    check_class_folders(path, natural="train")
    assert levels(prepare([path, folder / "0.png"], SHAPE)) == [30, 0]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".CSV", ";"), (".tsv", "\t")])
def test_every_way_to_write_a_table(folder: Path, bom: str, suffix: str, mark: str) -> None:
    text = "\r\n".join(mark.join(row) for row in (("File Name", "Class"), ("2.png", "cat"), ("", ""), ("0.png", "dog")))
    path = written(folder, bom + text.replace(mark + "\r\n", "\r\n") + "\r\n", "set" + suffix)
    loaded = load_labelled(path)
    assert (levels(loaded.images), loaded.labels.tolist(), loaded.class_names) == ([20, 0], [0, 1], ("cat", "dog"))


def test_json_lines_and_folders_of_hugging_face(folder: Path) -> None:
    rows = [{"file_name": "2.png", "label": 1, "note": None}, {"label": 0, "file_name": "0.png", "note": [1, "b"]}]
    path = written(folder, "\n".join(map(json.dumps, rows)) + "\n\n", "metadata.jsonl")
    for source in (path, folder):
        loaded = load_labelled(source)
        assert (levels(loaded.images), loaded.labels.tolist(), loaded.class_names) == ([20, 0], [1, 0], ("0", "1"))
        assert loaded.columns == {"note": ("", '[1, "b"]')}
    root = folder / "root"
    root.mkdir()
    (root / "train").symlink_to(folder, target_is_directory=True)
    (root / "test").mkdir()
    Image.new("L", (4, 4), 99).save(root / "test/a.png")
    written(root / "test", "file_name,label\na.png,1\n", "metadata.csv")
    assert levels(load_labelled(root, natural="train").images) == [20, 0]
    classified = load_images(root, SHAPE, classes=["a", "b"])
    assert classified.labels is not None
    assert (levels(classified.images), classified.labels.tolist()) == ([99], [1])
    written(root, "file_name,label\ntrain/0.png,x\ntest/a.png,y\n", "metadata.csv")
    assert load_labelled(root, split="test").class_names == ("y",)
    (root / "metadata.csv").write_text("isic_id,label\n3,x\n")  # of other tools
    assert levels(load_labelled(root, natural="train").images) == [20, 0]


def test_parquet(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = pandas.DataFrame(
        {
            "path": ["0.png", "2.png", "3.png", None],
            "label": [1.0, 0.0, np.nan, 1.0],  # whole numbers, as pandas has them beside a missing one
            "site": pandas.Categorical(["a", None, "b", "b"]),
            "age": [1.5, np.nan, 2.0, 3.0],
            "box": [[1, 2], [3], None, None],
        }
    )
    table.to_parquet(folder / "set.parquet")
    loaded = load_labelled(folder / "set.parquet", skip_bad=True)
    assert (levels(loaded.images), loaded.labels.tolist(), loaded.class_names) == ([0, 20], [1, 0], ("0", "1"))
    assert loaded.columns == {"site": ("a", ""), "age": ("1.5", "")}
    whys = [why for _, why in loaded.left_out]
    assert whys == ["has no label in line 3 of set.parquet", "names no image file"]
    pandas.DataFrame({"image": [{"bytes": b"abc", "path": "0.png"}], "label": [0]}).to_parquet(folder / "hub.parquet")
    with pytest.raises(InputError, match=r"column image holds struct<.*, not paths: save them as files"):
        load_labelled(folder / "hub.parquet")
    (folder / "bad.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(InputError, match=r"bad\.parquet: cannot be read as a Parquet file: "):
        load_labelled(folder / "bad.parquet")


def test_leading_zeros_and_numbers_are_kept(folder: Path) -> None:
    path = written(folder, "path,label,patient\n0.png,007,0012\n2.png,10,3\n3.png,9,4\n")
    loaded = load_labelled(path)
    assert loaded.class_names == ("007", "10", "9")
    assert loaded.columns["patient"] == ("0012", "3", "4")
    numbers = load_labelled(written(folder, "path,label\n0.png,10\n2.png,9\n3.png,2\n", "numbers.csv"))
    assert (numbers.class_names, numbers.labels.tolist()) == (("2", "9", "10"), [2, 1, 0])
    model = load_labelled(path, classes=[f"c{k}" for k in range(11)])
    assert model.labels.tolist() == [7, 10, 9]
    assert any("read as numbers of classes" in note for note in model.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: expected a header with a column path, file_name, filename, file or image_path"),
        ("path,label\n", "has a header and no rows"),
        ("name,label\n0.png,a\n", r"has no column for the image files, .*; its columns are name, label"),
        ("0.png,cat\n2.png,dog\n", r"has no column for the image files, .*; its columns are 0\.png, cat"),
        ("idx\tlabel\tpredict\tradius\n0\t1\t1\t0.5\n", "has no column for the image files"),
        ("image,label,class,probabilities,errors,evaluations\n0.png,1,a,,,\n", "holds predictions of fastdc classify"),
        ("path,label\n0.png,a\n2.png\n", r"set\.csv: line 3 has 1 cells, and the header has 2"),
        ('path,label\n0.png,a\n"2.png,b\n', r"set\.csv: line 3: unexpected end of data"),
        ("path,label,label\n0.png,a,b\n", "has two columns 'label'"),
        ("path,site\n0.png,a\n", r"has no column for the labels \(label, class\)"),
        ("path,label\n0.png,\n", "has no label in any row"),
        ("path,label\n0.png,a\n0.png,b\n", r"line 3: .*0\.png has the class 'a' in line 2 and 'b' here"),
        ("path,label,split\n0.png,a,train\n2.png,a,extra\n", "has the splits train, extra: name one with --split"),
        ("path,label\n0.png,a\nx.png,b\n", r"1 of 2 images cannot be used: .*x\.png: does not exist"),
        ("path,label\n0.png,a\n~/x.png,b\n", r"1 of 2 images cannot be used: .*~/x\.png: does not exist"),
        ("path,label\n0.png,a\n2.png, \n", r"2\.png: has no label in line 3 of set\.csv"),
        ("path,label\n0.png,a\n,b\n", r"set\.csv, line 3: names no image file"),
    ],
)
def test_what_is_wrong_with_a_table(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_labelled(written(folder, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "0.png"}\n{"file_name": ', "line 2 is not JSON: "),
        ("[1]\n", "line 1 must be an object with a file_name"),
        ('{"file_name": "0.png"}\n{"file_name": "2.png", "label": 1}\n', "line 2 has 'label', which the first"),
        ('{"image": "0.png", "label": 3, "probabilities": {}, "errors": {}, "evaluations": 4}\n', "holds predictions"),
        ("[" * 100_000, "cannot be read as a table|is not JSON"),
    ],
)
def test_what_is_wrong_with_json_lines(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_labelled(written(folder, text, "set.jsonl"))


def test_other_encodings_and_sizes(folder: Path) -> None:
    path = folder / "set.csv"
    path.write_bytes(TABLE.encode("utf-16"))
    with pytest.raises(InputError, match=r"set\.csv: is not UTF-8 text: save it as CSV in UTF-8"):
        load_images(path, SHAPE)
    written(folder, TABLE)
    with pytest.raises(InputError, match=r"set\.csv: .* values would take"):
        load_images(path, SHAPE, max_pixels=32)


def test_paths_of_every_kind(folder: Path) -> None:
    """Absolute, with "..", of Windows, and twice the same; what leads nowhere is an image that cannot be used."""
    (folder / "gone.png").symlink_to(folder / "nowhere")
    rows = [str(folder / "0.png"), f"../{folder.name}/2.png", "sub, folder\\1.png", "2.png", "2.png", "gone.png"]
    path = written(folder, "path\n" + "\n".join(f'"{row}"' for row in rows))
    loaded = load_images(path, SHAPE, skip_bad=True)
    assert levels(loaded.images) == [0, 20, 10, 20, 20]
    assert loaded.labels is None
    assert loaded.left_out == ((str(folder / "gone.png"), "is a link that leads nowhere"),)
    assert r"1 path with \ read as /" in loaded.notes
    assert f"2 rows of {path} naming a file again" in loaded.notes


@pytest.mark.parametrize("other", ["./2.png", "sub, folder/../2.png", "link.png", "around/2.png"])
def test_one_file_under_two_names_has_one_class(folder: Path, other: str) -> None:
    (folder / "link.png").symlink_to(folder / "2.png")
    (folder / "around").symlink_to(folder, target_is_directory=True)
    path = written(folder, f'path,label\n2.png,cat\n3.png,dog\n"{other}",dog\n')
    with pytest.raises(InputError, match=r"line 4: .*\.png has the class 'cat' in line 2 and 'dog' here"):
        load_labelled(path)
    path = written(folder, f'path,label\n2.png,cat\n3.png,dog\n"{other}",cat\n')
    assert f"1 row of {path} naming a file again" in load_labelled(path).notes


def test_rows_without_labels_keep_their_images_where_none_are_needed(folder: Path) -> None:
    path = written(folder, "path,label\n0.png,a\n2.png,\n")
    loaded = load_images(path, SHAPE, classes=["a", "b"])
    assert (len(loaded), loaded.labels) == (2, None)
    assert loaded.notes == (f"1 row without a label: no label of {path} is used",)
    path = written(folder, "path,label,split\n0.png,a,train\n2.png,,\n3.png,b,train\n")
    labelled = load_labelled(path, natural="train")
    assert levels(labelled.images) == [0, 30]
    assert "1 row without a split, and not used" in labelled.notes


@pytest.mark.parametrize("colour", [False, True])
def test_the_layout_of_medmnist(tmp_path: Path, rng: np.random.Generator, colour: bool) -> None:
    sizes = {"train": 5, "val": 3, "test": 2}
    arrays = {}
    for split, n in sizes.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28, 3) if colour else (n, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 9, (n, 1), np.uint8)
    path = tmp_path / "pathmnist.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    assert find_splits(path) == tuple(sizes)
    for split in sizes:
        loaded = load_labelled(path, split=split)
        want = arrays[f"{split}_images"]
        np.testing.assert_array_equal(loaded.images, want.transpose(0, 3, 1, 2) if colour else want[:, None])
        np.testing.assert_array_equal(loaded.labels, arrays[f"{split}_labels"][:, 0])
    classified = load_images([path], (3 if colour else 1, 28, 28), classes=[f"c{k}" for k in range(9)])
    assert classified.notes[0] == f"split test of {path} used; it has train, val, test"
    assert len(classified) == 2
    with pytest.raises(InputError, match="has the splits train, val, test: name one with --split"):
        load_labelled(path)
    arrays["val_labels"] = np.zeros((3, 14), np.uint8)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"val_labels has 14 labels per image, shape \(3, 14\)"):
        load_labelled(path, split="val")


def test_links_are_alike_everywhere(tmp_path: Path) -> None:
    """To files, to folders, in a circle and to nowhere; in a folder, in class folders and by name."""
    for k, name in enumerate(("a", "b")):
        (tmp_path / "real" / name).mkdir(parents=True)
        Image.new("L", (4, 4), k).save(tmp_path / "real" / name / "0.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "real/a", target_is_directory=True)
    (root / "b").mkdir()
    (root / "b/1.png").symlink_to(tmp_path / "real/b/0.png")
    (root / "b/self").symlink_to(root / "b", target_is_directory=True)
    for load in loaders():
        assert levels(load(root, False)) == [0, 1]
    (root / "b/lost.png").symlink_to(tmp_path / "nowhere")
    (root / "b/loop").symlink_to(root / "b/loop")
    (root / "c").symlink_to(tmp_path / "unmounted", target_is_directory=True)
    for load in loaders():
        with pytest.raises(InputError, match=r"3 of 5 images cannot be used: .*is a link that leads nowhere"):
            load(root, False)
        assert levels(load(root, True)) == [0, 1]
    (root / "c").unlink()
    (root / "c").symlink_to(root / "b", target_is_directory=True)
    with pytest.raises(InputError, match=r"c: is the same folder as .*b: two classes of one folder"):
        load_labelled(root, skip_bad=True)


def loaders() -> list[Callable[[Path, bool], NDArray[np.generic]]]:
    return [
        lambda path, skip: load_images([path], SHAPE, skip_bad=skip).images,
        lambda path, skip: load_images([path], SHAPE, skip_bad=skip, classes=["b", "a"]).images,
        lambda path, skip: load_labelled(path, skip_bad=skip).images,
    ]


def test_what_other_systems_leave_in_folders(tmp_path: Path) -> None:
    for name in ("a/0.PNG", "a/Thumbs.db", "a/.DS_Store", "__MACOSX/a/._0.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    Image.new("L", (4, 4), 3).save(tmp_path / "a/0.PNG")
    loaded = load_labelled(tmp_path)
    assert (levels(loaded.images), loaded.class_names) == ([3], ("a",))
    assert loaded.notes == ("1 file skipped, not an image (Thumbs.db)",)
    assert levels(load_images([tmp_path], SHAPE).images) == [3]


def test_labels_that_are_alike_or_may_be_missing_are_noted(tmp_path: Path) -> None:
    rows = ["path,label"]
    for k, label in enumerate(("1", "01", "cat", "Cat", "nan", "dog")):
        Image.new("L", (4, 4), 10 * k).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{label}")
    table = tmp_path / "a.csv"
    table.write_text("\n".join(rows) + "\n")
    assert load_labelled(table).notes == (
        f"classes '01' and '1' of {table} are two",
        f"classes 'Cat' and 'cat' of {table} are two",
        f"'nan' of {table} is a class: leave the cell of a missing label empty",
    )


def test_splits_that_differ_in_case_are_one(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for k, split in enumerate(("train", "Train", "val", "TRAIN")):
        Image.new("L", (4, 4), 10 * k).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{k % 2},{split}")
    table = tmp_path / "a.csv"
    table.write_text("\n".join(rows) + "\n")
    assert find_splits(table) == ("train", "val")
    assert levels(load_labelled(table, natural="train").images) == [0, 10, 30]


def test_a_larger_budget_holds_for_what_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdc.data.budget.DEFAULT_MAX_PIXELS", 16)
    rows = ["path,label,split", *(f"{k}.png,{k % 2},train" for k in range(20))]
    table = tmp_path / "a.csv"
    table.write_text("\n".join(rows) + "\n")
    for k in range(20):
        Image.new("L", (4, 4), 10 * k).save(tmp_path / f"{k}.png")
    with pytest.raises(InputError, match="raise --max-pixels"):
        check_class_folders(table, natural="train")
    check_class_folders(table, natural="train", max_pixels=2**20)
    assert find_splits(table, 2**20) == ("train",)
