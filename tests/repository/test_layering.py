"""Imports go down the storeys of docs/architecture.md, wings keep to each other's public names, and ``import fastdc``
stays light."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace

import pytest

import fastdc
from fastdc.support.optional import EXTRA_OF
from helpers.paths import ROOT
from wings import House, arrows, problems_of, public_names, read_house

HOUSE = read_house()

# What `import fastdc` must not load: every optional package, and the base dependencies that only some commands need.
HEAVY = {
    *("torch", "onnx", "onnxruntime", "onnxscript", "diffusers", "transformers", "matplotlib", "sklearn", "tensorrt"),
    *("scipy", "PIL", "click", "tqdm", "safetensors"),
}


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY.intersection(run.stdout.split())


def test_imports_go_down_and_through_doors() -> None:
    assert len(HOUSE.sources) > 100
    assert problems_of(HOUSE) == []


def test_the_house_can_be_drawn_from_memory() -> None:
    tops = {module.partition(".")[0] for module in HOUSE.sources if module} | {"fastdc"}
    assert set(HOUSE.order) == tops
    assert len(HOUSE.order) == len(tops) <= 29


def test_every_wing_says_what_is_public() -> None:
    for package in HOUSE.packages:
        public = HOUSE.public(package)
        assert public is not None, package
        if package == "":
            assert sorted(public) == sorted(fastdc.__all__)


def test_what_is_public_exists() -> None:
    """In a process of its own, with everything installed that a test run has."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("diffusers")
    pytest.importorskip("sklearn")
    names = {package: sorted(HOUSE.public(package) or ()) for package in HOUSE.packages if package}
    code = f"import importlib\nfor p, names in {names!r}.items():\n m = importlib.import_module('fastdc.' + p)\n"
    code += " print(*[p + '.' + n for n in names if not hasattr(m, n)], end='')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ""


def planted(**sources: str) -> House:
    """A small house, with other sources in it."""
    small = {
        "": "",
        "support": '__all__ = ["checks", "InputError"]',
        "support.checks": "",
        "diffusion": '__all__ = ["Plan"]',
        "diffusion.native": "from fastdc import _C",
        "diffusion.plan": "from fastdc.support import checks",
        "engine": '__all__ = ["evaluate"]',
        "engine.loop": "from fastdc.diffusion import Plan",
        "engine.step": "from fastdc.engine.loop import evaluate",
        "classifier": "from fastdc.engine import evaluate",
        "windows": '__all__ = ["table"]',
    }
    small |= {module.replace("__", "."): source for module, source in sources.items()}
    order = ("support", "diffusion", "engine", "classifier", "fastdc", "windows")
    packages = frozenset(("", "support", "diffusion", "engine", "windows"))
    return replace(HOUSE, sources=small, packages=packages, order=order, _public={})


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("diffusion__plan", "from fastdc.engine import evaluate", "diffusion.plan:1: diffusion imports engine, which"),
        ("diffusion__plan", "def f():\n    import fastdc.classifier", "diffusion.plan:2: diffusion imports classifier"),
        (
            "diffusion__plan",
            "from fastdc import load",
            "diffusion.plan:1: diffusion imports fastdc, which stands above",
        ),
        ("diffusion__plan", "from ..engine import evaluate", "diffusion.plan:1: diffusion imports engine, which"),
        ("engine__loop", "from fastdc import _C", "engine.loop:1: only diffusion.native may import the native module"),
        ("engine__loop", "from fastdc._C import add_noise", "engine.loop:1: only diffusion.native may import"),
        (
            "engine__loop",
            "from fastdc.diffusion.plan import Plan",
            "engine.loop:1: diffusion.plan is private to its wing",
        ),
        ("engine__loop", "import fastdc.diffusion.plan", "engine.loop:1: diffusion.plan is private to its wing"),
        ("engine__loop", "from fastdc.diffusion import plan", "engine.loop:1: plan is not among the public names of"),
        ("engine__loop", "from fastdc.engine.step import Step", "cycle: "),
        (
            "windows__tables",
            "from fastdc.engine import hidden",
            "windows.tables:1: hidden is not among the public names",
        ),
        ("", "from fastdc.windows import table", "fastdc:1: fastdc imports windows, which stands above it"),
        (
            "",
            "if TYPE_CHECKING:\n    from fastdc.windows import hidden",
            "fastdc:2: hidden is not among the public names of windows",
        ),
        ("somewhere", "", "somewhere: wing somewhere is not in the table"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, source: str, expected: str) -> None:
    assert problems_of(planted()) == []
    (problem,) = problems_of(planted(**{module: source}))
    assert problem.startswith(expected)


