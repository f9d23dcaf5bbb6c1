"""bench/gpu/networks.py on the CPU: small networks through everything but the devices, and how results are kept."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.paths import ROOT

pytest.importorskip("torch")

from fastdc import DiffusionClassifier
from fastdc.backends import FunctionNetwork
from gpu import measure, sides
from gpu.measure import Bench, DeviceLostError, judged
from gpu.models import open_case
from gpu.parts import allowed, compare, per_hour, plain_parts
from gpu.plain_loop import PlainLoop
from gpu.report import add_ratios, complete, markdown, problems_of, write
from gpu.sides import ON_CPU, SIDES, WORDS, Absent, Bundles, Side, chosen, module_of, open_side
from gpu.watch import BROKEN

PARTS = {"check", "step", "full", "race", "latency", "certify"}


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "bench" / "gpu" / "networks.py"), "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    out = tmp_path_factory.mktemp("gpu") / "result.json"
    run = bench("--networks", "tiny", "--quick", "--out", str(out))
    assert run.returncode == 0, run.stderr
    assert run.stdout.rstrip("\n") == out.with_suffix(".md").read_text(encoding="utf-8").rstrip("\n")
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found


def test_every_side_of_the_cpu_is_checked_and_timed(result: dict[str, Any]) -> None:
    records = {(r["side"], r["precision"]): r for r in result["networks"]["tiny"]["records"]}
    ran = {key for key, record in records.items() if record["parts"]}
    assert ran == {(name, precision) for name, kinds in ON_CPU.items() for precision in kinds}
    for key in ran:
        parts = records[key]["parts"]
        assert set(parts) == (PARTS - {"step", "race"} if key[0] == "plain loop" else PARTS)
        assert parts["check"]["held"]
        assert parts["full"]["evaluations_per_image"] == 10 * 8  # classes and draws
        assert parts["latency"]["p50_milliseconds"] <= parts["latency"]["p99_milliseconds"]
        if "race" in parts:
            assert parts["step"]["equal_bits"]
            assert 10 <= parts["race"]["evaluations_per_image"] < 80
            assert parts["race"]["times_plain"] > 0
    assert problems_of(result["networks"]) == []


def test_sides_that_need_a_device_are_named_in_one_line(result: dict[str, Any]) -> None:
    missing = {r["side"]: r["not_run"] for r in result["networks"]["tiny"]["records"] if not r["parts"]}
    expected = {name: {"": "needs a CUDA device"} for name in SIDES if name not in ON_CPU}
    assert missing == expected
    assert "- TensorRT float32: needs a CUDA device" in markdown(result)


def test_the_published_edm_network_has_its_parameters() -> None:
    """55.7 million (Karras et al., table 7)."""
    assert round(open_case("edm").parameters / 1e6, 1) == 55.7


def test_the_plain_loop_computes_fastdcs_errors() -> None:
    """Against the engine on a function with a closed form: F = (1 + label) u, in NumPy."""
    case = open_case("tiny", quick=True)

    def network(sample: Any, timestep: Any, labels: Any) -> Any:
        return sample * (1 + labels[:, None, None, None])

    errors, seconds = PlainLoop(case, network, "float32", "cpu")(case.images[:2], {"draws": 4})
    on_engine = FunctionNetwork(lambda u, t, k: network(u, t, k).astype(np.float32), case.source.model.sample_shape)
    want = DiffusionClassifier(case.source.model, on_engine).errors(case.images[:2], draws=4).errors
    np.testing.assert_allclose(errors, want.mean(axis=2), rtol=1e-5)
    assert len(seconds) == 2


def test_the_plain_loop_runs_in_half_precision() -> None:
    case = open_case("tiny", quick=True)
    exact = PlainLoop(case, module_of(case), "float32", "cpu")(case.images[:1], {"draws": 4})[0]
    half = PlainLoop(case, module_of(case).half(), "float16", "cpu")(case.images[:1], {"draws": 4})[0]
    np.testing.assert_allclose(half, exact, rtol=allowed(case, "float16"))
    assert not np.array_equal(half, exact)


@pytest.mark.parametrize("draws", [1, 3, 4, 8, 9])
def test_the_plain_loop_has_warmed_up_every_batch_size(draws: int) -> None:
    """cuDNN searches for algorithms at each size; a batch has all classes of as many draws as fit into 32 rows."""
    case, sizes = open_case("tiny", quick=True), []

    def network(sample: Any, timestep: Any, labels: Any) -> Any:
        assert labels.tolist() == [*range(10)] * (len(sample) // 10)
        sizes.append(len(sample))
        return sample

    loop = PlainLoop(case, network, "float32", "cpu")
    loop.warm_up(draws)
    warm = set(sizes)
    sizes.clear()
    loop(case.images[:1], {"draws": draws})
    assert sum(sizes) == 10 * draws
    assert sizes[0] == min(30, 10 * draws)
    assert set(sizes) == warm


def test_wrong_errors_are_found() -> None:
    case = open_case("tiny", quick=True)
    loop = PlainLoop(case, module_of(case), "float32", "cpu")
    right = loop(case.images[:1], {"draws": case.work.check})[0][0]
    limit = allowed(case, "float32")
    for factor, held in ((1 + limit / 2, True), (1 + 2 * limit, False)):
        parts = plain_parts(loop, case, right * factor, limit)
        record = parts["check"]({})
        assert record["held"] is held
        assert bool(judged("side", "check", record)) is not held
    assert judged("side", "step", {"equal_bits": False}) != []
    assert compare(np.array([np.nan, 1.0]), np.ones(2), 1.0)["held"] is False


def test_certificates_per_hour() -> None:
    """Each takes 1000 copies, and 100 for the selection."""
    assert per_hour(1100) == 3600


def test_names_on_the_command_line_choose_sides() -> None:
    assert chosen(("plain",), "cuda:0") == [
        Side("plain loop", precision) for precision in ("float32", "default", "tf32", "bfloat16", "float16")
    ]
    assert {side.name for side in chosen(WORDS, "cuda:0")} == set(SIDES)
    assert chosen(("tensorrt",), "cpu") == [Side("TensorRT", "float32")]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "installed", lambda name: False)
    for name, line in (("TensorRT", r"tensorrt \(or tensorrt_rtx\) is not"), ("ONNX Runtime", "onnxruntime is not")):
        with pytest.raises(Absent, match=line):
            open_side(Side(name, "float16"), open_case("tiny"), "cuda:0", None)  # type: ignore[arg-type]


def begun(networks: dict[str, Any], *, parts: tuple[str, ...] = ("check",)) -> Bench:
    """An invocation that goes on with the records of its earlier process."""
    options = argparse.Namespace(
        invocation="now", networks=["tiny"], sides=["plain", "eager"], parts=parts, device="cpu", minutes=1, quick=True
    )
    return Bench(options, Bundles(Path("none"), print), networks)


def test_the_next_process_goes_on_after_the_side_that_ended_the_last() -> None:
    done = [record("plain loop", 2), record("plain loop", 2, "then") | {"precision": "bfloat16"}]
    done.append(record("torch eager", 2) | {"not_run": {"race": BROKEN}})
    bench = begun({"tiny": {"parameters": 1, "work": {}, "records": done}})
    assert bench.left("tiny") == [Side("plain loop", "bfloat16")], "only an earlier invocation had it"
    (problem,) = problems_of(bench.networks)
    assert problem == "tiny, torch eager float32, race: ended the process, or said nothing for too long"


def test_a_side_that_fails_in_any_way_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise TypeError("pybind11::init(): factory function\nreturned nullptr")

    bench = begun({})
    monkeypatch.setattr(measure, "open_parts", fail)
    states = [[dict(one["not_run"]) for one in bench.networks["tiny"]["records"]] for _ in bench.network("tiny")]
    assert states[0] == [{"": BROKEN}], "noted before it begins"
    assert states[-1] == 3 * [{"": "failed, see the problems"}]
    assert problems_of(bench.networks)[0] == (
        "tiny, plain loop float32: TypeError: pybind11::init(): factory function returned nullptr"
    )


def test_a_lost_device_ends_the_side_and_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the device lasts until the process ends: everything after it would fail."""

    def lose(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    bench = begun({}, parts=("check", "full"))
    monkeypatch.setattr(measure, "device_lost", lambda device: True)
    monkeypatch.setattr(measure, "open_parts", lambda *_: ({"check": lose, "full": lose, "race": lose}, {}))
    with pytest.raises(DeviceLostError):
        list(bench.network("tiny"))
    (only,) = bench.networks["tiny"]["records"]
    assert only["not_run"] == {"check": "failed, see the problems", "full": "the device was lost before it"}
    assert begun(bench.networks).left("tiny")[0] == Side("plain loop", "bfloat16"), "the next process goes on here"


def test_a_network_that_cannot_be_made_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "cpu_errors", lambda case: [].pop())
    bench = begun({})
    assert len(list(bench.network("tiny"))) == 1
    assert problems_of(bench.networks) == ["tiny: IndexError: pop from empty list"]
    assert "## tiny: not run" in markdown({"networks": bench.networks})


