"""The machine that a measurement holds for, read from the system's own files: nothing is imported or started for it."""

import platform
import re
from pathlib import Path
from typing import Any

from fastdc.backends.host import usable_cpus
from fastdc.support import __version__, version_of

_PROC = Path("/proc")

PACKAGES = {
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
    "torch": ("torch",),
    "tensorrt": ("tensorrt-cu13", "tensorrt", "tensorrt-rtx"),
}
"""For each backend, the distributions that provide it."""


def machine_facts(threads: int | None = None, proc: Path = _PROC) -> dict[str, Any]:
    """What the speed of a network depends on, besides the model and the versions.

    Args:
        threads: Number of CPU threads; None: as many as the process may use CPUs.
        proc: The system's folder of facts.

    Returns:
        "cpu": name of the processor; "cpus": CPUs that this process may use; "threads"; "gpus": names of NVIDIA's GPUs;
        "driver": version of their driver, "" without one.

    Example:
        >>> from fastdc.backends import machine_facts
        >>> machine_facts(threads=1)["threads"]
        1
    """
    cpus = usable_cpus()
    gpus = sorted(
        line.removeprefix("Model:").strip()
        for file in (proc / "driver" / "nvidia" / "gpus").glob("*/information")
        for line in _lines(file)
        if line.startswith("Model:")
    )
    version = re.search(r"\b[0-9]{3,}\.[0-9.]+\b", next(iter(_lines(proc / "driver" / "nvidia" / "version")), ""))
    return {
        "cpu": _cpu(proc),
        "cpus": cpus,
        "threads": threads or cpus,
        "gpus": gpus,
        "driver": version[0] if version else "",
    }


def backend_versions(backend: str) -> dict[str, str | None]:
    """The versions that a backend's speed and rounding depend on: fastdc's, and its package's; None if that is missing.

    Args:
        backend: Name of the backend.

    Example:
        >>> from fastdc.backends import backend_versions
        >>> backend_versions("onnx")["fastdc"] == fastdc.__version__
        True
    """
    return {"fastdc": __version__, backend: version_of(*PACKAGES[backend])}


def _cpu(proc: Path) -> str:
    try:
        with (proc / "cpuinfo").open(encoding="utf-8", errors="replace") as lines:  # long: each CPU has a paragraph
            found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        found = ""
    return found or platform.machine()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
