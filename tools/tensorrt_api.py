"""Records the interface of TensorRT's Python bindings, so that fastdc's calls can be checked without TensorRT.

For each class that ``fastdc/backends/tensorrt`` uses, the record lists the public members and the signatures that
pybind11 writes into their docstrings: facts for interoperability, without the text of the documentation. ``tensorrt``
cannot be imported without its libraries, which need a machine with a GPU. Its bindings can, given three libraries that
define the functions they link to and do nothing. This script compiles those libraries and imports the bindings in a
separate process.

Run: python tools/tensorrt_api.py tensorrt_cu13_bindings-11.4.0.106-cp311-none-manylinux_2_28_x86_64.whl \
         tests/golden/tensorrt-11.4.json
     python tools/tensorrt_api.py tensorrt_rtx tests/golden/tensorrt-rtx-1.7.json      (as installed)

Needs a C compiler; `pip download --no-deps tensorrt-cu13-bindings==...` fetches a wheel for the Python that runs this.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IAttention",
    "IAttentionOutputLayer",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)

# Library -> functions that the bindings link to.
_STUBS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}


def signatures_of(docstring: str | None, name: str) -> list[str]:
    """The signatures in a docstring by pybind11: its first line, or one numbered line per overload."""
    lines = (docstring or "").splitlines()
    found = [re.sub(r"^\d+\. ", "", line) for line in lines if re.match(rf"(\d+\. )?{re.escape(name)}\(.*\) -> ", line)]
    return [re.sub(r"\b(tensorrt\w*\.)+", "", re.sub(r" at 0x[0-9a-f]+", "", line)) for line in found]


def members_of(cls: Any) -> dict[str, Any]:
    """Public members of a class: a list of signatures for each method, and a word for any other member."""
    members: dict[str, Any] = {}
    enumerators = getattr(cls, "__members__", {})
    for name in sorted({*dir(cls)}):
        if name.startswith("_") and name != "__init__":
            continue
        static = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
        if name in enumerators:
            members[name] = "value"
        elif isinstance(static, property):
            members[name] = "property" if static.fset else "read-only property"
        elif isinstance(getattr(cls, name), type):
            members[name] = "class"
        elif callable(getattr(cls, name)):
            found = signatures_of(getattr(cls, name).__doc__, name)
            if found or name != "__init__":
                members[name] = found
        else:
            members[name] = "value"
    return members


def describe(module: Any) -> dict[str, Any]:
    """The interface of an imported module."""
    classes = {name: members_of(getattr(module, name)) for name in CLASSES if hasattr(module, name)}
    classes["ILogger.Severity"] = members_of(module.ILogger.Severity)
    return {"version": module.__version__, "classes": classes}


def compile_stubs(folder: Path, major: str) -> None:
    """Compiles libraries with the names and functions that the bindings link to."""
    for library, functions in _STUBS.items():
        name = f"lib{library}.so.{major}"
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions))
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run([*command, str(source)], check=True)


def describe_wheel(wheel: Path) -> dict[str, Any]:
    """The interface of the bindings in a wheel, imported in a separate process."""
    with tempfile.TemporaryDirectory(prefix="tensorrt-api-") as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        version = wheel.name.split("-")[1]
        compile_stubs(folder, version.partition(".")[0])
        paths = os.pathsep.join((str(folder), str(Path(__file__).parent)))
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": paths}
        code = (
            "import json, tensorrt_api, tensorrt_bindings; print(json.dumps(tensorrt_api.describe(tensorrt_bindings)))"
        )
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout))


def main() -> None:
    source, target = sys.argv[1:]
    if source.endswith(".whl"):
        found, origin = describe_wheel(Path(source)), Path(source).name
    else:
        found = describe(importlib.import_module(source))
        origin = f"{source} {found['version']} as installed"
    result = {"origin": f"{origin}, read by tools/tensorrt_api.py", **found}
    Path(target).write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
