"""The plot of a benchmark: every configuration is there, and the excluded ones look different."""

from pathlib import Path

import pytest

from fastdc import InputError
from fastdc.benchmark import Configuration, Latency, Row, Spread, advise
from fastdc.figures import bench_bars

pytest.importorskip("matplotlib")


def row(backend: str, rate: float, p50: float, agreeing: int = 9) -> Row:
    return Row(
        Configuration(backend, "cpu", "float32", 128),
        128,
        images_per_second=Spread(rate, 0.9 * rate, 1.1 * rate, 5),
        session=Latency(p50, 1.5 * p50, 9),
        classify=Latency(2 * p50, 3 * p50, 9),
        agreeing=agreeing,
        compared=9,
    )


ROWS = [
    row("onnx", 1234.0, 2.0),
    row("torch", 5000.0, 90.0, agreeing=8),
    Row(Configuration("torch", "cpu", "float16"), reason="$x^2$ <&> " + "cause " * 30 + "the end"),
]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_plot_is_written_and_repeats(tmp_path: Path, suffix: str) -> None:
    first, second = (bench_bars(tmp_path / f"{name}{suffix}", ROWS, advise(ROWS), title="t") for name in "ab")
    assert first.stat().st_size > 1000
    assert first.read_bytes() == second.read_bytes()


def test_the_plot_names_every_row_and_marks_the_excluded_ones(tmp_path: Path) -> None:
    text = bench_bars(tmp_path / "a.svg", ROWS, advise(ROWS), title="digits & more").read_text(encoding="utf-8")
    for words in ("onnx float32, 128", "torch float16, -", "1,230", "session 2", "classify 180", "the end", "$x^2$"):
        assert words in text
    assert "#0072b2" in text  # the recommended one
    assert text.count("url(#h") >= 3  # hatched: one rate and two latencies of the row whose answers differ
    alone = bench_bars(tmp_path / "b.svg", ROWS[:1], advise(ROWS[:1])).read_text(encoding="utf-8")
    assert "url(#h" not in alone


def test_nothing_is_not_plotted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one row or more"):
        bench_bars(tmp_path / "a.svg", [], advise([]))
    with pytest.raises(InputError, match="got suffix"):
        bench_bars(tmp_path / "a.gif", ROWS, advise(ROWS))
