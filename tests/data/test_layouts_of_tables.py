"""Manifests made of published tables: the selection against a loop over pandas rows, files, splits and refusals."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdc.data import LAYOUTS, load_images, load_labelled, load_with_labels, make_manifest
from fastdc.support import InputError

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", "Cardiomegaly", "Pleural Effusion")
MARKS = ("", "0.0", "1.0", "-1.0")


def chexpert(folder: Path, patients: int = 60, seed: int = 0) -> Path:
    """A table like CheXpert-small's, below a folder that its paths name and the files do not have, and its images."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        for study, view in ((1, "view1_frontal"), (1, "view2_lateral"), (2, "view1_frontal")):
            name = f"train/patient{patient:05}/study{study}/{view}.jpg"
            marks = rng.choice(MARKS, 3, p=(0.4, 0.1, 0.35, 0.15)).tolist()
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), patient).save(place)
            kind = "Frontal" if "frontal" in view else "Lateral"
            rows.append((f"CheXpert-v1.0-small/{name}", "MF"[patient % 2], patient, kind, "AP", *marks))
    path = folder / "train.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def wanted(path: Path, finding: str, against: str) -> dict[str, str]:
    """The label of each patient that the published selection leaves, before classes are balanced."""
    found = {}
    for row in read(path):
        if not row["Path"].endswith("study1/view1_frontal.jpg"):
            continue
        own, other = (float(row[name] or 0) for name in (finding, against))
        if -1 in (own, other) or (own > 0) == (other > 0):
            continue
        found[row["Path"].split("/")[2]] = finding if own > 0 else against
    return found


@pytest.mark.parametrize("finding", ["Pleural Effusion", "Cardiomegaly"])
def test_chexpert_is_selected_as_published(tmp_path: Path, finding: str) -> None:
    table, out = chexpert(tmp_path), tmp_path / "made" / "set.csv"
    out.parent.mkdir()
    made = make_manifest(table, out, label_column=finding)
    assert made.layout == "chexpert"
    rows, expected = read(out), wanted(table, finding, "No Finding")
    least = min(Counter(expected.values()).values())
    assert Counter(row["label"] for row in rows) == {finding: least, "No Finding": least}
    assert all(expected[row["patient"]] == row["label"] for row in rows)
    assert len({row["patient"] for row in rows}) == len(rows)
    counts = Counter(row["split"] for row in rows)
    assert [counts[name] for name in ("train", "val", "test")] == pytest.approx(
        [1.6 * least, 0.2 * least, 0.2 * least], abs=1
    )
    assert {name: dict(of) for name, of in made.counts.items()} == {
        name: dict(Counter(row["label"] for row in rows if row["split"] == name)) for name in ("train", "val", "test")
    }
    data = load_labelled(out, split="train")
    assert data.class_names == tuple(sorted((finding, "No Finding")))
    numbers = [int(row["patient"].removeprefix("patient")) for row in rows if row["split"] == "train"]
    assert data.images[:, 0, 0, 0].tolist() == pytest.approx(numbers, abs=1)  # JPEG
    assert set(data.columns) >= {"Sex", "Age", "patient"}
    notes = " ".join(made.notes)
    assert "120 rows left out: not the first frontal view of a first study" in notes
    assert f"uncertain about {finding} or No Finding" in notes
    assert f"both of {finding} and No Finding, or neither" in notes


def test_one_seed_gives_one_manifest_and_the_table_of_a_split_stays_whole(tmp_path: Path) -> None:
    table = chexpert(tmp_path)
    texts = []
    for name, seed in (("a", 42), ("b", 42), ("c", 1)):
        make_manifest(table, tmp_path / f"{name}.csv", seed=seed)
        texts.append((tmp_path / f"{name}.csv").read_text())
    assert texts[0] == texts[1] != texts[2]
    made = make_manifest(table, tmp_path / "d.csv", split="test")
    kept = wanted(table, "Pleural Effusion", "No Finding")
    assert list(made.counts) == ["test"]
    assert [row["patient"] for row in read(tmp_path / "d.csv")] == list(kept)  # all, in their order
    more = make_manifest(table, tmp_path / "e.csv", balance=False)
    assert sum(sum(of.values()) for of in more.counts.values()) == len(kept)


def test_isic_names_become_files(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [f"ISIC_{k:07},IP_{k // 3},{k % 2}{'.0' * (k % 3 == 0)}" for k in range(40)]
    for k in range(40):
        Image.new("RGB", (4, 4), (k, 0, 0)).save(tmp_path / "images" / f"ISIC_{k:07}.jpg")
    table = tmp_path / "isic.csv"
    table.write_text("\n".join(["image_name,patient_id,target", *rows]))
    made = make_manifest(table, tmp_path / "m.csv", fractions=(0.5, 0.25, 0.25))
    assert made.layout == "isic"
    found = read(tmp_path / "m.csv")
    assert len(found) == 40
    assert all(row["label"] == ("benign", "melanoma")[int(float(row["target"]))] for row in found)
    of: dict[str, set[str]] = {}
    for row in found:
        of.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in of.values())  # no patient in two splits
    assert load_labelled(tmp_path / "m.csv", split="val").class_names == ("benign", "melanoma")
    with pytest.raises(InputError, match="fastdc manifest makes a manifest of this isic table"):
        load_images(table, (3, 4, 4))


