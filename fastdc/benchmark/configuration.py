"""The combinations of backend, device and precision that a machine and a bundle have, and batches to try with them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastdc.backends import PRECISIONS, NetworkOptions, default_backend
from fastdc.bundle import WEIGHTS, Bundle
from fastdc.diffusion import kernels
from fastdc.support import MissingDependencyError, installed, version_of


@dataclass(frozen=True)
class Configuration:
    """One way to run a network.

    Attributes:
        backend: Name of the backend.
        device: "cpu" or "cuda:0".
        precision: Precision as an option of :func:`fastdc.load`.
        batch: Largest number of network evaluations in a step; None: the backend's default.
        kind: Precision in words, which is "int8" for an int8 graph that takes and gives float32.
    """

    backend: str
    device: str
    precision: str
    batch: int | None = None
    kind: str = ""

    def __str__(self) -> str:
        place = "" if self.device == "cpu" else f" {self.device}"
        return f"{self.backend}{place} {self.kind or self.precision}"

    @property
    def network(self) -> tuple[str, str, str]:
        """Backend, device and precision: the configuration without its batch."""
        return self.backend, self.device, self.precision

    def with_batch(self, batch: int) -> "Configuration":
        """The same with another batch."""
        return replace(self, batch=batch)


def configurations(bundle: Bundle, *, quick: bool = False) -> tuple[Configuration, ...]:
    """The combinations that a machine and a bundle have: float32 of the reference first, then what ``load`` would take.

    Backends run the graph in the bundle's own precision, except torch, which runs the bundle's weights in any. The
    reference is the default backend if its graph is float32, else torch in float32 on the CPU, else the graph.

    Args:
        bundle: The bundle.
        quick: Whether to leave out half precision on the CPU, except that of the bundle's graph.

    Returns:
        Combinations with the default batch.

    Raises:
        MissingDependencyError: No backend is installed that can run the bundle.

    Example:
        >>> from fastdc.benchmark import configurations
        >>> str(configurations(fastdc.load_bundle(fastdc.bundle.find_model("digits")))[0])
        'onnx float32'
    """
    kind = str(bundle.manifest.get("precision", "float32"))
    graph = "float32" if kind == "int8" else kind
    found: list[Configuration] = []
    devices = ("cpu", "cuda:0") if kernels.cuda_device_count() else ("cpu",)
    torch = installed("torch") and WEIGHTS in bundle.files and isinstance(bundle.manifest.get("network"), dict)
    for device in devices:
        gpu = device != "cpu"
        if installed("onnxruntime") and (not gpu or version_of("onnxruntime-gpu") is not None):
            found.append(Configuration("onnx", device, graph, kind=kind))
        if torch:
            offered = PRECISIONS if gpu or not quick else ("float32",)
            found += [Configuration("torch", device, precision) for precision in offered]
        if gpu and (installed("tensorrt") or installed("tensorrt_rtx")):
            found.append(Configuration("tensorrt", device, graph, kind=kind))
    if not found:
        default_backend(NetworkOptions())  # raises, and says what to install
        raise MissingDependencyError(f"{bundle.name} needs ONNX Runtime: no installed backend can run it")
    default = default_backend(NetworkOptions())

    def rank(one: Configuration) -> tuple[bool, bool, bool]:
        return (one.device != "cpu", (one.kind or one.precision) != "float32", one.backend != default)

    reference = min(found, key=rank)
    return tuple(dict.fromkeys((reference, usual(found) or reference, *found)))


def usual(found: Sequence[Configuration]) -> Configuration | None:
    """What :func:`fastdc.load` takes if no option is given, of several configurations; None if it is not among them."""
    backend = default_backend(NetworkOptions())
    device = "cuda:0" if backend == "torch" and kernels.cuda_device_count() else "cpu"
    return next((one for one in found if (one.backend, one.device) == (backend, device)), None)


def other_batches(default: int) -> tuple[int, ...]:
    """Batches to try beside a backend's default: a quarter and four times as much."""
    return tuple(batch for batch in (max(1, default // 4), 4 * default) if batch != default)
