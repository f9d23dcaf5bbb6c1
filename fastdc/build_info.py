"""Facts of this installation: how the native module was built, which optional packages are present, which are missing.

``fastdc.build_config()``, ``fastdc info`` and bug reports all use the same dict.
"""

import platform
from typing import Any

from fastdc.diffusion import kernels
from fastdc.support import __version__, install_hint, version_of

CAPABILITIES = {
    "onnx backend": (("onnxruntime", "onnxruntime-gpu"), "cpu"),
    "torch backend": (("torch",), "torch"),
    "tensorrt": (("tensorrt-cu13", "tensorrt"), "tensorrt"),
    "tensorrt for RTX": (("tensorrt-rtx",), "tensorrt-rtx"),
    "prompts": (("tokenizers",), "text"),
    "UNet training": (("diffusers",), "train"),
    "training in several processes": (("accelerate",), "train"),
    "ONNX export": (("onnxscript",), "export"),
    "plots": (("matplotlib",), "plot"),
}
"""For each capability, the distributions that provide it and the extra that installs it."""


def build_config() -> dict[str, Any]:
    """Versions, compiler, instruction sets, CUDA support and optional packages of this installation.

    Returns:
        A dict of plain values:

        * "version", "python", "platform": versions of fastdc and Python, and the system;
        * "compiler", "build_type", "pybind11", "dlpack": how the native module was built;
        * "cpu_isa", "cpu_isas": the instruction set in use, and those available;
        * "cuda", "cuda_compiler", "cuda_architectures": whether the CUDA kernels are built in, and how;
        * "cuda_devices": number of CUDA devices that can be used now;
        * "present": for each capability that is installed, the package and its version;
        * "missing": for each other capability, the command that installs it.

    Example:
        >>> fastdc.build_config()["version"] == fastdc.__version__
        True
    """
    present, missing = {}, {}
    for capability, (distributions, extra) in CAPABILITIES.items():
        found = [f"{name} {version}" for name in distributions if (version := version_of(name))]
        if found:
            present[capability] = found[0]
        else:
            missing[capability] = install_hint(extra)
    return {
        **kernels.build_config(),
        "version": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "present": present,
        "missing": missing,
    }
