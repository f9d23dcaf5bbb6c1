"""Native kernels of fastdc. Private: use fastdc.diffusion.kernels. Describes csrc/bindings.cpp."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class TensorView:
    def __init__(self, array: Any, dtype: str = ...) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def is_cuda(self) -> bool: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def pointer(self) -> int: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = ...,
        max_version: tuple[int, int] | None = ...,
        dl_device: tuple[int, int] | None = ...,
        copy: bool | None = ...,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

def view_of_memory(
    pointer: int, shape: Sequence[int], dtype: str, device_type: int, device_id: int, owner: Any
) -> TensorView: ...
def philox_words(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]: ...
def philox_normal(
    streams: TensorView, draws: TensorView, seed: int, out: TensorView, purpose: int, stream: int
) -> None: ...
def add_noise(
    images: TensorView,
    cells: TensorView,
    rows: TensorView,
    streams: TensorView,
    seed: int,
    u: TensorView,
    timestep: TensorView | None,
    labels: TensorView | None,
    n_classes: int,
    purpose: int,
    stream: int,
    antithetic: bool = ...,
) -> None: ...
def denoising_error(
    network_output: TensorView,
    images: TensorView,
    cells: TensorView,
    rows: TensorView,
    streams: TensorView,
    seed: int,
    errors: TensorView,
    target: TensorView | None,
    loss: str,
    delta: float,
    n_classes: int,
    purpose: int,
    stream: int,
    antithetic: bool = ...,
) -> None: ...
def error_map(
    network_output: TensorView,
    images: TensorView,
    cells: TensorView,
    rows: TensorView,
    streams: TensorView,
    seed: int,
    maps: TensorView,
    target: TensorView | None,
    loss: str,
    delta: float,
    purpose: int,
    stream: int,
    antithetic: bool = ...,
) -> None: ...
def build_config() -> dict[str, Any]: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...
def cuda_device_count() -> int: ...

class Ledger:
    """Cells wanted, cells in flight and errors of the requests of a run; csrc/ledger.h describes the methods."""

    def __init__(self, n_draws: int, n_classes: int) -> None: ...
    def open(self, place: int, classes: npt.NDArray[np.int32], end: int, priority: int) -> None: ...
    def extend(self, places: npt.NDArray[np.int32], end: int, priority: int) -> None: ...
    def add(self, place: int, classes: npt.NDArray[np.int32], priority: int) -> None: ...
    def propose(self, room: int) -> tuple[int, npt.NDArray[np.int32]]: ...
    def observe(self, ticket: int, errors: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]: ...
    def drawn(self, place: int) -> int: ...
    def gather(self, places: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]: ...
    def drop(self, places: npt.NDArray[np.int32], keep: npt.NDArray[np.bool_]) -> None: ...
    def close(
        self, places: npt.NDArray[np.int32]
    ) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], int]]: ...
    @property
    def waiting(self) -> int: ...
    @property
    def flying(self) -> int: ...
