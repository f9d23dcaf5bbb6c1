"""Certificates of several images: a sequence, as other programs take it, and as people see it."""

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.certification import (
    ABSTAIN,
    Certificate,
    Certificates,
    Fixed,
    FunctionBase,
    read_records,
    records_of,
    summarize,
)
from helpers.worlds import classifier, fails_with, gaussian, unit_images

WORLD = gaussian(3)


def certificate(label: int, radius: float, seconds: float = 1.5) -> Certificate:
    return Certificate(label, radius, 0.9 if radius else 0.0, 95, 100, 10, 1000, seconds)


MADE = Certificates(
    tuple(certificate(*one) for one in [(2, 0.3), (0, 0.1), (ABSTAIN, 0.0), (1, 0.25)]),
    np.arange(4),
    ("cat", "dog", "<script>"),
    {"smoothing": {"sigma": 0.25}},
)
TRUE = [2, 1, 0, 1]


def test_certify_gives_a_sequence_of_what_the_stream_gives() -> None:
    clf, images, how = classifier(WORLD), unit_images(3), Fixed(0.25, 20, 0.1)
    made = clf.certify(images, how, n0=4, seed=3)
    assert isinstance(made, Certificates)
    each = [one for _, one in clf.certify_stream(images, how, n0=4, seed=3)]
    assert [(c.label, c.radius, c.evaluations) for c in made] == [(c.label, c.radius, c.evaluations) for c in each]
    assert made.class_names == WORLD.model.class_names
    assert made.provenance["smoothing"]["sigma"] == 0.25
    assert made.provenance["smoothing"]["n0"] == 4
    assert made.provenance["base"]["model"] == "gaussian"
    assert made.indices.tolist() == [0, 1, 2]


def test_a_certificate_of_a_sequence_says_which_class_and_image() -> None:
    assert [one.name for one in MADE] == [MADE[k].name for k in range(4)] == list(MADE.names)
    assert (MADE[0].name, MADE[1].name, MADE[2].name, MADE[2].abstained) == ("<script>", "cat", None, True)
    turned = replace(MADE, ids=("a.png", "b.png", "c.png", "d.png"))[[3, 1]]
    assert [(one.index, one.image, one.name) for one in turned] == [(3, "d.png", "dog"), (1, "b.png", "cat")]
    assert turned[0] == MADE[3] == MADE.certificates[3]  # the names do not count
    assert (MADE.certificates[3].name, MADE[3].image) == (None, None)


def test_classes_of_another_base_have_no_names() -> None:
    base = FunctionBase(lambda x: np.full(len(x), 6), n_classes=7)
    made = classifier(WORLD).certify(unit_images(1), Fixed(0.25, 20, 0.1), n0=4, base=base)
    assert made.labels.tolist() == [6]
    assert made.names == ("6",)
    assert made[0].name == "6"


def test_columns_and_parts() -> None:
    assert MADE.labels.tolist() == [2, 0, -1, 1]
    assert MADE.radii.tolist() == [0.3, 0.1, 0, 0.25]
    assert MADE.names == ("<script>", "cat", None, "dog")
    assert MADE[1] == certificate(0, 0.1)
    assert MADE[-1].label == 1
    assert certificate(0, 0.1) in MADE
    part = MADE[MADE.radii > 0.2]
    assert isinstance(part, Certificates)
    assert part.indices.tolist() == [0, 3]
    assert list(part) == [MADE[0], MADE[3]]
    assert len(MADE[:0]) == 0
    assert list(pickle.loads(pickle.dumps(MADE))) == list(MADE)
    with pytest.raises(IndexError):
        MADE[4]
    fails_with(lambda: MADE["cat"], "images are chosen by", kind=InputError)


def test_the_summary_is_that_of_the_records() -> None:
    want = summarize(records_of(MADE.certificates, TRUE), [0, 0.2, 0.3])
    found = MADE.summary(TRUE, [0, 0.2, 0.3])
    assert found == want
    assert [one.value for one in found.certified or ()] == [0.5, 0.5, 0.25]
    assert found.average_radius is not None
    assert found.average_radius.value == pytest.approx((0.3 + 0.25) / 4)
    assert str(found).startswith("certified accuracy, %")
    assert MADE.summary().certified is None
    assert MADE.summary().radii[-1] == 0.3
    fails_with(lambda: MADE.summary([1, 2]), "a class for each", kind=InputError)
    fails_with(lambda: MADE.summary(TRUE, [-1.0]), "radii", kind=InputError)
    fails_with(MADE[:0].summary, "expected certificates", kind=InputError)


def test_files(tmp_path: Path) -> None:
    for name in ("m.csv", "m.json", "m.jsonl", "m.npz"):
        MADE.save(tmp_path / name)
    with (tmp_path / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["<script>", "cat", "", "dog"]
    assert [float(row["radius"]) for row in rows] == MADE.radii.tolist()
    told: dict[str, Any] = json.loads((tmp_path / "m.json").read_text())
    assert told == MADE.to_dict()
    assert told["images"][2]["name"] is None
    assert told["images"][0]["label"] == 2
    assert told["provenance"] == {"smoothing": {"sigma": 0.25}}
    assert [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()] == MADE.to_dicts()
    with np.load(tmp_path / "m.npz") as arrays:
        np.testing.assert_array_equal(arrays["radius"], MADE.radii)
        assert arrays["name"].tolist() == ["<script>", "cat", "", "dog"]
    MADE.save(tmp_path / "m.tsv", TRUE)
    records = read_records(tmp_path / "m.tsv")
    assert records.label.tolist() == TRUE
    assert records.correct.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(records.radius, MADE.radii)
    MADE[2:].save(tmp_path / "m.tsv")
    assert read_records(tmp_path / "m.tsv").idx.tolist() == [2, 3]
    assert not read_records(tmp_path / "m.tsv").labelled
    fails_with(lambda: MADE.save(tmp_path / "m.tsv", [1]), "a class for each", kind=InputError)
    fails_with(lambda: MADE.save(tmp_path / "m.csv", TRUE), ".tsv", kind=InputError)
    fails_with(lambda: MADE.save(tmp_path / "m.txt"), ".npz, .tsv", kind=InputError)


def test_a_data_frame_has_a_row_per_image() -> None:
    pytest.importorskip("pandas")
    frame = MADE.to_pandas()
    assert list(frame)[:5] == ["index", "label", "name", "radius", "p_lower"]
    assert frame["copies"].tolist() == [100] * 4
    assert frame["name"].isna().tolist() == [False, False, True, False]


def test_what_is_shown_is_short() -> None:
    assert repr(MADE) == (
        "Certificates(4 images: radius 0.175 at the median, 0.3 at most; 1 abstains; 1,000 evaluations per image)"
    )
    assert repr(MADE[1:3]) == "Certificates(2 images: 'cat' within 0.1, abstains; 1,000 evaluations per image)"
    assert repr(MADE[:0]) == "Certificates(0 images)"
    assert "<script>" not in MADE._repr_html_()
    assert "&lt;script&gt;" in MADE._repr_html_()
    assert MADE[:0]._repr_html_()
