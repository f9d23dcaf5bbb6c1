"""Certification files: a written file is read back, other programs' files are read, and damage is named."""

import csv
import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.records import (
    COHEN,
    HEADER,
    OWN,
    UNKNOWN,
    manifest_path,
    parse_records,
    read_records,
    record_line,
    records_of,
)
from fastdc.support.exceptions import InputError

# As the program of Cohen et al. prints them: three digits, "{:.3}", and str(timedelta).
COHENS = (
    "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    "0\t3\t3\t1.21\t1\t0:00:15.123456\n"
    "20\t8\t-1\t0.0\t0\t0:00:14\n"
    "40\t8\t1\t0.0325\t0\t1 day, 2:00:00.5\n"
)
MANIFEST = {"format": "fastdc-certification", "version": 1, "indices": [0, 10, 2]}


def certificate(**changes: object) -> Certificate:
    values: dict[str, object] = {"label": 3, "radius": 0.1 + 0.2, "p_lower": 2 / 3, "successes": 990, "copies": 1000}
    values |= {"selection_copies": 100, "evaluations": 31234, "seconds": 75.25, **changes}
    return Certificate(**values)  # type: ignore[arg-type]


def place(folder: Path, text: str | bytes, manifest: object = None) -> Path:
    file = folder / "records.tsv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    if manifest is not None:
        manifest_path(file).write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return file


def refused(file: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(InputError) as caught:
        read_records(file)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message.removeprefix(str(file))


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_record_is_cohens_columns_and_then_ours() -> None:
    line = record_line(7, 3, certificate()).decode()
    assert COHEN == ("idx", "label", "predict", "radius", "correct", "time")
    assert OWN == ("p_lower", "successes", "copies", "selection_copies", "evaluations")
    assert line == "7\t3\t3\t0.30000000000000004\t1\t0:01:15.250000\t0.6666666666666666\t990\t1000\t100\t31234\n"


@given(
    idx=st.integers(0, 2**52),
    label=st.integers(UNKNOWN, 999),
    predict=st.integers(ABSTAIN, 999),
    radius=st.floats(0, 1e6),
    p_lower=st.floats(0, 1),
    counts=st.lists(st.integers(0, 2**50), min_size=2, max_size=2).map(sorted),
    seconds=st.integers(0, 10**12).map(lambda micro: micro / 1e6),
)
def test_what_is_written_is_read_back(
    idx: int, label: int, predict: int, radius: float, p_lower: float, counts: list[int], seconds: float
) -> None:
    successes, copies = counts
    found = certificate(
        label=predict, radius=radius, p_lower=p_lower, successes=successes, copies=copies, seconds=seconds
    )
    content = HEADER + record_line(idx, label, found)
    table = {name: column[0] for name, column in parse_records(content, Path("x")).items()}
    assert (table["idx"], table["label"], table["predict"]) == (idx, label, predict)
    assert (table["radius"], table["p_lower"]) == (radius, p_lower)  # to the last bit
    assert (table["successes"], table["copies"]) == (successes, copies)
    assert (table["selection_copies"], table["evaluations"]) == (100, 31234)
    assert table["correct"] == (1 if label == predict and label >= 0 else 0)
    assert table["time"] == pytest.approx(seconds, abs=1e-6)
    (row,) = csv.DictReader(content.decode().splitlines(), dialect="excel-tab")  # as any other program
    assert float(row["radius"]) == radius
    hours, minutes, rest = row["time"].split(":")
    assert timedelta(hours=int(hours), minutes=int(minutes), seconds=float(rest)) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "changes", [{"radius": np.inf}, {"radius": np.nan}, {"radius": -1.0}, {"p_lower": 1.5}, {"seconds": -1.0}]
)
def test_a_certificate_that_cannot_be_is_not_written(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match="image 4: a certificate has a finite radius"):
        record_line(4, 3, certificate(**changes))


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_of_cohens_program_is_read(tmp_path: Path) -> None:
    records = read_records(place(tmp_path, COHENS))
    assert records.idx.tolist() == [0, 20, 40]
    assert records.label.tolist() == [3, 8, 8]
    assert records.predict.tolist() == [3, ABSTAIN, 1]
    assert records.radius.tolist() == [1.21, 0.0, 0.0325]
    assert records.correct.tolist() == [True, False, False]
    assert records.seconds.tolist() == [15.123456, 14.0, 26 * 3600 + 0.5]
    assert records.own == {}
    assert records.manifest is None
    assert records.expected is None
    assert records.labelled