def test_the_face_may_name_for_type_checkers_what_stands_above_it() -> None:
    lazy = "if TYPE_CHECKING:\n    from fastdc.windows import table\nelse:\n    pass"
    assert problems_of(planted(**{"": lazy})) == []


def test_arrows_are_the_imports_between_wings() -> None:
    assert arrows(planted()) == {
        "support": set(),
        "diffusion": {"support"},
        "engine": {"diffusion"},
        "classifier": {"engine"},
        "fastdc": set(),
        "windows": set(),
    }


# --- the docs ---------------------------------------------------------------------------------------------------------


def code_of_docs() -> Iterator[tuple[str, str]]:
    """(where, code) of every Python block of README and docs/, and of every example in a docstring."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, block in enumerate(
            re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        ):
            yield f"{path.name}, block {number}", block
    for module, source in HOUSE.sources.items():
        for line in re.findall(r"^\s*>>> ((?:from|import) .*)$", source, re.MULTILINE):
            yield module, line


def hidden_imports(code: str, *, inside: bool = False) -> list[str]:
    """The imports of a user's code that reach for private names. Examples `inside` a wing may name its sub-packages."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("fastdc") and a.name.count(".") > 1]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fastdc":
            wing = (node.module or "").removeprefix("fastdc").removeprefix(".")
            third_level = "." in wing and not (inside and wing in HOUSE.packages)
            public = frozenset() if third_level else HOUSE.public(wing) or frozenset()
            wings = HOUSE.packages if wing == "" else frozenset()  # from fastdc import rules
            found += [f"{node.module}.{a.name}" for a in node.names if a.name not in public | wings]
    return found


def test_docs_import_what_is_public() -> None:
    blocks = list(code_of_docs())
    assert len(blocks) > 8
    hidden = {where: found for where, code in blocks if (found := hidden_imports(code, inside=where in HOUSE.sources))}
    assert hidden == {}


def test_a_hidden_import_is_seen() -> None:
    assert hidden_imports("from fastdc.inference.job import Job\nfrom fastdc import load") == [
        "fastdc.inference.job.Job"
    ]
    assert hidden_imports("from fastdc.diffusion import nothing") == ["fastdc.diffusion.nothing"]
    assert hidden_imports("import fastdc\nimport fastdc.cli.main") == ["fastdc.cli.main"]
    assert hidden_imports("from fastdc import rules, job") == ["fastdc.job"]
    engines = "from fastdc.backends.tensorrt import EngineOptions"
    assert hidden_imports(engines) == ["fastdc.backends.tensorrt.EngineOptions"]
    assert hidden_imports(engines, inside=True) == []
    assert list(public_names("__all__ = ['a']") or ()) == ["a"]
    assert public_names("a = 1") is None


# --- weight -----------------------------------------------------------------------------------------------------------


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
    for source in HOUSE.sources.values():
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"):
                continue
            calls += 1
            package = ast.literal_eval(node.args[0]).partition(".")[0]
            extra = {word.arg: ast.literal_eval(word.value) for word in node.keywords}.get("extra")
            assert extra or package in EXTRA_OF, f"require({package!r}) names no extra"
            named.add((package, extra or EXTRA_OF[package]))
    assert calls > 5
    distribution = {"sklearn": "scikit-learn"}
    for package, extra in sorted(named):
        wanted = distribution.get(package, package)
        assert any(requirement.startswith(wanted) for requirement in extras[extra]), (package, extra)
