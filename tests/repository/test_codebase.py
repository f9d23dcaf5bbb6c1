"""The code base as a whole: types, the native module's stub, one version everywhere, short files and functions.

These tests read the repository, so they also cover files that no other test imports.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastdc
from fastdc import _C
from fastdc.diffusion.kernels import build_config
from helpers.paths import ROOT

FOLDERS = ("fastdc", "csrc", "tests", "bench", "tools", "models")
SUFFIXES = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh", ".sh"}
MAX_LINES = 450
MAX_FUNCTION = 60

# Spelt apart, so that this file passes its own check.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK|NotImplemented" + r"Error)\b")

# How pybind11 writes the types of a signature, and how the stub writes them.
STUB_TYPE = {
    "collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]": "Sequence[int]",
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "fastdc._C.TensorView": "TensorView",
    "fastdc._C.Ledger": "Ledger",
    "object": "Any",
    "typing.Annotated[numpy.typing.ArrayLike; numpy.int32]": "npt.NDArray[np.int32]",
    "typing.Annotated[numpy.typing.ArrayLike; numpy.float32]": "npt.NDArray[np.float32]",
    "typing.Annotated[numpy.typing.ArrayLike; numpy.bool]": "npt.NDArray[np.bool_]",
}


def source_files() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return sorted(path for path in files if "__pycache__" not in path.parts)


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


@pytest.mark.slow
def test_types() -> None:
    """mypy --strict over the package, its tests, benches and tools."""
    pytest.importorskip("mypy")
    pytest.importorskip("torch", reason="without torch its types are unknown")
    run = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the package, the benches, the models' scripts and the tools."""
    for path in source_files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield path, node


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function with its docstring, without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def stub_signature(function: ast.FunctionDef) -> list[tuple[str, str, bool]]:
    """(name, type, has a default) of each argument but self; `X | None` counts as X, which is what pybind11 shows."""
    arguments = [argument for argument in function.args.args if argument.arg != "self"]
    required = len(arguments) - len(function.args.defaults)
    return [
        (argument.arg, ast.unparse(argument.annotation or ast.Name("Any")).removesuffix(" | None"), index >= required)
        for index, argument in enumerate(arguments)
    ]


def native_signature(doc: str) -> list[tuple[str, str, bool]]:
    """The same, from the first line of the docstring that pybind11 writes."""
    inside = doc[doc.index("(") + 1 : doc.index(") ->")].replace("ArrayLike, ", "ArrayLike; ")
    signature = []
    for argument in filter(None, inside.split(", ")):
        name, _, annotation = argument.partition(": ")
        annotation, _, default = annotation.partition(" = ")
        if name != "self":
            signature.append((name, STUB_TYPE.get(annotation, annotation), bool(default)))
    return signature


def stub() -> ast.Module:
    return ast.parse((ROOT / "fastdc" / "_C.pyi").read_text(encoding="utf-8"))


def test_the_stub_names_what_the_native_module_has() -> None:
    described = {node.name for node in stub().body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert described == {name for name in dir(_C) if not name.startswith("_")}


@pytest.mark.parametrize(
    "function", [node for node in stub().body if isinstance(node, ast.FunctionDef)], ids=lambda n: n.name
)
def test_the_stub_has_the_native_signatures(function: ast.FunctionDef) -> None:
    assert stub_signature(function) == native_signature(getattr(_C, function.name).__doc__)


@pytest.mark.parametrize(
    "described", [node for node in stub().body if isinstance(node, ast.ClassDef)], ids=lambda n: n.name
)
def test_the_stub_describes_the_native_classes(described: ast.ClassDef) -> None:
    native = getattr(_C, described.name)
    functions = [node for node in described.body if isinstance(node, ast.FunctionDef)]
    properties = {node.name for node in functions if node.decorator_list}
    assert properties == {name for name, value in vars(native).items() if isinstance(value, property)}
    methods = {node.name: node for node in functions if not node.decorator_list}
    public = {name for name, value in vars(native).items() if not name.startswith("_") and callable(value)}
    protocol = {name for name in vars(native) if name.startswith("__dlpack")}  # whose signatures the protocol fixes
    assert set(methods) == {"__init__", *public, *protocol}
    for name, method in methods.items() - {(name, methods[name]) for name in protocol}:
        assert stub_signature(method) == native_signature(str(getattr(native, name).__doc__))


def test_one_version_everywhere() -> None:
    version = project()["version"]
    assert fastdc.__version__ == version, "installed from another version: run pip install -e . again"
    assert build_config()["version"] == version
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_files_are_short() -> None:
    files = source_files()
    assert len(files) > 50
    long = {
        str(path.relative_to(ROOT)): count
        for path in files
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_functions_are_short() -> None:
    sizes = {f"{path.relative_to(ROOT)}:{node.name}": lines_of(node) for path, node in functions()}
    assert len(sizes) > 1000
    assert {name: lines for name, lines in sizes.items() if lines > MAX_FUNCTION} == {}


def moves_a_file(call: ast.Call) -> bool:
    """Whether a call gives a file its final name; Path.replace has one argument, str.replace has two."""
    match call.func:
        case ast.Attribute(attr="rename") | ast.Attribute(value=ast.Name("os"), attr="replace"):
            return True
        case ast.Attribute(attr="replace"):
            return len(call.args) == 1 and not call.keywords
    return False


def test_one_module_writes_files_under_a_temporary_name() -> None:
    """Only ``write_whole`` stages files that must be complete; a bundle, which is a folder, has its own staging."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path, function in functions()
        if any(isinstance(node, ast.Call) and moves_a_file(node) for node in ast.walk(function))
    }
    assert found == {"fastdc/support/atomic_files.py", "fastdc/bundle/place.py"}


def test_nothing_is_unfinished() -> None:
    marks = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in source_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert marks == []


def test_hooks_have_the_constrained_versions() -> None:
    """A commit hook, an editor and CI must format alike."""
    pins = set((ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    hooks = re.findall(r"- (\S+==\S+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert len(hooks) > 3
    assert set(hooks) <= pins


def test_ci_finds_the_two_readme_commands() -> None:
    for block, words in (("1", "fastdc demo"), ("2", "pytest")):
        run = subprocess.run([ROOT / ".ci" / "readme-block", block], capture_output=True, text=True, check=True)
        assert "pip install -c constraints.txt" in run.stdout
        assert words in run.stdout
