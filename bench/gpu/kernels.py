"""Times of the CUDA kernels on this machine's device, for bench/gpu/check.py.

A time is that of launches inside a CUDA graph, measured by CUDA events: the median of the replays. Launches take turns
on up to 64 sets of buffers, so that only the small shapes find their data in the L2 cache. GB/s counts the bytes that
an operation cannot avoid: F or u once, each image and map once, noise never. "Of copy" is the time of a
device-to-device copy that moves as many bytes, measured in the same way, divided by the time of the kernel: at 100 % a
kernel is as fast as memory allows.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdc.diffusion import kernels

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LEVELS = 16  # coefficient rows, J
MAX_BUFFERS_BYTES = 8 * 2**30

Launch = Callable[[int], object]
"""Enqueues one operation on the stream of this handle."""


@dataclass(frozen=True)
class Shape:
    """Size of a measurement: B cells of D pixels, of which `classes` neighbours share an (image, draw) pair."""

    name: str
    cells: int
    size: int
    classes: int


STEPS = (
    Shape("digits 1x8x8", 256, 64, 10),
    Shape("CIFAR 3x32x32", 512, 3072, 10),
    Shape("ImageNet 3x64x64", 256, 12288, 1000),
    Shape("latent 4x64x64", 256, 16384, 10),
)
LARGE = (Shape("large, shared", 8192, 16384, 8), Shape("large, all distinct", 8192, 16384, 1))


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        op: Name of the operation.
        shape: Name of the shape.
        cells: Number of cells, B.
        size: Number of pixels, D.
        classes: Number of neighbouring cells that share an (image, draw) pair.
        dtype: Element type of F or u.
        bytes: Number of bytes that the operation must move.
        microseconds: Median time of one launch.
        quartiles: Quartiles of the time over the replays.
        gigabytes_per_second: Bytes divided by time.
        copy_microseconds: Time of a copy of as many bytes.
        of_copy: Time of the copy divided by the time of the kernel.
    """

    op: str
    shape: str
    cells: int
    size: int
    classes: int
    dtype: str
    bytes: int
    microseconds: float
    quartiles: tuple[float, float]
    gigabytes_per_second: float
    copy_microseconds: float
    of_copy: float


def l2_bytes(torch: Any) -> int:
    """Size of the device's L2 cache in bytes; 64 MiB if torch does not report it."""
    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 64 * 2**20


class Clock:
    """Times launches inside a CUDA graph, or one after the other if the capture fails.

    Args:
        torch: The module torch.
        replays: Number of replays that are timed.

    Attributes:
        capture_error: Message of a capture that failed, or None.
    """

    def __init__(self, torch: Any, replays: int) -> None:
        self._torch = torch
        self._replays = replays
        self.capture_error: str | None = None

    def microseconds(self, launches: Sequence[Launch]) -> tuple[float, float, float]:
        """Median and quartiles of the time of one launch. The launches should use different memory."""
        cuda = self._torch.cuda
        cuda.synchronize()  # the arrays were filled on another stream
        stream = cuda.Stream()
        with cuda.stream(stream):
            for launch in launches:  # loads the kernels, which a capture does not allow
                launch(stream.cuda_stream)
        stream.synchronize()
        run = self._captured(launches, stream)
        milliseconds = []
        with cuda.stream(stream):
            for replay in range(self._replays + 5):
                start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
                start.record()
                run()
                end.record()
                end.synchronize()
                if replay >= 5:
                    milliseconds.append(start.elapsed_time(end))
        low, median, high = np.percentile(milliseconds, [25, 50, 75]) * 1e3 / len(launches)
        return float(median), float(low), float(high)

    def _captured(self, launches: Sequence[Launch], stream: Any) -> Callable[[], object]:
        def one_by_one() -> None:
            for launch in launches:
                launch(stream.cuda_stream)

        if self.capture_error is not None:
            return one_by_one
        graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.cuda.graph(graph, stream=stream):
                one_by_one()
        except RuntimeError as error:
            self.capture_error = str(error).partition("\n")[0]
            return one_by_one
        replay: Callable[[], object] = graph.replay
        return replay


