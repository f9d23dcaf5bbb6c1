"""The examples of docs/sklearn.md and of the class run as they stand."""

import doctest
import inspect
import re
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from fastdc.data import digits_test
from fastdc.estimator import DiffusionClassifierEstimator
from helpers.paths import ROOT

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "sklearn.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("block", BLOCKS, ids=["exists", "own"])
def test_an_example_runs_and_shows_good_scores(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/sklearn.md", "exec"), {"__name__": "example"})
    first = capsys.readouterr().out.splitlines()[0]
    assert min(map(float, re.findall(r"[\d.]+", first))) > 0.85
    assert list(tmp_path.iterdir()) == []


def test_the_example_of_the_class_runs() -> None:
    test = digits_test()
    names = {"images": test.images[:20], "labels": test.labels[:20]}
    text = inspect.getdoc(DiffusionClassifierEstimator) or ""
    example = doctest.DocTestParser().get_doctest(text, names, "DiffusionClassifierEstimator", None, None)
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert (result.failed, result.attempted) == (0, 3)
