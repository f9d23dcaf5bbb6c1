"""Imports point downward, only ``ops`` touches the native module, and ``import fastdc`` stays light.

The ranks are those of docs/architecture.md: a module may import from a lower rank or from its own package, and no
modules may form a cycle. Imports are read from the syntax tree, so one inside a function counts like one at the top.
"""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from fastdc.support.optional import EXTRA_OF
from helpers.paths import ROOT

PACKAGE = ROOT / "fastdc"

# Of a module of fastdc, or of a whole subpackage; "" is fastdc/__init__.py.
RANKS = {
    "exceptions": 0,
    "version": 0,
    "reference": 0,
    "_C": 0,
    "certificate": 0,
    "binomial": 1,
    "extras": 1,
    "files": 1,
    "shipped": 1,
    "ops": 1,
    "schedules": 1,
    "config": 2,
    "copies": 2,
    "estimation": 2,
    "noised": 2,
    "parameterization": 2,
    "torch_ops": 2,
    "weighting": 2,
    "prompts": 2,
    "networks": 2,
    "level_weights": 2,
    "tree": 2,
    "plan": 3,
    "rules": 3,
    "level_fit": 3,
    "calibration": 4,
    "scheduler": 4,
    "model": 5,
    "manifest": 6,
    "errors": 6,
    "images": 6,
    "bundle": 7,
    "backends": 8,
    "decide": 8,
    "lipschitz": 8,
    "records": 8,
    "engine": 9,
    "record_writer": 9,
    "gaussian": 9,
    "results": 9,
    "spread": 10,
    "latency": 10,
    "evaluation": 11,
    "job": 11,
    "base": 12,
    "ndc": 12,
    "certify": 13,
    "robust": 14,
    "classifier": 15,
    "session": 16,
    "loading": 16,
    "": 17,
    "data": 17,
    "report": 17,
    "train": 18,
    "sources": 19,
    "export": 20,
    "cli": 21,
}

# What `import fastdc` must not load: every optional package, and the base dependencies that only some commands need.
HEAVY = {
    *("torch", "onnx", "onnxruntime", "onnxscript", "diffusers", "transformers", "matplotlib", "sklearn", "tensorrt"),
    *("scipy", "PIL", "click", "tqdm", "safetensors"),
}


def module_of(path: Path) -> str:
    """The name of a module relative to fastdc: "" for its __init__, "train" for train/__init__, "train.loop"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, str]:
    return {module_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str, source: str, *, modules: set[str], is_package: bool = False) -> list[tuple[str, int]]:
    """The modules of fastdc that a source imports, with line numbers; ``from fastdc import x`` is x if that is one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: count up from the package that holds the module
                above = ["fastdc", *module.split(".")] if module else ["fastdc"]
                above = above[: len(above) + is_package - node.level]
                base = ".".join([*above, *([base] if base else [])])
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    known = {"fastdc." + name if name else "fastdc" for name in modules}
    result = []
    for name, line in found:
        full = name
        if full.partition(".")[0] != "fastdc":
            continue
        while full not in known:  # an attribute: the module is further up
            full = full.rpartition(".")[0]
        result.append((full.removeprefix("fastdc").removeprefix("."), line))
    return result


def violations(files: dict[str, str]) -> list[str]:
    """Every import that breaks a rule, as "module:line: what is wrong"."""
    modules = {*files, "_C"}
    packages = {name.rpartition(".")[0] for name in files if "." in name} | {""}
    problems, graph = [], {}
    for module, source in files.items():
        top = module.partition(".")[0]
        if top not in RANKS:
            problems.append(f"{module}: has no rank; add it to RANKS and to docs/architecture.md")
            continue
        imports = imports_of(module, source, modules=modules, is_package=module in packages)
        graph[module] = {target for target, _ in imports}
        for target, line in imports:
            target_top = target.partition(".")[0]
            if target_top != top and RANKS.get(target_top, -1) >= RANKS[top]:
                problems.append(
                    f"{module}:{line}: imports {target or 'fastdc'} (rank {RANKS[target_top]}) from rank {RANKS[top]}"
                )
            if target == "_C" and module != "ops":
                problems.append(f"{module}:{line}: only ops may import the native module")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        problems.append("cycle: " + " -> ".join(error.args[1]))
    return problems


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY.intersection(run.stdout.split())


def test_imports_point_downward() -> None:
    files = sources()
    assert len(files) > 20
    assert violations(files) == []


def test_every_rank_is_of_a_module() -> None:
    assert set(RANKS) == {name.partition(".")[0] for name in sources()} | {"_C"}


def test_the_documented_ranks_are_these() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    documented = {name: int(rank) for rank, row in rows for name in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row))}
    assert documented == {name: rank for name, rank in RANKS.items() if name}


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("ops", "from fastdc.classifier import load", "ops:1: imports classifier (rank {classifier}) from rank {ops}"),
        ("ops", "def f():\n    import fastdc.cli.main", "ops:2: imports cli.main (rank {cli}) from rank {ops}"),
        ("plan", "from fastdc import engine", "plan:1: imports engine (rank {engine}) from rank {plan}"),
        ("plan", "from fastdc import load", "plan:1: imports fastdc (rank {package}) from rank {plan}"),
        ("plan", "from .engine import Engine", "plan:1: imports engine (rank {engine}) from rank {plan}"),
        (
            "backends.base",
            "from ..engine import Engine",
            "backends.base:1: imports engine (rank {engine}) from rank {backends}",
        ),
        ("errors", "from fastdc import bundle", "errors:1: imports bundle (rank {bundle}) from rank {errors}"),
        ("engine", "from fastdc import _C", "engine:1: only ops may import the native module"),
        ("engine", "from fastdc._C import add_noise", "engine:1: only ops may import the native module"),
        ("backends.base", "from fastdc.backends import onnx", "cycle: "),
        ("somewhere", "", "somewhere: has no rank"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, source: str, expected: str) -> None:
    files = dict.fromkeys(
        ("", "ops", "plan", "bundle", "errors", "engine", "classifier", "cli.main", "backends", "backends.base"), ""
    )
    files["backends.onnx"] = "from fastdc.backends.protocol import Backend"
    assert violations(files) == []
    (problem,) = violations({**files, module: source})
    assert problem.startswith(expected.format_map({**RANKS, "package": RANKS[""]}))


def test_import_fastdc_loads_nothing_heavy() -> None:
    assert loaded_by("import fastdc") == set()


def test_the_command_line_loads_no_optional_package_before_a_command_runs() -> None:
    assert loaded_by("import fastdc.cli.main") == {"click"}


def test_a_heavy_import_is_seen() -> None:
    assert loaded_by("import fastdc, PIL.Image") == {"PIL"}


def test_extras_named_in_errors_exist() -> None:
    """A MissingDependencyError tells the user to install an extra: it must exist and bring that package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = set(EXTRA_OF.items())
    calls = 0
    for source in sources().values():
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"):
                continue
            calls += 1
            package = ast.literal_eval(node.args[0]).partition(".")[0]
            extra = {word.arg: ast.literal_eval(word.value) for word in node.keywords}.get("extra")
            assert extra or package in EXTRA_OF, f"require({package!r}) names no extra"
            named.add((package, extra or EXTRA_OF[package]))
    assert calls > 5
    for package, extra in sorted(named):
        assert any(requirement.startswith(package) for requirement in extras[extra]), (package, extra)
