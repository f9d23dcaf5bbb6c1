"""``fastdc manifest``: the table that it prints, the notes, and the file."""

from pathlib import Path

import pytest
from PIL import Image

from fastdc.data import find_splits
from helpers.cli_runs import Cli


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def test_a_manifest_is_made_and_counted(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(20):
        Image.new("L", (4, 4), k).save(tmp_path / f"{k}.png")
    Path("t.csv").write_text("file,grade\n" + "".join(f"{k}.png,{'' if k == 3 else 'ab'[k % 2]}\n" for k in range(20)))
    code, out, err = cli("manifest", "t.csv", "--out", "m.csv", "--label-column", "grade", "--fractions", "0.5,0.2,0.3")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["table", "table", "images", "a", "b"]
    assert [line[0] for line in lines[1:]] == ["train", "val", "test"]
    assert sum(int(line[1]) for line in lines[1:]) == 19
    assert "1 rows left out: without a label" in err
    assert err.splitlines()[-1] == "saved        m.csv"
    assert find_splits("m.csv") == ("train", "val", "test")
    cli.refuses("manifest", "t.csv", "--out", "t.csv", naming="is an input")
    cli.refuses("manifest", "t.csv", "--out", "m.csv", "--fractions", "half", naming="--fractions must be numbers")
    cli.refuses("manifest", "t.csv", "--out", "m.csv", naming="--label-column names one")
    cli.refuses("manifest", "none.csv", "--out", "m.csv", naming="none.csv: does not exist")