class Bench:
    """Builds the launches of each operation and measures them.

    Args:
        torch: The module torch.
        clock: Times the launches.
    """

    def __init__(self, torch: Any, clock: Clock) -> None:
        self._torch = torch
        self._clock = clock
        self._generator = np.random.default_rng(0)

    def _sets(self, set_bytes: int) -> int:
        """Number of sets of buffers: together four times the cache, and at least 2."""
        wanted = -(-4 * l2_bytes(self._torch) // set_bytes)
        return int(np.clip(wanted, 2, max(2, min(64, MAX_BUFFERS_BYTES // set_bytes))))

    def _views(self, shape: Shape) -> tuple[int, list[kernels.TensorView]]:
        """n, and views of images, cells, rows and streams. The classes of an (image, draw) pair are neighbours."""
        groups = -(-shape.cells // shape.classes)
        group = np.arange(shape.cells) // shape.classes
        n = max(1, groups // LEVELS)
        cells = np.stack([group % n, np.arange(shape.cells) % shape.classes, group // n % LEVELS], axis=1)
        arrays = [
            self._generator.uniform(-1, 1, (n, shape.size)).astype(np.float32),
            cells.astype(np.int32),
            self._generator.uniform(0.1, 1, (LEVELS, 8)).astype(np.float32),
            np.arange(n, dtype=np.int64),
        ]
        return n, [kernels.view(self._torch.from_numpy(array).cuda()) for array in arrays]

    def copy_microseconds(self, moved: int) -> float:
        """Time of a device-to-device copy that reads moved / 2 bytes and writes as many."""
        half = max(moved // 2, 1)
        pairs = [
            (self._torch.ones(half, dtype=self._torch.uint8, device="cuda"),
             self._torch.empty(half, dtype=self._torch.uint8, device="cuda"))
            for _ in range(self._sets(2 * half))
        ]  # fmt: skip
        launches: list[Launch] = [lambda _, pair=pair: pair[1].copy_(pair[0]) for pair in pairs]  # type: ignore[misc]
        return self._clock.microseconds(launches)[0]

    def _row(self, op: str, shape: Shape, dtype: str, moved: int, launches: Sequence[Launch]) -> Row:
        median, low, high = self._clock.microseconds(launches)
        copied = self.copy_microseconds(moved)
        return Row(
            op, shape.name, shape.cells, shape.size, shape.classes, dtype, moved, median, (low, high),
            moved / median * 1e-3, copied, copied / median,
        )  # fmt: skip

    def _network_side(self, shape: Shape, dtype: str, count: int) -> list[kernels.TensorView]:
        """Views of `count` arrays (B, D) of random values."""
        made = (
            self._torch.randn(shape.cells, shape.size, dtype=getattr(self._torch, dtype), device="cuda")
            for _ in range(count)
        )
        return [kernels.view(array) for array in made]

    def add_noise(self, shape: Shape, dtype: str) -> Row:
        """Times add_noise, which writes u = gx x + ge e. Bytes: u is written, images are read."""
        n, (images, cells, rows, streams) = self._views(shape)
        moved = shape.cells * shape.size * ELEMENT_BYTES[dtype] + n * shape.size * 4
        launches: list[Launch] = [
            lambda s, u=u: kernels.add_noise(images, cells, rows, streams, seed=1, out=u, stream=s)  # type: ignore[misc]
            for u in self._network_side(shape, dtype, self._sets(moved))
        ]
        return self._row("add_noise", shape, dtype, moved, launches)

    def denoising_error(self, shape: Shape, dtype: str) -> Row:
        """Times denoising_error, mean rho(a F + b x + c e). Bytes: F and images are read."""
        n, (images, cells, rows, streams) = self._views(shape)
        errors = kernels.view(self._torch.empty(shape.cells, device="cuda"))
        moved = shape.cells * shape.size * ELEMENT_BYTES[dtype] + n * shape.size * 4 + shape.cells * 4
        launches: list[Launch] = [
            lambda s, f=f: kernels.denoising_error(  # type: ignore[misc]
                f, images, cells, rows, streams, seed=1, out=errors, stream=s
            )
            for f in self._network_side(shape, dtype, self._sets(moved))
        ]
        return self._row("denoising_error", shape, dtype, moved, launches)

    def error_map(self, shape: Shape, dtype: str) -> Row:
        """Times error_map, += w rho(residual). Bytes: F and images are read, each map is read and written."""
        n, (images, cells, rows, streams) = self._views(shape)
        maps = kernels.view(self._torch.zeros(n, shape.classes, shape.size, device="cuda"))
        moved = shape.cells * shape.size * ELEMENT_BYTES[dtype] + n * shape.size * 4 * (1 + 2 * shape.classes)
        launches: list[Launch] = [
            lambda s, f=f: kernels.error_map(f, images, cells, rows, streams, maps, seed=1, stream=s)  # type: ignore[misc]
            for f in self._network_side(shape, dtype, self._sets(moved))
        ]
        return self._row("error_map", shape, dtype, moved, launches)

    def philox_normal(self, shape: Shape) -> Row:
        """Times philox_normal. Bytes: the normals are written."""
        moved = shape.cells * shape.size * 4
        streams = kernels.view(self._torch.arange(shape.cells, device="cuda"))
        draws = kernels.view(self._torch.zeros(shape.cells, dtype=self._torch.int32, device="cuda"))
        launches: list[Launch] = [
            lambda s, out=out: kernels.philox_normal(  # type: ignore[misc]
                streams, draws, shape.size, seed=1, out=out, stream=s
            )
            for out in self._network_side(shape, "float32", self._sets(moved))
        ]
        return self._row("philox_normal", shape, "float32", moved, launches)

    def host_microseconds(self) -> float:
        """Time of a call on the calling thread, with views made beforehand; smallest shape, best of 5 x 1,000 calls."""
        _, (images, cells, rows, streams) = self._views(STEPS[0])
        (u,) = self._network_side(STEPS[0], "float32", 1)
        best = float("inf")
        for _ in range(5):
            self._torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(1000):
                kernels.add_noise(images, cells, rows, streams, seed=1, out=u, stream=0)
            best = min(best, (time.perf_counter() - start) / 1000)
        return best * 1e6