@pytest.mark.parametrize("change", [str.rstrip, lambda text: text.replace("\n", "\r\n")], ids=["no end", "CRLF"])
def test_lines_may_end_in_other_ways(tmp_path: Path, change: object) -> None:
    assert len(read_records(place(tmp_path, change(COHENS)))) == 3  # type: ignore[operator]


# One record as public programs and spreadsheets write it; the first is of Cohen's own file for sigma 0.25.
DIALECTS = {
    "seconds": "idx\tlabel\tpredict\tradius\tcorrect\ttime\n20\t7\t-1\t0.0\t0\t15.6\n",
    "blank lines": "idx\tlabel\tpredict\tradius\tcorrect\ttime\n\n20\t7\t-1\t0.0\t0\t0:00:15.6\n\n \n",
    "CRLF": "idx\tlabel\tpredict\tradius\tcorrect\ttime\r\n20\t7\t-1\t0.0\t0\t15.6\r\n\r\n",
    "a mark of UTF-8": "\ufeffidx\tlabel\tpredict\tradius\tcorrect\ttime\n20\t7\t-1\t0.0\t0\t15.6",
    "spaces around": " idx \tlabel\t predict\tradius\tcorrect\ttime \n20\t7\t -1\t0.0 \t0\t15.6\n",
    "spaces between": "idx label predict radius  correct time\n20  7 -1 0.0  0 0:00:15.600000\n",
    "commas": "idx,label,predict,radius,correct,time\n20,7,-1,0.0,0,1.56e+01\n",
    "counts": "idx\tlabel\tpredict\tradius\tcorrect\ttime\tnA\tn\n20\t7\t-1\t0e+00\t0\t15.6\t312\t1000\n",
    "numbers of a table": "idx,label,predict,radius,correct,time\n20.0,7.0,-1.0,0.0,False,15.6\n",
}


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS)
def test_dialects_of_other_programs_are_read(tmp_path: Path, text: str) -> None:
    records = read_records(place(tmp_path, text))
    found = (records.idx[0], records.label[0], records.predict[0], records.radius[0], records.correct[0])
    assert found == (20, 7, ABSTAIN, 0.0, False)
    assert records.seconds.tolist() == [15.6]
    assert records.own == {}


def test_columns_of_others_are_passed_over(tmp_path: Path) -> None:
    text = "note\t" + COHENS.replace("\n", "\tcopies\n", 1).replace("0:00:14", "0:00:14\t9")
    lines = [line if line.startswith("note") else f"a b\t{line}" for line in text.splitlines()]
    lines = [line if line.count("\t") == 7 else f"{line}\t5" for line in lines]
    records = read_records(place(tmp_path, "\n".join(lines)))
    assert records.radius.tolist() == [1.21, 0.0, 0.0325]
    assert records.own == {}  # one of our columns is not all of them


def test_our_own_file_while_it_is_written(tmp_path: Path) -> None:
    whole = HEADER + record_line(0, UNKNOWN, certificate()) + record_line(2, 3, certificate())
    records = read_records(place(tmp_path, whole[:-4], MANIFEST))
    assert records.idx.tolist() == [0]  # the torn line is of no image
    assert records.own["p_lower"].tolist() == [2 / 3]
    assert records.own["evaluations"].tolist() == [31234]
    assert records.expected == 5
    assert not records.labelled
    assert not records.correct[0]


