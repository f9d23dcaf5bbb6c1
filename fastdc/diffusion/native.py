"""The compiled part, ``fastdc._C``. Only this module imports it; ``import fastdc`` has found that it exists."""

from fastdc._C import (
    Ledger,
    TensorView,
    add_noise,
    build_config,
    cpu_isa,
    cuda_device_count,
    denoising_error,
    error_map,
    num_threads,
    philox_normal,
    philox_words,
    set_cpu_isa,
    set_num_threads,
    view_of_memory,
)

__all__ = [
    "Ledger",
    "TensorView",
    "add_noise",
    "build_config",
    "cpu_isa",
    "cuda_device_count",
    "denoising_error",
    "error_map",
    "num_threads",
    "philox_normal",
    "philox_words",
    "set_cpu_isa",
    "set_num_threads",
    "view_of_memory",
]
