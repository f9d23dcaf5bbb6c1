"""Statistics against known numbers, advice on planted rows, and the table that a reader sees."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.benchmark import (
    Configuration,
    Latency,
    Row,
    Spread,
    advice_lines,
    advise,
    flags,
    sample_images,
    short,
    table_text,
)
from fastdc.benchmark.configuration import other_batches
from fastdc.benchmark.memory import device_memory_taken, resident, resident_peak
from fastdc.bundle import find_model, load_bundle
from fastdc.data import digits_test, mnist_test


def row(batch: int, rate: float, p50: float, *, agreeing: int = 100, reason: str = "", backend: str = "onnx") -> Row:
    """A complete row, as if measured: quartiles 1 % around the rate."""
    return Row(
        Configuration(backend, "cpu", "float32", batch),
        batch,
        reason,
        ms_per_evaluation=Spread(0.2, 0.19, 0.22, 5),
        images_per_second=Spread(rate, 0.99 * rate, 1.01 * rate, 5),
        evaluations_per_image=11.0,
        session=Latency(p50, 2 * p50, 50),
        classify=Latency(1.5 * p50, 3 * p50, 50),
        memory_bytes=200 * 2**20,
        startup_seconds=1.25,
        error_difference=3e-7,
        agreeing=agreeing,
        compared=100,
    )


def test_a_spread_has_the_quartiles_of_its_repeats() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([1.0, 2.0, 3.0, 4.0]) == Spread(2.5, 1.75, 3.25, 4)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)
    assert Spread(3.0, 2.0, 4.0, 5).relative == pytest.approx(1 / 3)


def test_a_latency_has_percentiles_in_milliseconds() -> None:
    found = Latency.of([number / 1000 for number in range(1, 102)])  # 1 to 101 ms: 5 % of 100 steps end at 96
    assert found.p50 == pytest.approx(51.0)
    assert found.p95 == pytest.approx(96.0)
    assert found.count == 101


def test_numbers_have_three_digits() -> None:
    assert [short(value) for value in (0.00123456, 0.5, 12.345, 999.4, 1672.3, 26_879.0)] == [
        *("0.00123", "0.5", "12.3", "999", "1,670", "26,900")
    ]


def test_the_fastest_that_agrees_is_advised() -> None:
    usual = row(128, 100, 9.0)
    advice = advise([usual, row(512, 130, 12.0), row(32, 80, 6.0)], usual)
    assert (advice.throughput and advice.throughput.batch) == 512
    assert (advice.latency and advice.latency.batch) == 32
    assert advice_lines(advice) == [
        "throughput   --backend onnx --precision float32 --batch 512    (1.30 times the images/s of the defaults)",
        "latency      --backend onnx --precision float32 --batch 32    (0.67 times the p50 of the defaults)",
    ]


@pytest.mark.parametrize(
    "planted",
    [
        row(256, 1e6, 0.01, agreeing=99, backend="torch"),
        row(256, 1e6, 0.01, agreeing=0, backend="torch"),
        row(256, 1e6, 0.01, reason="slow: only 7 of 400 images were answered in its time"),
        replace(row(256, 1e6, 0.01), agreeing=None, compared=None),
        replace(row(256, 1e6, 0.01), agreeing=0, compared=0),
    ],
)
def test_what_changes_answers_or_is_not_complete_is_never_advised(planted: Row) -> None:
    usual = row(128, 100, 9.0)
    for rows in ([usual, planted], [planted, usual]):
        advice = advise(rows, usual)
        assert advice.throughput == advice.latency == usual
    for default in (planted, None):
        alone = advise([planted], default)
        assert alone.throughput is alone.latency is None
        assert advice_lines(alone)[0] == "throughput   none: no complete row whose answers all agree"
    other = row(512, 50, 20.0)
    assert advise([planted, other], planted).throughput == other  # also if the defaults may not be advised


def test_the_default_stays_unless_another_is_clearly_better() -> None:
    usual = row(128, 100, 10.0)
    near = row(512, 104, 9.6)
    assert advise([near, usual], usual).throughput == usual
    assert advise([near, usual], usual).latency == usual
    noisy = replace(near, images_per_second=Spread(150.0, 90.0, 200.0, 5))
    assert advise([noisy, usual], usual).throughput == usual
    uneven = replace(row(32, 100, 5.0), session=Latency(5.0, 21.0, 50))  # p95: 20 ms by default
    assert advise([uneven, usual], usual).latency == usual
    assert advise([replace(uneven, session=Latency(5.0, 20.0, 50)), usual], usual).latency != usual
    assert "(the defaults)" in advice_lines(advise([near, usual], usual))[0]


def test_without_repeats_another_must_be_half_as_good_again() -> None:
    """One or two repeats have no quartiles that could overlap."""
    usual = row(128, 100, 10.0)
    for count in (1, 2):
        rate, latency = Spread(140.0, 140.0, 140.0, count), Latency(7.0, 7.0, count)
        unsure = replace(row(512, 100, 10.0), images_per_second=rate, session=latency)
        advice = advise([unsure, usual], usual)
        assert advice.throughput == advice.latency == usual
        sure = replace(unsure, images_per_second=Spread(151.0, 151.0, 151.0, count), session=Latency(6.6, 7.0, count))
        advice = advise([sure, usual], usual)
        assert advice.throughput == advice.latency == sure


def test_another_precision_needs_many_images_that_agree() -> None:
    usual = row(128, 100, 10.0)
    half = replace(row(256, 1000, 1.0, backend="torch"), configuration=Configuration("torch", "cpu", "bfloat16", 256))
    few, enough = (replace(half, agreeing=n, compared=n) for n in (59, 60))
    assert advise([usual, few], usual).throughput == usual
    assert advise([usual, enough], usual).throughput == enough
    assert advise([few], few).throughput == few  # what runs without any advice
    alike = replace(row(256, 1000, 1.0, backend="torch"), agreeing=4, compared=4)
    assert advise([usual, alike], usual).throughput == alike  # in float32


def test_the_table_shows_what_is_known_and_why_the_rest_is_not() -> None:
    broken = Row(Configuration("torch", "cuda:0", "bfloat16"), reason="torch finds no CUDA device")
    lines = table_text([row(128, 1672.3, 9.0), broken]).splitlines()
    assert lines[0].split("  ")[0] == "configuration"
    said = "onnx float32 128 0.2 ± 8 % 1,670 ± 1 % 9 / 18 ms 13.5 / 27 ms 200 MiB 1.2 s 3e-07 100/100"
    assert " ".join(lines[1].split()) == said
    assert lines[2].split() == ["torch", "cuda:0", "bfloat16", *["-"] * 9]
    assert lines[3] == "  torch finds no CUDA device"


def test_flags_are_options_of_commands() -> None:
    one = Configuration("torch", "cuda:0", "bfloat16", 64)
    assert flags(one) == "--backend torch --device cuda:0 --precision bfloat16 --batch 64"
    assert flags(Configuration("onnx", "cpu", "float32"), 2) == "--backend onnx --precision float32 --threads 2"
    assert str(Configuration("onnx", "cpu", "float32", 64, "int8")) == "onnx int8"


def test_other_batches_surround_the_default() -> None:
    assert other_batches(128) == (32, 512)
    assert other_batches(1) == (4,)


def test_images_are_the_digits_or_made_up_or_the_users() -> None:
    digits, shapes = (load_bundle(find_model(name)).model for name in ("digits", "shapes"))
    shipped = sample_images(digits, most=50)
    assert (shipped.images.shape, shipped.made_up) == ((50, 1, 8, 8), False)
    assert len(np.unique(digits_test().labels[np.random.default_rng(0).permutation(400)[:50]])) == 10
    assert np.array_equal(sample_images(digits).images[:50], shipped.images)
    larger = sample_images(replace(digits, image_shape=(1, 28, 28)), most=20)
    assert np.array_equal(larger.images, mnist_test().images[np.random.default_rng(0).permutation(300)[:20]])
    made_up = sample_images(shapes, most=7)
    assert (made_up.images.shape, str(made_up.images.dtype), made_up.made_up) == ((7, 3, 32, 32), "uint8", True)
    assert made_up.images.std() > 30
    given = sample_images(digits, digits_test().images[:9], "mine.npy")
    assert (len(given.images), given.source, given.made_up) == (9, "mine.npy", False)


def test_memory_is_read_or_unknown(tmp_path: Path) -> None:
    now, peak = resident(), resident_peak()
    assert now is not None
    assert peak is not None
    assert 10 * 2**20 < now <= peak
    status = tmp_path / "status"
    assert resident(status) is None
    status.write_text("Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t    1024 kB\n")
    assert (resident(status), resident_peak(status)) == (2**20, 2**21)
    status.write_text("Name:\tpython\n")
    assert resident_peak(status) is None


class _Driver:
    """A driver with 16 bytes in all and 6 free; the call named `fails` fails."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = 6, 16
            return int(name == self.fails)

        return call


def test_memory_of_a_device_is_the_drivers_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: _Driver())
    assert device_memory_taken("cuda:0") == 10
    monkeypatch.setattr("ctypes.CDLL", lambda name: _Driver("cuCtxSetCurrent"))
    assert device_memory_taken("cuda:0") is None

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    assert device_memory_taken("cuda:0") is None
