"""The sides that bench/gpu/networks.py compares: ways to run a network, and how each is opened.

The sides of fastdc are torch eager (each kernel is launched separately), torch.compile, torch with captured steps, ONNX
Runtime, and TensorRT or TensorRT-RTX. They are compared with the plain loop of gpu/plain_loop.py. A side has a name and
a precision; "tf32" is float32 whose products may be rounded to TF32.

ONNX Runtime and TensorRT run a bundle, which is exported here once per precision and kept in a folder. On the CPU there
are the plain loop, torch and ONNX Runtime's CPU provider, so that everything but the devices is tested without a GPU.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fastdc.backends import NetworkOptions, open_network
from fastdc.bundle import Bundle, load_bundle
from fastdc.support import MissingDependencyError, installed, require
from gpu.models import Case
from gpu.plain_loop import PRECISIONS as PLAIN_PRECISIONS

PLAIN = "plain loop"
EAGER, COMPILED, CAPTURED = "torch eager", "torch.compile", "torch, captured"
ONNX, TENSORRT = "ONNX Runtime", "TensorRT"
SIDES: dict[str, tuple[str, ...]] = {
    PLAIN: PLAIN_PRECISIONS,
    CAPTURED: ("bfloat16", "float16", "tf32", "float32"),
    TENSORRT: ("float16", "bfloat16", "tf32"),
    ONNX: ("float16", "tf32"),
    EAGER: ("bfloat16", "float16", "tf32", "float32"),
    COMPILED: ("bfloat16",),
}
"""Precisions of each side, in the order of the measurements: if time runs out, the last ones are left out."""

ON_CPU = {PLAIN: ("float32", "bfloat16"), EAGER: ("float32",), ONNX: ("float32",)}

_WORDS = {
    "plain": PLAIN,
    "eager": EAGER,
    "compile": COMPILED,
    "captured": CAPTURED,
    "onnx": ONNX,
    "tensorrt": TENSORRT,
}
WORDS = tuple(_WORDS)
"""Names of the sides on the command line."""


@dataclass(frozen=True)
class Side:
    """One way to run a network.

    Attributes:
        name: Key of :data:`SIDES`.
        precision: One of the side's precisions.
    """

    name: str
    precision: str

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


class Absent(Exception):  # noqa: N818 - nothing went wrong
    """A side that cannot run here; the message names what is missing."""


def chosen(words: tuple[str, ...], device: str) -> list[Side]:
    """The sides with these names on a device, in order."""
    names = {_WORDS[word] for word in words}
    table = SIDES if device.startswith("cuda") else {name: ON_CPU.get(name, ("float32",)) for name in SIDES}
    return [Side(name, precision) for name, kinds in table.items() if name in names for precision in kinds]


class Bundles:
    """Bundles of the networks, exported if they are not in the folder yet.

    Args:
        folder: Folder of the bundles.
        notify: Called with a line before each export.
    """

    def __init__(self, folder: Path, notify: Callable[[str], None]) -> None:
        self._folder, self._notify = folder, notify

    def open(self, case: Case, precision: str) -> Bundle:
        """The bundle of a network; "tf32" has the bundle of float32.

        Raises:
            Absent: A package that exports is not installed.
        """
        precision = "float32" if precision == "tf32" else precision
        path = self._folder / f"{case.name}-{precision}"
        if path.exists():
            return load_bundle(path)
        try:
            from fastdc.export import denoiser, export_source

            self._notify(f"exporting {case.name} in {precision}")
            # Compared with torch at one row only: a large network takes minutes, and the part "check" compares errors.
            with mock.patch.object(denoiser, "CHECKED_BATCHES", (1,)):
                return export_source(case.source, path, precision=precision, split=False, text=False)
        except MissingDependencyError as error:
            raise Absent(str(error)) from None


def open_side(side: Side, case: Case, device: str, bundles: Bundles) -> Any:
    """The network of a side other than the plain loop, ready to run.

    Raises:
        Absent: The side cannot run here.
        FastdcError: The side can run here, and fails.
    """
    _check(side, device)
    options = NetworkOptions(
        device=device,
        batch=case.work.batch,
        precision="float32" if side.precision == "tf32" else side.precision,
        tf32=side.precision == "tf32",
        compile=side.name == COMPILED,
        graphs=side.name not in (EAGER, COMPILED),
    )
    if side.name in (ONNX, TENSORRT):
        backend = "onnx" if side.name == ONNX else "tensorrt"
        try:
            return open_network(bundles.open(case, side.precision), backend, options)
        except MissingDependencyError as error:
            raise Absent(str(error)) from None
    from fastdc.backends import TorchNetwork

    network = TorchNetwork(module_of(case), case.source.model.sample_shape, options)
    if side.name == COMPILED:
        network.sizes = (network.batch,)  # each size takes a minute to compile, so only full steps are used
    return network


def details(network: Any) -> dict[str, Any]:
    """Facts about an opened network: versions, provider, engine."""
    found: dict[str, Any] = {"batch": network.batch}
    if network.backend == "tensorrt":
        worst = max(one["relative"] for one in network.self_test["checks"])
        found |= {"version": network.version, "engine": network.plan.stem[:12], "built": network.built}
        found |= {"self_test": worst, "self_test_allowed": network.self_test["allowed"]}
    elif network.backend == "onnx":
        found |= {"version": require("onnxruntime", extra="cuda").__version__}
        found |= {"provider": getattr(network, "provider", "CPUExecutionProvider")}
    else:
        found |= {"version": require("torch", extra="cuda").__version__}
    return found


def module_of(case: Case) -> Any:
    """A copy of the network with its tables, called as (sample, timestep, class_labels), on the CPU."""
    from fastdc.sources import WithTables

    return WithTables(copy.deepcopy(case.source.denoiser), case.source.tables).eval()


def _check(side: Side, device: str) -> None:
    """Raises Absent if a side cannot run here."""
    cuda = device.startswith("cuda")
    if not cuda and side.name in (COMPILED, CAPTURED, TENSORRT):
        raise Absent("needs a CUDA device")
    if side.name == TENSORRT and not (installed("tensorrt") or installed("tensorrt_rtx")):
        raise Absent("tensorrt (or tensorrt_rtx) is not installed")
    if side.name == ONNX:
        if not installed("onnxruntime"):
            raise Absent("onnxruntime is not installed")
        if cuda and "CUDAExecutionProvider" not in require("onnxruntime", extra="cuda").get_available_providers():
            raise Absent("onnxruntime-gpu is not installed: this ONNX Runtime has no CUDAExecutionProvider")
