"""bench/gpu/gpu.sh without a GPU, and how bench/gpu/check.py reads and judges results."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastdc import BackendError
from gpu.check import Attempts, problems, read_junit, sources_sha256
from gpu.report import markdown, same_machine
from helpers.paths import ROOT

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a bash script for Linux")


def has_gpu() -> bool:
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return bool(torch.cuda.is_available())


@on_linux
def test_it_refuses_without_a_gpu_and_writes_nothing(tmp_path: Path) -> None:
    if has_gpu():
        pytest.skip("there is a GPU")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(temporary)}
    before = sorted(ROOT.joinpath("bench").rglob("*.json"))
    command = ["bash", str(ROOT / "bench" / "gpu" / "gpu.sh"), str(tmp_path / "result.json")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert lines
    assert all(line.startswith("bench/gpu/gpu.sh: ") for line in lines)
    assert sorted(tmp_path.iterdir()) == [temporary]
    assert list(temporary.iterdir()) == []
    assert sorted(ROOT.joinpath("bench").rglob("*.json")) == before


STAND_IN = """#!/usr/bin/env bash
# Takes the place of Python on a machine with a GPU: records its arguments and exits with the given status.
echo "$*" >>"${LOG}"
case "$*" in
  "- "*) cat >/dev/null; echo "90 nvidia-h200" ;;
  *gpu/check.py*) exit "${CHECK}" ;;
  *gpu/networks.py*) exit "${NETWORKS}" ;;