def record(side: str, rate: float, invocation: str = "now") -> dict[str, Any]:
    return {
        "side": side,
        "precision": "float32",
        "invocation": invocation,
        "parts": {"full": {"images_per_second": rate}},
        "not_run": {},
        "problems": [],
    }


def test_ratios_are_to_the_fastest_plain_loop_of_the_same_invocation() -> None:
    given = [("plain loop", 2, "now"), ("plain loop", 4, "now"), ("TensorRT", 40, "now"), ("ONNX Runtime", 9, "then")]
    records = [record(*one) for one in given]
    add_ratios(records)
    assert records[2]["parts"]["full"]["times_plain"] == 10
    assert "times_plain" not in records[3]["parts"]["full"]


def test_only_results_of_the_same_device_and_commit_are_completed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    stamp = {"gpu": {"name": "H200", "driver": "580"}, "machine": {"commit": "abc", "cpu": "x"}}
    network = {"parameters": 1, "work": {"batch": 1, "draws": 1, "limit": 1}, "records": [record("plain loop", 2)]}
    page = write(path, {**stamp, "rows": [], "networks": {"edm": network}})
    assert "plain loop float32" in page.read_text(encoding="utf-8")
    assert complete(path, stamp)["networks"] == {"edm": network}
    for other in ({"gpu": {"name": "H100", "driver": "580"}}, {"machine": {"commit": "abe", "cpu": "x"}}):
        assert "networks" not in complete(path, {**stamp, **other})
    path.write_text("{", encoding="utf-8")
    assert complete(path, stamp) == stamp


@pytest.mark.slow
def test_text_networks_are_measured_as_well(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    out = tmp_path / "result.json"
    more = ("--sides", "plain", "eager", "--parts", "check", "full", "certify", "--out", str(out))
    assert bench("--networks", "tiny-text", *more).returncode == 0
    records = json.loads(out.read_bytes())["networks"]["tiny-text"]["records"]
    assert [set(r["parts"]) for r in records] == [{"check", "full"}] * 3
    assert all(r["not_run"] == {"certify": "no certificates of this network"} for r in records)
