"""bench/fidelity.py: every row of docs/fidelity.md holds, and the page has a line for each."""

import pytest

from helpers.paths import ROOT

pytest.importorskip("torch")
pytest.importorskip("statsmodels")

import fidelity


@pytest.mark.parametrize("name", fidelity.ROWS)
def test_a_published_formula_is_computed(name: str) -> None:
    row = fidelity.ROWS[name]()
    assert row.difference <= row.allowed
    assert f"| {row.what} | {row.against} | {row.cases} |" in (ROOT / "docs" / "fidelity.md").read_text()
