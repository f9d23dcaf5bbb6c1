"""What this installation is: how the native module was built, which backends are there, what brings the others.

One dict for ``fastdc.build_config()``, ``fastdc info`` and bug reports.
"""

import platform
from typing import Any

from fastdc.diffusion import kernels
from fastdc.support import __version__, version_of

# Capability -> (distributions that give it, the extra that installs it).
CAPABILITIES = {
    "onnx backend": (("onnxruntime", "onnxruntime-gpu"), "cpu"),
    "torch backend": (("torch",), "cuda"),
    "tensorrt": (("tensorrt-cu13", "tensorrt"), "tensorrt"),
    "tensorrt for RTX": (("tensorrt-rtx",), "tensorrt-rtx"),
    "prompts": (("tokenizers",), "text"),
    "UNet training": (("diffusers",), "train"),
    "ONNX export": (("onnxscript",), "export"),
    "plots": (("matplotlib",), "plot"),
}


def build_config() -> dict[str, Any]:
    """Versions, compiler, instruction sets, CUDA, and optional packages.

    Returns:
        Plain values: "version", "python", "platform"; of the native module "compiler", "build_type", "pybind11",
        "dlpack", "cpu_isa" (in use), "cpu_isas" (available), "cuda" (built in), "cuda_compiler",
        "cuda_architectures", "cuda_devices" (usable now); "present": capability -> package and version; "missing":
        capability -> the command that installs it.
    """
    present, missing = {}, {}
    for capability, (distributions, extra) in CAPABILITIES.items():
        found = [f"{name} {version}" for name in distributions if (version := version_of(name))]
        if found:
            present[capability] = found[0]
        else:
            missing[capability] = f"pip install 'fastdc[{extra}]'"
    return {
        **kernels.build_config(),
        "version": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "present": present,
        "missing": missing,
    }
