"""The PTX and machine code that nvcc makes of the CUDA kernels. Needs nvcc and cuobjdump, but no GPU.

Three properties can be checked without a device. First, the noise has the CPU's bits only if no multiplication is fused
with an addition: PTX must state the rounding of every operation, which forbids ptxas to fuse, and the machine code must
have as many additions and multiplications. Second, memory moves 16 bytes per thread. Third, no register spills, and no
addition is atomic.

cuobjdump comes with the CUDA toolkit, or with ``pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm``.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.paths import ROOT

MAX_REGISTERS = 128  # two blocks of 256 threads fill the 65,536 registers of a multiprocessor


def _nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def _disassembler_folder() -> str | None:
    """The folder of cuobjdump and nvdisasm: on PATH, or in the pip packages."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec is not None else []
    packaged = [str(folder) for root in roots for folder in Path(root).glob("*/bin")]
    found = shutil.which("cuobjdump", path=os.pathsep.join([os.environ.get("PATH", ""), *packaged]))
    return str(Path(found).parent) if found else None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_nvcc() is None, reason="needs nvcc"),
    pytest.mark.skipif(_disassembler_folder() is None, reason="needs cuobjdump and nvdisasm"),
]


@dataclass(frozen=True)
class Compiled:
    """One architecture's build: PTX, machine code instructions by kernel, and what ptxas reported."""

    ptx: dict[str, str]
    sass: dict[str, list[str]]
    report: str


def _options() -> list[str]:
    """The numeric options that CMakeLists.txt gives to nvcc."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"set\(FASTDC_CUDA_OPTIONS ([^)]*)\)", text)
    assert found is not None
    options = [option for option in found.group(1).split() if not option.startswith(("-X", '"-X'))]
    assert "--fmad=false" in options
    return options


def _by_kernel(text: str, header: str) -> dict[str, str]:
    """Splits at lines that name a kernel; keys like "add_noise_kernel<float, vector>"."""
    parts = re.split(header, text)
    kernels = {}
    for mangled, body in zip(parts[1::2], parts[2::2], strict=True):
        stem = re.search(r"(philox_normal|add_noise|denoising_error|error_map)_kernelI(\w*?)Lb([01])E", mangled)
        assert stem is not None, mangled
        dtype = {"": "", "f": "float32 "}.get(stem.group(2)) if len(stem.group(2)) < 2 else None
        if dtype is None:
            dtype = "bfloat16 " if "BFloat16" in stem.group(2) else "float16 "
        kernels[f"{stem.group(1)} {dtype}{'vector' if stem.group(3) == '1' else 'scalar'}"] = body
    return kernels


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("sass")
    cubin = folder / "kernels.cubin"
    command = [str(_nvcc()), "-std=c++17", *_options(), "-arch=sm_90", "-cubin", "-Xptxas=-v", "-o", str(cubin)]
    command += ["--keep", "--keep-dir", str(folder), str(ROOT / "csrc" / "kernels_cuda.cu")]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    path = os.pathsep.join([str(_disassembler_folder()), os.environ.get("PATH", "")])
    listing = subprocess.run(
        ["cuobjdump", "-sass", str(cubin)],
        check=True, capture_output=True, text=True, env={**os.environ, "PATH": path},
    ).stdout  # fmt: skip
    (ptx,) = folder.glob("kernels_cuda*.ptx")
    instruction = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)", re.MULTILINE)
    sass = _by_kernel(listing, r"Function : (\S+)")
    return Compiled(
        ptx=_by_kernel(ptx.read_text(encoding="utf-8"), r"\.entry (\w+)\("),
        sass={name: instruction.findall(body) for name, body in sass.items()},
        report=report,
    )


def operations(instructions: list[str]) -> Counter[str]:
    return Counter(instruction.partition(".")[0] for instruction in instructions)


def test_all_kernels_are_there(compiled: Compiled) -> None:
    assert len(compiled.sass) == 2 + 3 * 2 * 3  # philox_normal: 2 access widths; the others: times 3 element types
    assert compiled.ptx.keys() == compiled.sass.keys()


def test_ptx_states_the_rounding_of_every_operation(compiled: Compiled) -> None:
    arithmetic = re.compile(r"\b(?:add|sub|mul|div|sqrt|rcp|rsqrt|fma|mad|ex2|lg2|sin|cos)\.[a-z0-9.]*f(?:32|64)\b")
    for name, text in compiled.ptx.items():
        found = set(arithmetic.findall(text))
        allowed = {f"{op}.rn.f32" for op in ("add", "sub", "mul", "div", "sqrt")}
        if name.startswith("denoising_error"):
            allowed |= {f"{op}.rn.f64" for op in ("add", "mul", "div")}
        assert found <= allowed, name
        assert {"add.rn.f32", "mul.rn.f32", "div.rn.f32", "sqrt.rn.f32"} <= found, name


def test_machine_code_fuses_no_multiplication_with_an_addition(compiled: Compiled) -> None:
    """FFMA occurs, but only inside the exact division and square root, whose other operations flush (".FTZ")."""
    for name, text in compiled.ptx.items():
        asked = len(re.findall(r"\b(?:add|sub|mul)\.rn\.f32\b", text))
        made = sum(instruction in {"FADD", "FMUL"} for instruction in compiled.sass[name])
        if name.startswith("denoising_error"):  # the sums of a warp exist twice, for threads together and apart
            assert made >= asked > 0, name
        else:
            assert made == asked > 0, name


def test_memory_moves_in_the_widest_accesses(compiled: Compiled) -> None:
    for name, instructions in compiled.sass.items():
        loads = [i for i in instructions if i.startswith("LDG")]
        stores = [i for i in instructions if i.startswith("STG")]
        wide_loads, wide_stores = (sum(".128" in i for i in listed) for listed in (loads, stores))
        if name.endswith("scalar"):
            assert wide_loads == wide_stores == 0, name
        elif name.startswith("philox_normal"):
            assert wide_stores == 1, name
        elif name.startswith("add_noise"):
            assert wide_loads == 1, name  # x
            assert wide_stores == ("float32" in name), name
            assert "float32" in name or any(".64" in i for i in stores), name
        elif name.startswith("denoising_error"):
            assert wide_loads == 2 + 8 * ("float32" in name), name  # x, z, and F of each cell of a run
        else:
            assert wide_loads == 3 + ("float32" in name), name  # x, z, map, F
            assert wide_stores == 1, name


def test_nothing_spills_and_nothing_adds_atomically(compiled: Compiled) -> None:
    assert re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled.report)
    assert not re.search(r"[1-9]\d* bytes (?:stack frame|spill)", compiled.report)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", compiled.report)]
    assert len(registers) == len(compiled.sass)
    assert max(registers) <= MAX_REGISTERS
    for name, instructions in compiled.sass.items():
        assert not {"LDL", "STL", "ATOM", "ATOMG", "ATOMS", "RED"} & operations(instructions).keys(), name
