"""The result of bench/gpu/gpu.sh as files: one JSON file, and a Markdown page with the same numbers.

The page holds only numbers of the JSON file. A part that did not run has a dash and a reason.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdc.support import write_whole

Record = dict[str, Any]
DASH = "-"


def write(path: Path, result: Record) -> Path:
    """Writes a result, each file whole or not at all, and returns the path of the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
    page = path.with_suffix(".md")
    write_whole(page, markdown(result).encode())
    return page


def read(path: Path) -> Record:
    """An earlier result; empty if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def complete(path: Path, stamp: Record) -> Record:
    """A result with this stamp, and with the file's earlier parts if they are of the same device and sources."""
    earlier = read(path)
    return earlier | stamp if same_machine(earlier, stamp) else dict(stamp)


def same_machine(one: Record, other: Record) -> bool:
    """Whether two results are of the same device and the same sources, so that they may share a file."""

    def stamp(result: Record) -> tuple[Any, ...]:
        gpu, machine = result.get("gpu") or {}, result.get("machine") or {}
        which = gpu.get("name"), gpu.get("driver"), machine.get("cpu")
        return *which, machine.get("commit"), result.get("sources_sha256")

    return stamp(one) == stamp(other)


def add_ratios(records: list[Record]) -> None:
    """Adds to each record its images per second relative to the fastest plain loop of the same invocation."""
    for record in records:
        plain = [
            other["parts"]["full"]["images_per_second"]
            for other in records
            if other["side"] == "plain loop"
            and other["invocation"] == record["invocation"]
            and "full" in other["parts"]
        ]
        if not plain or record["side"] == "plain loop":
            continue
        for part in ("full", "race"):
            if part in record["parts"]:
                record["parts"][part]["times_plain"] = record["parts"][part]["images_per_second"] / max(plain)


def markdown(result: Record) -> str:
    """The Markdown page of a result."""
    return "\n".join([*_stamp(result), *_kernels(result), *_networks(result), *_problems(result), ""])


def _stamp(result: Record) -> Iterator[str]:
    gpu, machine = result.get("gpu") or {}, result.get("machine") or {}
    yield f"# {gpu.get('name') or 'CPU: ' + str(machine.get('cpu'))}"
    yield ""
    versions = [
        *(f"{name} {gpu[name]}" for name in ("driver", "torch_cuda") if gpu.get(name)),
        *(
            f"{name} {machine[name]}"
            for name in ("fastdc", "commit", "python", "torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "cpu", "utc")
            if machine.get(name)
        ),
    ]
    yield ", ".join(versions)
    if result.get("sources_sha256"):
        yield f"\nSources {result['sources_sha256'][:12]}, kernels {str(gpu.get('csrc_sha256'))[:12]} (sha256)."


def _table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "|".join(["---", *["--:"] * (len(columns) - 1)]) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def outcome(code: str) -> str:
    """Meaning of an exit status of compute-sanitizer."""
    words = {"0": "no errors", "77": "errors", "124": "did not end in its time", "137": "did not end in its time"}
    return words.get(code, f"did not work, or its tests failed (exit status {code})")


def _kernels(result: Record) -> Iterator[str]:
    noise, tests = result.get("noise"), result.get("tests")
    if tests:
        yield f"\nTests: {tests['passed']} passed, {len(tests['failed'])} failed, {tests['skipped']} skipped."
    for tool, code in result.get("sanitizer", {}).items():
        yield f"\ncompute-sanitizer, {tool}: {outcome(code)}."
    if noise:
        yield f"\nNoise: {noise['different']} of {noise['normals']} normals differ from the CPU's."
    if result.get("rows"):
        yield f"\n## Kernels; a copy moves {result.get('copy_gigabytes_per_second') or 0:.0f} GB/s"
        yield from _table(
            ["kernel", "shape", "cells", "classes", "type", "us", "GB/s", "of copy"],
            [
                [r["op"], r["shape"], str(r["cells"]), str(r["classes"]), r["dtype"], f"{r['microseconds']:.1f}",
                 f"{r['gigabytes_per_second']:.0f}", f"{r['of_copy']:.0%}"]
                for r in result["rows"]
            ],
        )  # fmt: skip


def _networks(result: Record) -> Iterator[str]:
    for name, network in result.get("networks", {}).items():
        if "not_run" in network:
            yield f"\n## {name}: not run\n\n{network['not_run']}"
        if "records" not in network:
            continue
        work = network["work"]
        yield (
            f"\n## {name}: {network['parameters'] / 1e6:.1f} million parameters, steps of {work['batch']}, "
            f"{work['draws']} draws, limit {work['limit']}"
        )
        rows = [_row(record) for record in network["records"] if record["parts"]]
        columns = ["side", "error", "equal bits", "step ms", "host", "evaluations/s", "images/s", "x plain"]
        columns += ["race: evaluations/image", "images/s", "x plain", "p50 ms", "p95", "p99", "certified images/h"]
        yield from _table(columns, rows)
        yield from _details(network["records"])
        missing = [
            f"- {record['side']} {record['precision']}{', ' + part if part else ''}: {reason}"
            for record in network["records"]
            for part, reason in record["not_run"].items()
        ]
        if missing:
            yield "\nNot run:\n"
            yield from missing


def _details(records: list[Record]) -> Iterator[str]:
    """Versions, providers and engines of the sides."""
    lines = [
        f"- {record['side']} {record['precision']}: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["details"].items())
        for record in records
        if record.get("details")
    ]
    if lines:
        yield "\nVersions:\n"
        yield from lines


def _row(record: Record) -> list[str]:
    parts = record["parts"]

    def shown(part: str, name: str, form: str = "{:.3g}") -> str:
        value = parts.get(part, {}).get(name)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return DASH if value is None else form.format(value)

    return [
        f"{record['side']} {record['precision']}",
        shown("check", "difference", "{:.1e}"),
        shown("step", "equal_bits"),
        shown("full", "step_milliseconds"),
        shown("full", "host_share", "{:.1%}"),
        shown("full", "evaluations_per_second", "{:.0f}"),
        shown("full", "images_per_second"),
        shown("full", "times_plain", "{:.1f}x"),
        shown("race", "evaluations_per_image", "{:.1f}"),
        shown("race", "images_per_second"),
        shown("race", "times_plain", "{:.1f}x"),
        *(shown("latency", f"p{p}_milliseconds") for p in (50, 95, 99)),
        shown("certify", "images_per_hour"),
    ]


def problems_of(networks: Record) -> list[str]:
    """Problems of the networks, in words."""
    entries = [entry for network in networks.values() for entry in (network, *network.get("records", []))]
    return [problem for entry in entries for problem in entry.get("problems", [])]


def _problems(result: Record) -> Iterator[str]:
    found = [*result.get("problems", []), *problems_of(result.get("networks", {}))]
    if found:
        yield "\n## Problems\n"
        yield from (f"- {problem}" for problem in found)