def test_other_tables_are_split_by_what_belongs_together(tmp_path: Path) -> None:
    for k in range(30):
        Image.new("L", (4, 4), k).save(tmp_path / f"{k}.png")
    rows = [f"{k}.png,g{k % 3 or ''},eye{k // 2}" for k in range(30)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["image,grade,eye", *rows]))
    made = make_manifest(table, tmp_path / "m.csv", label_column="Grade", group_column="eye", balance=True)
    assert made.layout == "table"
    found = read(tmp_path / "m.csv")
    assert set(Counter(row["label"] for row in found).values()) == {10}
    splits: dict[str, set[str]] = {}
    for row in found:
        splits.setdefault(row["eye"], set()).add(row["split"])
    assert all(len(one) == 1 for one in splits.values())
    with pytest.raises(InputError, match="has no column for the labels, such as label, class"):
        make_manifest(table, tmp_path / "m.csv")
    blank = tmp_path / "b.csv"
    blank.write_text("path,label\n0.png,a\n1.png,\n2.png,b\n")
    assert make_manifest(blank, tmp_path / "m.csv", split="test").notes == ("1 rows left out: without a label",)


def table_of(folder: Path, header: str, rows: list[str]) -> Path:
    """A table t.csv beside pictures 0.png ... 29.png."""
    for k in range(30):
        Image.new("L", (4, 4), k).save(folder / f"{k}.png")
    (folder / "t.csv").write_text("\n".join([header, *rows]))
    return folder / "t.csv"


