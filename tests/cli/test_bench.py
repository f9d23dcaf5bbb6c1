"""``fastdc bench``: what it prints, keeps and refuses, with measurements that are planted or tiny."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc.backends import find_choice
from fastdc.benchmark import Benchmark, Configuration, Latency, Row, Spread
from fastdc.bundle import find_model
from fastdc.data import digits_test
from helpers.cli_runs import Cli

pytest.importorskip("onnxruntime")


def planted(backend: str, precision: str, batch: int, rate: float, *, agreeing: int = 100, reason: str = "") -> Row:
    return Row(
        Configuration(backend, "cpu", precision, batch, precision if backend == "onnx" else ""),
        batch,
        reason,
        images_per_second=Spread(rate, rate, rate, 3),
        session=Latency(1e3 / rate, 2e3 / rate, 50),
        agreeing=agreeing,
        compared=100,
    )


ROWS = [
    planted("onnx", "float32", 128, 100.0),
    planted("torch", "bfloat16", 128, 9000.0, agreeing=99),
    planted("torch", "float16", 128, 1.0, agreeing=0, reason="it broke"),
    planted("onnx", "float32", 512, 150.0),
]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """The command line beside a cache of its own, in a folder of its own."""
    monkeypatch.delenv("FASTDC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row | BaseException]:
    """What a benchmark measures, in place of measurements; an exception is raised in its turn."""
    given: list[Row | BaseException] = list(ROWS)

    def measure(bench: Benchmark, starting: Any = None) -> Iterator[Row]:
        for row in given:
            if isinstance(row, BaseException):
                raise row
            starting(row.configuration, len(bench.known), len(given))
            bench.known.append(row)
            yield row

    monkeypatch.setattr(Benchmark, "rows", measure)
    return given


def test_the_table_and_the_advice_are_printed(cli: Cli, rows: list[Any], tmp_path: Path) -> None:
    result = cli("bench", "digits", "--quick")
    assert result.code == 0
    assert result.err == ""
    table = dict(line.split(None, 1) for line in result.out.splitlines() if line.strip())
    assert table["model"] == "digits, 10 classes"
    assert table["images"] == "100 of shipped test digits"
    assert table["reference"] == "onnx float32"
    assert table["throughput"].startswith("--backend onnx --precision float32 --batch 512    (1.50 times the images/s")
    assert table["latency"].startswith("--backend onnx --precision float32 --batch 512    (0.67 times the p50")
    assert table["it"] == "broke"
    assert not (tmp_path / "cache").exists()


def test_json_has_every_row(cli: Cli, rows: list[Any]) -> None:
    found = json.loads(cli("bench", "digits", "--json", "--threads", "1").out)
    assert [(row["backend"], row["precision"], row["batch"], row["agreeing"]) for row in found["rows"]] == [
        ("onnx", "float32", 128, 100),
        ("torch", "bfloat16", 128, 99),
        ("torch", "float16", 128, 0),
        ("onnx", "float32", 512, 100),
    ]
    assert found["advice"]["throughput"] == "--backend onnx --precision float32 --batch 512 --threads 1"
    assert found["machine"]["threads"] == 1
    assert found["complete"] is True
    assert found["criterion"] == "every answer equals that of float32"
    assert found["images"] == {"source": "shipped test digits", "count": 400, "made_up": False}


def test_write_keeps_what_agrees_and_load_uses_it(cli: Cli, rows: list[Any]) -> None:
    result = cli("bench", "digits", "--write")
    assert result.code == 0
    assert "fastdc bench digits --forget removes it" in result.err
    choice, _ = find_choice(fastdc.load_bundle(find_model("digits")))
    assert choice is not None
    assert (choice.backend, choice.precision, choice.batch, choice.images) == ("onnx", "float32", 512, 100)
    assert fastdc.load("digits").network.batch == 512


def test_write_without_a_row_that_agrees_is_refused(cli: Cli, rows: list[Any], tmp_path: Path) -> None:
    rows[:] = ROWS[1:3]
    result = cli("bench", "digits", "--write")
    assert result.code == 2
    assert "throughput   none" in result.out
    assert result.err.startswith("fastdc: error: --write has nothing to keep")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    cli: Cli, rows: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    rows[:] = [AssertionError("it was measured")]
    result = cli("bench", "digits", "--write")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"fastdc: error: {tmp_path / 'cache'} cannot be written to: Not a directory\n"


def test_forget_is_refused_beside_what_it_would_ignore(cli: Cli) -> None:
    for other in ("--write", "--quick", "--json"):
        result = cli("bench", "digits", "--forget", other)
        assert (result.code, result.out) == (2, "")
        assert f"expected no {other} beside it" in result.err


def test_an_interrupt_prints_what_is_known_and_keeps_nothing(cli: Cli, rows: list[Any], tmp_path: Path) -> None:
    rows.insert(2, KeyboardInterrupt())
    result = cli("bench", "digits", "--write")
    assert result.code == 130
    assert "torch bfloat16" in result.out
    assert "float16 " not in result.out.replace("bfloat16", "")
    assert result.err.strip() == "fastdc: interrupted"
    known = cli("bench", "digits", "--json")
    assert (known.code, json.loads(known.out)["complete"], len(json.loads(known.out)["rows"])) == (130, False, 2)
    assert not (tmp_path / "cache").exists()
    rows.insert(0, KeyboardInterrupt())
    assert cli("bench", "digits").out == ""


def test_notes_say_what_the_numbers_depend_on(cli: Cli, rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (50.0, 0.0, 0.0))
    busy, *_ = cli("bench", "digits").err.splitlines()
    assert "other programs are running (load 50.0 on" in busy
    made_up, *_ = cli("bench", "shapes").err.splitlines()
    assert "no images of shapes's classes come with fastdc" in made_up
    assert "--data measures yours" in made_up
    assert cli("bench", "shapes", "--quiet").err == ""
    np.save("mine.npy", digits_test().images[:7])
    assert json.loads(cli("bench", "digits", "--data", "mine.npy", "--json").out)["images"]["source"] == "mine.npy"


def test_a_plot_is_drawn(cli: Cli, rows: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = cli("bench", "digits", "--plot", "bench.svg")
    assert result.code == 0
    text = (tmp_path / "bench.svg").read_text(encoding="utf-8")
    for words in ("onnx float32, 512", "torch bfloat16, 128", "9,000", "recommended"):
        assert words in text


@pytest.mark.slow
def test_a_real_benchmark_of_the_shortest_kind(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but torch, whose import alone takes seconds."""
    monkeypatch.setattr("fastdc.benchmark.configuration.installed", lambda name: name == "onnxruntime")
    monkeypatch.setattr("fastdc.cli.bench._QUICK_SECONDS", 1.0)
    result = cli("bench", "digits-mlp", "--quick", "--threads", "1", "--json", "--write")
    assert result.code == 0, result
    found = json.loads(result.out)
    (row,) = found["rows"]
    assert row["reason"] == ""
    assert row["agreeing"] == row["compared"] > 0
    assert row["evaluations_per_image"] >= 10
    assert found["advice"]["throughput"] == "--backend onnx --precision float32 --batch 128 --threads 1"
    assert fastdc.load("digits-mlp", threads=1).classify(digits_test().images[:1]).provenance["chosen_by"]