esac
"""


def run_script(
    folder: Path, *arguments: str, check: int = 0, networks: int = 0, **variables: str
) -> tuple[int, list[str]]:
    """Exit status of bench/gpu/gpu.sh with a stand-in for Python, and the commands of its parts."""
    python, log = folder / "python", folder / "log"
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)
    log.write_text("", encoding="utf-8")
    more = {"LOG": str(log), "CHECK": str(check), "NETWORKS": str(networks), "SANITIZE": "0"}
    environment = {
        **os.environ,
        "PYTHON": str(python),
        "CUDACXX": "/bin/true",
        "TMPDIR": str(folder),
        **more,
        **variables,
    }
    command = ["bash", str(ROOT / "bench" / "gpu" / "gpu.sh"), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = log.read_text(encoding="utf-8").splitlines()
    return run.returncode, [line for line in lines if line.startswith(("-m pytest", "bench/"))]


@on_linux
def test_parts_run_in_order_on_one_result(tmp_path: Path) -> None:
    status, (tests, check, networks) = run_script(tmp_path, str(tmp_path / "r.json"))
    assert status == 0
    assert tests.startswith("-m pytest -m cuda tests/")
    files = {word for word in tests.split() if word.endswith(".py")}
    wanted = ("diffusion/test_cuda", "engine/test_cuda_steps", "robust/test_module")
    assert {f"tests/{name}.py" for name in wanted} <= files
    assert all((ROOT / file).is_file() for file in files)
    assert len(files) < 20, "no others are imported"
    assert check.startswith("bench/gpu/check.py --junit ")
    assert networks.startswith("bench/gpu/networks.py --minutes 8")
    assert all(line.endswith(f"--out {tmp_path / 'r.json'}") for line in (check, networks))
    assert "--no-kernels" not in check


@on_linux
def test_parts_and_options_are_passed_on(tmp_path: Path) -> None:
    status, ran = run_script(tmp_path, "--parts", "tests", "--quick")
    default = ROOT / "bench" / "results" / "gpu-nvidia-h200.json"
    assert status == 0
    assert ran[1].endswith(f"--quick --no-kernels --out {default}")
    assert len(ran) == 2
    options = ("--networks", "edm,sd", "--sides", "plain", "--minutes", "3", "--keep", str(tmp_path / "kept"))
    status, ran = run_script(tmp_path, "--parts", "networks", *options)
    assert ran == [
        f"bench/gpu/networks.py --minutes 3 --networks edm sd --sides plain --keep {tmp_path / 'kept'} --out {default}"
    ]


@on_linux
def test_the_sanitizer_beside_nvcc_is_found(tmp_path: Path) -> None:
    """It is not always on PATH. Its exit statuses are passed on."""
    tools = tmp_path / "cuda"
    tools.mkdir()
    for name, status in (("nvcc", 0), ("compute-sanitizer", 77)):
        (tools / name).write_text(f"#!/bin/sh\nexit {status}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    arguments = ("--parts", "sanitizer", str(tmp_path / "r.json"))
    status, (check,) = run_script(tmp_path, *arguments, CUDACXX=str(tools / "nvcc"), SANITIZE="1")
    assert status == 0
    assert "--sanitizer  memcheck=77 racecheck=77 --no-kernels" in check


@on_linux
@pytest.mark.parametrize(("check", "networks"), [(1, 0), (0, 1), (0, 2)])
def test_a_part_that_fails_makes_the_status_1_and_leaves_the_others(tmp_path: Path, check: int, networks: int) -> None:
    status, ran = run_script(tmp_path, "--parts", "kernels,networks", check=check, networks=networks)
    assert (status, len(ran)) == (1, 2)


@on_linux
@pytest.mark.parametrize(
    "arguments", [("--parts", "kernel"), ("--parts",), ("--minutes", "0"), ("--what",), ("a.json", "b.json")]
)
def test_unknown_options_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run_script(tmp_path, *arguments) == (2, [])


def test_a_missing_junit_file_is_a_failure(tmp_path: Path) -> None:
    assert read_junit(tmp_path / "none.xml")["failed"] == ["pytest did not end"]


def test_junit_is_counted_by_outcome(tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(
        """<testsuites><testsuite>
        <testcase classname="tests.diffusion.test_cuda" name="test_a[1]"/>
        <testcase classname="tests.test_other" name="test_a"/>
        <testcase classname="tests.diffusion.test_cuda" name="test_b"><failure message="no"/></testcase>
        <testcase classname="tests.diffusion.test_cuda" name="test_c"><error message="failed on setup"/></testcase>
        <testcase classname="" name="tests.test_x"><error message="collection failure"/></testcase>
        <testcase classname="" name="tests.test_y"><skipped message="why"/></testcase>
        </testsuite></testsuites>""",
        encoding="utf-8",
    )
    assert read_junit(path) == {
        "passed": 2,
        "skipped": 1,
        "failed": ["tests.diffusion.test_cuda::test_b", "tests.diffusion.test_cuda::test_c"],
        "not_imported": ["tests.test_x"],
        "device_tests_passed": 1,
    }


def good_result() -> dict[str, Any]:
    return {
        "tests": {"failed": [], "device_tests_passed": 3},
        "noise": {"normals": 8, "different": 0},
        "sanitizer": {"memcheck": "0", "racecheck": "124"},
        "capture_error": None,
        "failures": [],
    }


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tests", {"failed": ["a"], "device_tests_passed": 3}, "1 tests failed: a"),
        ("tests", {"failed": [], "device_tests_passed": 0}, "no test of tests/diffusion/test_cuda.py ran"),
        ("noise", {"normals": 8, "different": 2}, "2 of 8 normals differ"),
        ("sanitizer", {"memcheck": "77"}, "compute-sanitizer memcheck reported errors"),
        ("sanitizer", {"memcheck": "5"}, "memcheck: did not work, or its tests failed (exit status 5)"),
        ("capture_error", "no capture", "graph capture failed: no capture"),
        ("failures", ["copy: out of memory"], "copy: out of memory"),
    ],
)
def test_every_kind_of_problem_is_named(key: str, value: object, expected: str) -> None:
    assert problems(good_result()) == []
    (found,) = problems({**good_result(), key: value})
    assert expected in found


def test_a_part_that_fails_is_noted_and_leaves_the_others() -> None:
    attempt = Attempts()

    def fail(error: Exception) -> int:
        raise error

    assert attempt("noise", lambda: fail(BackendError("launch failed\nsecond line"))) is None
    assert attempt("host", lambda: fail(AttributeError("no such member"))) is None, "any exception"
    assert attempt("copy", lambda: 3) == 3
    assert attempt.failures == ["noise: launch failed second line", "host: AttributeError: no such member"]


def test_the_page_has_the_sanitizers_results() -> None:
    page = markdown({"sanitizer": {"memcheck": "0", "racecheck": "124"}})
    assert "compute-sanitizer, memcheck: no errors." in page
    assert "compute-sanitizer, racecheck: did not end in its time." in page


def test_results_identify_their_sources_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    import common

    def run(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", run)
    assert common.machine()["commit"] == ""
    whole, part = sources_sha256(), sources_sha256("csrc")
    assert len({whole, part, sources_sha256("bench")}) == 3
    stamp = {"machine": {"commit": ""}, "sources_sha256": whole}
    assert same_machine(stamp, dict(stamp))
    assert not same_machine(stamp, {**stamp, "sources_sha256": part})
