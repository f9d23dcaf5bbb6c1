"""Whole benchmarks with tiny settings: what rows hold, and configurations that break, differ, hang or die."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import Bundle
from fastdc.benchmark import Benchmark, Configuration, Row, Samples, configurations, sample_images
from fastdc.benchmark import run as module
from fastdc.benchmark.child import Request
from fastdc.benchmark.run import run_child
from fastdc.bundle import MANIFEST, WEIGHTS, find_model, load_bundle
from fastdc.support import installed

pytest.importorskip("onnxruntime")

IMAGES = 12
ONNX = Configuration("onnx", "cpu", "float32", 32)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """digits-mlp with other torch weights than those of its graph: torch answers otherwise."""
    folder = Path(shutil.copytree(find_model("digits-mlp"), tmp_path_factory.mktemp("planted") / "m"))
    if installed("torch"):
        from safetensors.numpy import load_file, save

        rng = np.random.default_rng(0)
        weights = load_file(folder / WEIGHTS)
        noisy = {name: array + rng.normal(0, 0.1, array.shape).astype(np.float32) for name, array in weights.items()}
        content = save(noisy)
        (folder / WEIGHTS).write_bytes(content)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        manifest["files"][WEIGHTS] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (folder / MANIFEST).write_text(json.dumps(manifest))
    return load_bundle(folder)


@pytest.fixture(scope="module")
def measured(planted: Bundle) -> tuple[Benchmark, list[Row]]:
    """A benchmark of the reference, a broken configuration and, with torch, one whose answers differ."""
    wanted = [ONNX, Configuration("onnx", "cpu", "float16", 32)]
    if installed("torch"):
        wanted.append(Configuration("torch", "cpu", "float32", 32))
    samples = sample_images(planted.model, most=IMAGES)
    bench = Benchmark(planted, samples, seconds=2.0, threads=1, quick=True, wanted=wanted)
    started: list[Any] = []
    rows = list(bench.rows(lambda *told: started.append(told)))
    assert started == [(one, number, len(wanted)) for number, one in enumerate(wanted)]
    return bench, rows


def test_a_row_says_what_was_measured(measured: tuple[Benchmark, list[Row]]) -> None:
    bench, rows = measured
    row = rows[0]
    assert (row.configuration, row.batch, row.reason) == (ONNX, 32, "")
    assert bench.known == rows
    for spread in (row.ms_per_evaluation, row.images_per_second):
        assert spread is not None
        assert 0 < spread.low <= spread.median <= spread.high
        assert spread.count >= 1
    for latency in (row.session, row.classify):
        assert latency is not None
        assert 0 < latency.p50 <= latency.p95
    assert row.startup_seconds is not None
    assert row.startup_seconds > 0
    assert row.memory_bytes is not None
    assert 2**20 < row.memory_bytes < 2**31
    assert row.error_difference == 0.0
    assert row.agrees
    assert row.compared is not None
    assert 1 <= row.compared <= IMAGES
    clf = fastdc.load(bench.bundle, threads=1)
    expected = clf.classify(bench.samples.images[: row.compared]).evaluations.mean()
    assert row.evaluations_per_image == pytest.approx(expected)
    json.dumps(row.to_dict(), allow_nan=False)


def test_a_broken_configuration_is_a_row_with_its_reason(measured: tuple[Benchmark, list[Row]]) -> None:
    row = measured[1][1]
    assert row.reason == "backend onnx runs this bundle in float32 on the CPU, got precision 'float16'"
    assert row.images_per_second is None
    assert row.agreeing is None


def test_a_configuration_that_changes_answers_is_not_advised(measured: tuple[Benchmark, list[Row]]) -> None:
    bench, rows = measured
    if len(rows) < 3:
        pytest.skip("needs torch")
    row = rows[2]
    assert row.agreeing is not None
    assert row.compared is not None
    assert not row.agrees
    assert row.error_difference is not None
    assert row.error_difference > 1e-3
    assert bench.advice.throughput is bench.advice.latency is rows[0]


def test_agreement_counts_equal_answers(planted: Bundle) -> None:
    from fastdc.benchmark.rows import Answers

    clf = fastdc.load("digits-mlp", threads=1)
    result = clf.classify(sample_images(planted.model, most=IMAGES).images)
    mine = Answers(result.labels, result.table)
    other = result.labels.copy()
    other[[1, 5, 7]] = (other[[1, 5, 7]] + 1) % 10
    compared = Answers(other, result.table).compare(Row(ONNX), mine)
    assert (compared.agreeing, compared.compared, compared.error_difference) == (IMAGES - 3, IMAGES, 0.0)
    values = result.table.values.copy()
    values[9] *= 1.25
    changed = replace(result.table, values=values)
    found = Answers(result.labels, changed).compare(Row(ONNX), mine).error_difference
    assert found == pytest.approx(0.25, rel=1e-5)
    few = Answers(result.labels[:4], result.table.rows(0, 4)).compare(Row(ONNX), mine)
    assert (few.agreeing, few.compared) == (4, 4)


def test_other_batches_follow_where_they_may_matter(planted: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"onnx": 100.0, "torch": 30.0}

    def measure(request: Request, *, limit: float) -> dict[str, Any]:
        shutil.copy(made / "labels.npy", request.out)
        shutil.copy(made / "errors.npz", request.out)
        rate = {"median": rates[request.backend], "low": 1.0, "high": 2.0, "count": 3}
        return {"batch": request.batch or 128, "images_per_second": rate}

    made = planted.path.parent
    result = fastdc.load("digits-mlp", threads=1).classify(sample_images(planted.model, most=3).images)
    np.save(made / "labels.npy", result.labels)
    result.table.save(made / "errors.npz")
    monkeypatch.setattr(module, "run_child", measure)
    wanted = [Configuration("onnx", "cpu", "float32"), Configuration("torch", "cpu", "float32")]
    samples = Samples(np.zeros((3, 1, 8, 8), np.uint8), "black")
    bench = Benchmark(planted, samples, seconds=1, wanted=wanted)
    assert [(str(row.configuration), row.batch) for row in bench.rows()] == [
        *(("onnx float32", 128), ("torch float32", 128), ("onnx float32", 32), ("onnx float32", 512))
    ]
    assert bench.left_out == ["torch float32: no other batches, since it is less than half as fast as the best"]


def test_the_reference_comes_first(planted: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = configurations(planted)
    assert found[0] == Configuration("onnx", "cpu", "float32", kind="float32")
    assert len(set(found)) == len(found)
    places = {one.network for one in found}
    if installed("torch"):
        assert {("torch", "cpu", name) for name in ("float32", "float16", "bfloat16")} <= places
        assert ("torch", "cpu", "float16") not in {one.network for one in configurations(planted, quick=True)}
        int8 = load_bundle(planted.path)
        int8.manifest["precision"] = "int8"
        reference, usual = configurations(int8)[:2]
        assert str(reference) == "torch float32"
        assert str(usual) == "onnx int8"
    missing = ("torch", "onnxruntime")
    monkeypatch.setattr("fastdc.benchmark.configuration.installed", lambda name: name not in missing)
    monkeypatch.setattr("fastdc.backends.registry.installed", lambda name: name not in missing)
    with pytest.raises(fastdc.MissingDependencyError, match="no backend is installed"):
        configurations(planted)


def request(folder: Path) -> Request:
    return Request(
        str(folder / "none"), "onnx", "cpu", "float32", 8, 1, str(folder / "i.npy"), str(folder), 1.0, 0.0, False
    )


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL, perhaps for lack of memory"),
        ("import os; os.abort()", "its process was ended by SIGABRT"),
        ("import sys; sys.exit('\\nthe cause\\n\\n')", "its process ended with exit code 1: the cause"),
        ("import time; time.sleep(60)", "stopped: it took longer than 1 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_reason(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHILD", program)
    assert run_child(request(tmp_path), limit=1.0) == {"error": reason}


def test_an_interrupt_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                os.kill(os.getpid(), signal.SIGINT)
            return super().wait(timeout)

    monkeypatch.setattr(module, "_CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(subprocess, "Popen", Recorded)
    with pytest.raises(KeyboardInterrupt):
        run_child(request(tmp_path), limit=30.0)
    assert made[0].poll() == -signal.SIGKILL


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    """The pipe closes when the parent is gone, however it went."""
    code = "import threading, time; from fastdc.benchmark.child import _end_with_parent as end\n"
    code += "threading.Thread(target=end, daemon=True).start(); print('.', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        child.stdin.close()
        assert child.wait(20) == 1
