"""Compares CUDA noise with the CPU's bit for bit, and times the kernels beside a copy; part of bench/gpu/gpu.sh.

    bench/gpu/gpu.sh [RESULT.json]                          builds for the device first; the usual way
    python bench/gpu/check.py --out RESULT.json [--quick]   with a fastdc that was built with CUDA

It also reads the results of the tests and of compute-sanitizer, which gpu.sh ran before. A part that fails is noted
among the problems, and the others still run. If RESULT.json exists and is of the same device and sources, its other
parts are kept. Exit status: 0 all is well, 1 problems, 2 nothing to run on.
"""

import hashlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

if not __package__:  # run as a file: imports start at bench/, as for the scripts there
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common import RESULTS, ROOT, machine, parser, print_table
from fastdc.diffusion import kernels
from fastdc.support import FastdcError, require, shorten
from gpu.kernels import ELEMENT_BYTES, LARGE, STEPS, Bench, Clock, Row, l2_bytes
from gpu.report import complete, outcome, write

Result = TypeVar("Result")

SEEDS = (0, 0x9E3779B97F4A7C15)


def gpu_stamp(torch: Any) -> dict[str, Any]:
    """The device, the driver, the build and the sources that the numbers hold for."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": l2_bytes(torch),
        "driver": driver_version(),
        "torch_cuda": torch.version.cuda,
        "build": kernels.build_config(),
        "csrc_sha256": sources_sha256("csrc"),
    }


def sources_sha256(*folders: str) -> str:
    """Hash of the names and contents of the sources in these folders; identifies them without git, or after changes."""
    digest = hashlib.sha256()
    for folder in folders or ("csrc", "fastdc", "bench"):
        for path in sorted((ROOT.parent / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".cu", ".h", ".sh"):
                digest.update(f"{path.relative_to(ROOT.parent)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def driver_version() -> str | None:
    """Version of the driver from nvidia-smi; None if it fails."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def compare_noise(torch: Any, normals: int) -> dict[str, Any]:
    """Makes at least `normals` normals on CPU and device, in pieces, and counts those whose bits differ."""
    size, rows = 2**20, 32
    result: dict[str, Any] = {"normals": 0, "different": 0, "first_difference": None}
    for piece in range(-(-normals // (size * rows))):
        seed = SEEDS[piece % len(SEEDS)]
        streams = np.arange(rows, dtype=np.int64) * 2**50 + piece  # uses all 56 bits
        draws = np.arange(rows, dtype=np.int32) * 65_537 + piece
        expected = kernels.philox_normal(streams, draws, size, seed=seed).view(np.uint32)
        on_device = kernels.philox_normal(
            torch.from_numpy(streams).cuda(), torch.from_numpy(draws).cuda(), size, seed=seed
        )
        actual = on_device.cpu().numpy().view(np.uint32)
        different = np.flatnonzero(actual != expected)
        result["normals"] += expected.size
        result["different"] += len(different)
        if len(different) and result["first_difference"] is None:
            row, element = divmod(int(different[0]), size)
            bits = [f"{int(side.flat[different[0]]):08x}" for side in (expected, actual)]
            result["first_difference"] = {
                "seed": seed, "stream": int(streams[row]), "draw": int(draws[row]), "element": element,
                "cpu": bits[0], "cuda": bits[1],
            }  # fmt: skip
    return result


def said(error: Exception) -> str:
    """An exception in one line; its type comes first unless it is an exception of fastdc."""
    kind = "" if isinstance(error, FastdcError) else f"{type(error).__name__}: "
    return shorten(kind + str(error), 400)


class Attempts:
    """Runs parts one by one; a failure of one is noted, and the others still run."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def __call__(self, name: str, part: Callable[[], Result]) -> Result | None:
        try:
            return part()
        except Exception as error:  # any failure must leave the other parts
            self.failures.append(f"{name}: {said(error)}")
            return None


def measure(bench: Bench, attempt: Attempts, *, quick: bool) -> list[Row]:
    """All rows, in the order of the table."""
    parts: list[tuple[str, Callable[[], Row]]] = [("philox_normal", lambda: bench.philox_normal(LARGE[0]))]
    for shape in LARGE if quick else (*STEPS, *LARGE):
        for dtype in ("float32",) if quick else ELEMENT_BYTES:
            for op in (bench.add_noise, bench.denoising_error):
                parts.append((f"{op.__name__} {shape.name} {dtype}", partial(op, shape, dtype)))
    if not quick:
        for shape, dtype in ((STEPS[1], "float32"), (STEPS[3], "float16")):
            parts.append((f"error_map {shape.name} {dtype}", partial(bench.error_map, shape, dtype)))
    rows = [attempt(name, part) for name, part in parts]
    return [row for row in rows if row is not None]


def kernel_figures(torch: Any, *, quick: bool) -> dict[str, Any]:
    """The comparison of the noise, and the times."""
    clock, attempt = Clock(torch, replays=10 if quick else 50), Attempts()
    bench = Bench(torch, clock)
    copy = attempt("copy", lambda: 2**31 / bench.copy_microseconds(2**31) * 1e-3)
    return {
        "noise": attempt("noise", lambda: compare_noise(torch, 2**26 if quick else 2**29)),
        "copy_gigabytes_per_second": copy,
        "host_microseconds_per_call": attempt("host time", bench.host_microseconds),
        "rows": [asdict(row) for row in measure(bench, attempt, quick=quick)],
        "capture_error": clock.capture_error,
        "failures": attempt.failures,
    }


def read_junit(path: Path) -> dict[str, Any]:
    """Counts of pytest's results, with the names of failed tests and of modules that could not be imported.

    pytest writes the file when it ends. A missing file therefore counts as a failure.
    """
    counts: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": [], "not_imported": [], "device_tests_passed": 0}
    if not path.exists():
        counts["failed"].append("pytest did not end")
        return counts
    for case in ET.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        error = case.find("error")
        if error is not None and "collection failure" in (error.get("message") or ""):
            counts["not_imported"].append(name.strip(":"))
        elif error is not None or case.find("failure") is not None:
            counts["failed"].append(name)
        elif case.find("skipped") is not None:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
            counts["device_tests_passed"] += "test_cuda::" in name
    return counts


_ENDED = ("0", "77", "124", "137")


def problems(result: dict[str, Any]) -> list[str]:
    """Problems of a result, in words; empty if all is well."""
    found = []
    tests, noise = result.get("tests"), result.get("noise")
    if tests is not None and tests["failed"]:
        found.append(f"{len(tests['failed'])} tests failed: {', '.join(tests['failed'][:5])}")
    if tests is not None and not tests["device_tests_passed"]:
        found.append("no test of tests/diffusion/test_cuda.py ran")
    found += result.get("failures", [])
    if noise is not None and noise["different"]:
        found.append(f"{noise['different']} of {noise['normals']} normals differ from the CPU's")
    sanitizer = result.get("sanitizer", {})
    found += [f"compute-sanitizer {tool} reported errors" for tool, code in sanitizer.items() if code == "77"]
    found += [f"compute-sanitizer {tool}: {outcome(code)}" for tool, code in sanitizer.items() if code not in _ENDED]
    if result.get("capture_error"):
        found.append(f"graph capture failed: {result['capture_error']}")
    return found


def show(result: dict[str, Any]) -> None:
    """Prints the table, the comparison of the noise, and the problems."""
    copy, noise = result.get("copy_gigabytes_per_second"), result.get("noise")
    print_table(
        result["gpu"]["name"] + (f", copy {copy:.0f} GB/s" if copy else ""),
        ["op", "shape", "B", "classes", "dtype", "us", "GB/s", "of copy"],
        [
            [r["op"], r["shape"], str(r["cells"]), str(r["classes"]), r["dtype"], f"{r['microseconds']:.1f}",
             f"{r['gigabytes_per_second']:.0f}", f"{r['of_copy']:.0%}"]
            for r in result.get("rows", [])
        ],
    )  # fmt: skip
    if noise is not None:
        print(f"\nnoise: {noise['different']} of {noise['normals']} normals differ from the CPU's")
    for problem in result["problems"]:
        print(f"problem: {problem}", file=sys.stderr)


def main() -> int:
    arguments = parser(__doc__, "gpu")
    arguments.set_defaults(out=None)
    arguments.add_argument("--quick", action="store_true", help="measure fewer shapes, with fewer repetitions")
    arguments.add_argument("--no-kernels", action="store_true", help="record only tests and sanitizer")
    arguments.add_argument("--junit", type=Path, help="JUnit file of pytest -m cuda")
    arguments.add_argument("--sanitizer", default="", help="TOOL=STATUS ... from compute-sanitizer")
    options = arguments.parse_args()
    torch = require("torch", extra="cuda")
    if not kernels.build_config()["cuda"] or kernels.cuda_device_count() == 0 or not torch.cuda.is_available():
        print("check: needs a CUDA device and a fastdc built with CUDA (bench/gpu/gpu.sh builds it)", file=sys.stderr)
        return 2
    stamp: dict[str, Any] = {"machine": machine(), "command": " ".join(sys.argv), "gpu": gpu_stamp(torch)}
    stamp["sources_sha256"] = sources_sha256()
    slug = re.sub(r"[^a-z0-9]+", "-", stamp["gpu"]["name"].lower()).strip("-")
    out = options.out or RESULTS / f"gpu-{slug}.json"
    result = complete(out, stamp)
    if options.junit:
        result["tests"] = read_junit(options.junit)
    if options.sanitizer:
        result["sanitizer"] = dict(item.split("=") for item in options.sanitizer.split())
    if not options.no_kernels:
        result |= kernel_figures(torch, quick=options.quick)
    result["problems"] = problems(result)
    show(result)
    print(f"\nwritten to {out} and {write(out, result)}")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