def splits_of(rows: list[dict[str, str]], column: str) -> dict[str, set[str]]:
    """The splits of each value of a column."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row[column], set()).add(row["split"])
    return found


def test_a_table_of_any_kind_is_split_by_its_patients_and_keeps_them(tmp_path: Path) -> None:
    rows = [f"{k}.png,{'ab'[k % 2]},{k % 3},P{k // 3 if k % 5 else ''},test" for k in range(30)]
    table = table_of(tmp_path, "path,label,site,Patient ID,split", [row.replace("P,", ",") for row in rows])
    made = make_manifest(table, tmp_path / "m.csv", fractions=(0.4, 0.3, 0.3))
    assert made.notes == ("its column split is replaced: --split NAME takes all rows as one split",)
    found = read(tmp_path / "m.csv")
    patients = splits_of([row for row in found if row["Patient ID"]], "patient")
    assert len(patients) == 10
    assert all(len(splits) == 1 for splits in patients.values())
    alone = [row for row in found if not row["Patient ID"]]
    assert len({row["patient"] for row in alone}) == 6  # a row without a value is no patient with the others
    assert len({row["split"] for row in alone}) > 1
    (tmp_path / "own.csv").write_text(table.read_text().replace("Patient ID", "patient"))
    make_manifest(tmp_path / "own.csv", tmp_path / "m.csv", group_column="site")
    found = read(tmp_path / "m.csv")
    assert all(len(splits) == 1 for splits in splits_of(found, "site").values())
    assert {row["patient"] for row in found} == {"", *(f"P{k}" for k in range(10))}  # the table's own column


def test_rows_of_one_file_are_in_one_split(tmp_path: Path) -> None:
    rows = [f"{k}.png,{label},p{k}{label}" for k in range(30) for label in "ab"]
    make_manifest(table_of(tmp_path, "path,label,patient", rows), tmp_path / "m.csv", fractions=(0.4, 0.3, 0.3))
    assert all(len(splits) == 1 for splits in splits_of(read(tmp_path / "m.csv"), "path").values())


@pytest.mark.parametrize(
    ("rows", "change", "words"),
    [
        (["path,label,Label", "0.png,a,b"], {}, "has two columns 'label'"),
        (["path,label", "0.png,a", "a\0b.png,b"], {}, "line 3 names no file"),
        (["path,label", "0.png,a"], {"fractions": (float("nan"), 0.5, 0.5)}, "fractions must be 3 shares"),
        (["path,label", "0.png,a"], {"fractions": ("a", 0.5, 0.5)}, "fractions must be 3 shares"),
        (["path,label", "0.png,a"], {"fractions": 0.5}, "fractions must be 3 shares"),
        (["path,label", "0.png,a"], {"against": "Edema"}, "against is for chexpert tables"),
        (["path,label", "0.png,a"], {"split": "test", "balance": True}, "split must be a name, without balance"),
        (["path,label", "0.png,a"], {"split": ""}, "split must be a name"),
        (["path,label", "0.png,a"], {"out": "nowhere/m.csv"}, "m.csv: cannot be written: "),
        (["path,label", "a" * 5000 + ",a"], {}, "the image files were not found"),
    ],
)
def test_hostile_tables_and_options_are_refused(
    tmp_path: Path, rows: list[str], change: dict[str, Any], words: str
) -> None:
    table = table_of(tmp_path, rows[0], rows[1:])
    given: dict[str, Any] = {"out": "m.csv", **change}
    with pytest.raises(InputError, match=words):
        make_manifest(table, tmp_path / given.pop("out"), **given)


def test_characters_that_are_no_text_are_refused(tmp_path: Path) -> None:
    table_of(tmp_path, "path,label", ["0.png,a"])
    (tmp_path / "t.jsonl").write_text('{"path": "0.png", "label": "\\ud800"}')
    with pytest.raises(InputError, match="has a character that is no text"):
        make_manifest(tmp_path / "t.jsonl", tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layout": "isic"}, "has no column 'image_name', which an ISIC table has"),
        ({"layout": "cheXpert"}, f"layout must be one of {', '.join(LAYOUTS)}"),
        ({"label_column": "Pleural effusions"}, "has no column 'Pleural effusions'.*did you mean 'Pleural Effusion'"),
        ({"root": "/nowhere"}, "the image files were not found, such as .*: --root FOLDER says where they are"),
        ({"fractions": (0.5, 0.5)}, "fractions must be 3 shares from 0 that sum to 1"),
        ({"fractions": (0.5, 0.6, -0.1)}, "fractions must be 3 shares"),
        ({"out": "m.tsv"}, "name that ends in .csv, got"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"out": tmp_path / "m.csv", **change}
    with pytest.raises(InputError, match=words):
        make_manifest(chexpert(tmp_path, 8), given.pop("out"), **given)
    assert not (tmp_path / "m.csv").exists()


def test_marks_and_tables_are_checked(tmp_path: Path) -> None:
    table = chexpert(tmp_path, 8)
    text = table.read_text()
    lines = text.splitlines()
    cells = lines[1].split(",")
    table.write_text("\n".join([lines[0], ",".join([*cells[:-1], "maybe"]), *lines[2:]]))
    with pytest.raises(InputError, match="line 2 has 'maybe' for Pleural Effusion: expected 1, 0, -1 or nothing"):
        make_manifest(table, tmp_path / "m.csv")
    with pytest.raises(InputError, match="fastdc manifest makes a manifest of this chexpert table"):
        load_labelled(table)
    table.write_text(lines[0] + "\n")
    with pytest.raises(InputError, match="has a header and no rows"):
        make_manifest(table, tmp_path / "m.csv")
    table.write_text("\n".join([lines[0], lines[2]]))
    with pytest.raises(InputError, match="no row is left: 1 rows left out: not the first frontal view"):
        make_manifest(table, tmp_path / "m.csv")


def test_classes_are_spelled_as_the_table_spells_them(tmp_path: Path) -> None:
    made = make_manifest(
        chexpert(tmp_path, 60), tmp_path / "m.csv", label_column="pleural effusion", against="no finding"
    )
    assert {label for counts in made.counts.values() for label in counts} == {"Pleural Effusion", "No Finding"}
    (tmp_path / "i.csv").write_text("image_name,Target\n" + "".join(f"{k},{k % 2}\n" for k in range(4)))
    for k in range(4):
        Image.new("L", (4, 4)).save(tmp_path / f"{k}.png")
    made = make_manifest(tmp_path / "i.csv", tmp_path / "m.csv", label_column="TARGET", split="test")
    assert set(made.counts["test"]) == {"benign", "melanoma"}


def test_one_class_alone_is_noted(tmp_path: Path) -> None:
    rows = [f"train/patient{k}/study1/view1_frontal.jpg,1,0" for k in range(4)]
    for row in rows:
        (tmp_path / row.partition(",")[0]).parent.mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / row.partition(",")[0])
    table = table_of(tmp_path, "Path,No Finding,Cardiomegaly", rows)
    made = make_manifest(table, tmp_path / "m.csv", label_column="Cardiomegaly")
    assert made.notes[-2:] == (
        "no row of Cardiomegaly is left",
        "all rows are of one class, No Finding: training needs two",
    )
    two = make_manifest(chexpert(tmp_path, 60), tmp_path / "two.csv")
    assert not any("one class" in note or "is left" in note for note in two.notes)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder: expected a table \(.csv, .tsv, .jsonl, .parquet\)"):
        make_manifest(tmp_path, tmp_path / "m.csv")


def test_a_published_table_is_no_labelled_set_yet(tmp_path: Path) -> None:
    """Wherever labels are needed, the message names what is missing and what makes it."""
    words = "has no column for the labels .*; fastdc manifest makes a manifest of this chexpert table"
    with pytest.raises(InputError, match=words):
        load_with_labels(chexpert(tmp_path, 4), (1, 4, 4), classes=("a", "b"))
