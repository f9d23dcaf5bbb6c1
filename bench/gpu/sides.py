"""The ways to run a network that bench/gpu_networks.py compares, and how each is opened.

Engines of fastdc: torch eager (each kernel launched by itself), torch.compile, torch with captured steps, ONNX Runtime,
TensorRT or TensorRT-RTX; and the plain loop of gpu_plain.py. A side is a name and a precision; "tf32" is float32 whose
products may be rounded to TF32.

ONNX Runtime and TensorRT run a bundle, exported here once a precision and kept in a folder. On the CPU there are the
plain loop, torch and ONNX Runtime's CPU provider, so that everything but the devices is tested without one.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fastdc.backends import NetworkOptions, open_network
from fastdc.bundle.folder import Bundle, load_bundle
from fastdc.support.exceptions import MissingDependencyError
from fastdc.support.optional import installed, require
from gpu_models import Case
from gpu_plain import PRECISIONS as PLAIN_PRECISIONS

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
"""Precisions of each side in the order in which they are run, so that what comes last is what time may not allow."""

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
"""What sides are called on the command line."""


@dataclass(frozen=True)
class Side:
    """One way to run a network.

    Attributes:
        name: Of :data:`SIDES`.
        precision: One of its precisions.
    """

    name: str
    precision: str

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


class Absent(Exception):  # noqa: N818 - nothing went wrong
    """A side that cannot be run here; says what is missing."""


def chosen(words: tuple[str, ...], device: str) -> list[Side]:
    """The sides of these words on a device, in order."""
    names = {_WORDS[word] for word in words}
    table = SIDES if device.startswith("cuda") else {name: ON_CPU.get(name, ("float32",)) for name in SIDES}
    return [Side(name, precision) for name, kinds in table.items() if name in names for precision in kinds]


class Bundles:
    """Bundles of the networks, exported where they are not in the folder yet.

    Args:
        folder: Where they are kept.
        notify: Told what is being done.
    """

    def __init__(self, folder: Path, notify: Callable[[str], None]) -> None:
        self._folder, self._notify = folder, notify

    def open(self, case: Case, precision: str) -> Bundle:
        """The bundle of a network; "tf32" is float32's.

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
            # At one row: each side's errors are compared with the CPU's afterwards, and a large network takes minutes.
            with mock.patch.object(denoiser, "CHECKED_BATCHES", (1,)):
                return export_source(case.source, path, precision=precision, split=False, text=False)
        except MissingDependencyError as error:
            raise Absent(str(error)) from None


def open_side(side: Side, case: Case, device: str, bundles: Bundles) -> Any:
    """The network of a side, not of the plain loop, ready to run.

    Raises:
        Absent: The side cannot be run here.
        FastdcError: It should run and does not.
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
    from fastdc.backends.torch import TorchNetwork

    network = TorchNetwork(module_of(case), case.source.model.sample_shape, options)
    if side.name == COMPILED:
        network.sizes = (network.batch,)  # every size is compiled by itself, a minute each: full steps alone are
    return network


def details(network: Any) -> dict[str, Any]:
    """What ran, as the network itself says it."""
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
    from fastdc.sources.base import WithTables

    return WithTables(copy.deepcopy(case.source.denoiser), case.source.tables).eval()


def _check(side: Side, device: str) -> None:
    """Raises Absent where a side cannot be run."""
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