def test_json_of_another_program_is_no_manifest(tmp_path: Path) -> None:
    assert read_records(place(tmp_path, COHENS, {"epochs": 90})).manifest is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": is not a certification: expected a column 'idx'"),
        ("idx\tlabel\tpredict\tcorrect\ttime\n", ": is not a certification: expected a column 'radius'"),
        (COHENS.splitlines()[0], " has no record yet"),
        (b"\x89PNG\r\n\x1a\n\xff", " is not a text file"),
        (COHENS.replace("time\n", "time\tidx\n", 1), "two columns of one name"),
        (COHENS + "60\t1\n", ", line 5: expected 6 values between tabs, got 2"),
        (COHENS + "\n\nx\n", ", line 7: expected 6 values between tabs, got 1"),
        (COHENS.replace("\t", " "), ", line 4: expected 6 values between spaces, got 8"),  # 1 day, 2:00:00.5
        (COHENS.replace("\t", ","), ", line 4: expected 6 values between commas, got 7"),
        (COHENS + "40\t1\t1\t0.1\t1\t0:00:01\n", " has 2 records of image 40: expected one"),
        (COHENS.replace("1.21", "nan"), ", line 2: radius must be a number of at least 0, got 'nan'"),
        (COHENS.replace("1.21", "inf"), "radius must be a number of at least 0, got 'inf'"),
        (COHENS.replace("1.21", "1e999"), "radius must be a number of at least 0, got '1e999'"),
        (COHENS.replace("1.21", "-1"), "radius must be a number of at least 0, got '-1'"),
        (COHENS.replace("1.21", "1_2"), "radius must be a number of at least 0"),
        (COHENS.replace("1.21", "٣"), "radius must be a number of at least 0"),
        (COHENS.replace("20\t8", "20\t8.5"), ", line 3: label must be a whole number of at least -1, got '8.5'"),
        (COHENS.replace("20\t8", "-1\t8"), "idx must be a whole number of at least 0, got '-1'"),
        (COHENS.replace("20\t8", f"{10**19}\t8"), "idx must be a whole number"),
        (COHENS.replace("\t-1\t", "\t-2\t"), "predict must be a whole number of at least -1, got '-2'"),
        (COHENS.replace("0:00:14", "14 s"), "time must be h:mm:ss or a number of seconds, got '14 s'"),
        (COHENS.replace("0:00:14", "nan"), "time must be h:mm:ss or a number of seconds, got 'nan'"),
        (COHENS.replace("0:00:14", "0:00:14" + "9" * 9999), "time must be h:mm:ss"),
        (COHENS.replace("8\t1\t0.0325\t0", "8\t1\t0.0325\t1"), ", line 4: correct must be 1 if predict is label"),
        (COHENS.replace("-1\t0.0\t0", "-1\t0.0\t2"), "correct must be 1 if predict is label"),
        (COHENS.replace("8\t-1\t0.0\t0", "-1\t-1\t0.0\t1"), "correct must be 1"),  # an unknown class is never right
    ],
)
def test_damage_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message.removeprefix(":") in refused(place(tmp_path, text))


def test_certificates_are_records_without_a_file(tmp_path: Path) -> None:
    """As if they had been written and read."""
    made = [certificate(label=3), certificate(label=ABSTAIN, radius=0.0), certificate(label=8)]
    lines = [record_line(i, label, found) for i, (label, found) in enumerate(zip((3, 5, 1), made, strict=True))]
    written, direct = read_records(place(tmp_path, HEADER + b"".join(lines))), records_of(made, labels=[3, 5, 1])
    for name in ("idx", "label", "predict", "radius", "correct", "seconds"):
        np.testing.assert_array_equal(getattr(direct, name), getattr(written, name))
        assert getattr(direct, name).dtype == getattr(written, name).dtype
    assert {name: column.tolist() for name, column in direct.own.items()} == {
        name: column.tolist() for name, column in written.own.items()
    }
    unknown = records_of(made)
    assert not unknown.labelled
    assert not unknown.correct.any()
    for labels in ([3], [3, 5, -2], [3.0, 5.0, 1.0]):
        with pytest.raises(InputError, match="expected certificates and a class for each"):
            records_of(made, labels)
    with pytest.raises(InputError, match="expected certificates and a class for each"):
        records_of([])


def test_impossible_counts_are_refused(tmp_path: Path) -> None:
    line = record_line(0, 3, certificate())
    file = place(tmp_path, HEADER + line.replace(b"\t990\t", b"\t1001\t"), MANIFEST)
    assert refused(file) == ", line 2: successes must be at most copies, got 1001 of 1000"
    file = place(tmp_path, HEADER + line.replace(b"0.6666", b"1.6666"), MANIFEST)
    assert refused(file).startswith(", line 2: p_lower must be a probability, got '1.6666")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", ".json is not valid JSON"),
        ({**MANIFEST, "version": 2}, ".json has format version 2, this fastdc reads up to 1"),
        ({**MANIFEST, "version": True}, ".json has format version True"),
        ({**MANIFEST, "indices": [0, 10, 0]}, ".json: indices must be [start, stop, step], got [0, 10, 0]"),
        ({**MANIFEST, "indices": [0, 2**60, 1]}, "indices must be"),
        ({**MANIFEST, "indices": [0, 10]}, "indices must be"),
        ({**MANIFEST, "indices": {"start": 0}}, "indices must be"),
        ('{"format": "fastdc-certification", "version": 1}', "indices must be [start, stop, step], got null"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, manifest: object, message: str) -> None:
    assert message in refused(place(tmp_path, COHENS, manifest))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert " is not a file" in refused(tmp_path)
    assert " is not a file" in refused(tmp_path / "none")
