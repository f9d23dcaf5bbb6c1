"""The compiled part, ``fastdc._C``. Only this module imports it, and raises one clear error if it is missing."""

import importlib.util

try:
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
except ImportError:
    if importlib.util.find_spec("fastdc._C") is not None:  # it exists, so the failure has another cause
        raise
    raise ImportError("fastdc._C, the compiled part, is missing: 'pip install -e .', or leave the sources") from None

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
