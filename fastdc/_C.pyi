"""Native kernels of fastdc. Private: use fastdc.ops. In step with csrc/bindings.cpp."""

from typing import Any

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
) -> None: ...
def build_config() -> dict[str, Any]: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...
def cuda_device_count() -> int: ...
