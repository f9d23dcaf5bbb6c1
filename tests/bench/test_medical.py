"""bench/medical.py on few digits: its numbers are those of decisions on prefixes of one table."""

import json
from pathlib import Path

import numpy as np
import pytest

import fastdc
from fastdc.data import digits_test
from fastdc.scoring import score

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

import medical


def test_votes_and_refusals_are_those_of_the_public_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, files = digits_test(), []
    for part, rows in (("train", slice(0, 20)), ("val", slice(100, 160)), ("test", slice(200, 240))):
        np.savez(tmp_path / f"{part}.npz", images=test.images[rows], labels=test.labels[rows])
        files += [f"--{part}", str(tmp_path / f"{part}.npz")]
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["medical.py", *files, "--draws", "1", "5", "13", "--out", str(out)])
    medical.main()
    made = json.loads(out.read_text(encoding="utf-8"))
    images, labels = test.images[200:240], test.labels[200:240]
    clf = fastdc.load("digits-mlp")
    for name, plan in medical.PLANS.items():
        for record in made["votes"][name]["draws"]:
            options = {"rule": "full", "draws": record["draws"], **plan}
            voted = clf.classify(images, **options, decision="vote")
            assert record["vote"]["value"] == (voted.labels == labels).mean()
            assert record["mean"]["value"] == (clf.classify(images, **options).labels == labels).mean()
        race, votes, released = made["votes"][name]["rules"]
        assert 10 <= race["evaluations"] <= 130
        assert votes["evaluations"] == released["evaluations"] == 10 * 11 + 3 * 2
        kept = {"n_samples": (11, 13), "to_keep": (3, 1)}
        ran = clf.classify(images, rule="votes", rule_options=kept, decision="vote", **plan)
        assert votes["accuracy"]["value"] == (ran.labels == labels).mean()
        last = next(one for one in made["refusal"][name] if one["draws"] == 13 and one["by"] == "vote")
        own = clf.classify(images, rule="full", draws=13, decision="vote", **plan)
        expected = score(labels, own.probabilities, predicted=own.labels, intervals=False).refusal
        assert last["area"] == pytest.approx(expected.area)
        assert last["without 0.2"] == pytest.approx(expected.at(0.2))
