"""Every public function shows one runnable line, and it runs.

Public are the names in a wing's ``__all__`` (docs/architecture.md), and the methods of the classes in
``fastdc.__all__``. Examples may use what every reader of the README has at hand:

    fastdc, np          the packages
    clf                 fastdc.load("digits-mlp")
    images, labels      the first 20 test digits, uint8 (20, 1, 8, 8), and their classes
    folder              an empty folder, a pathlib.Path

An example that needs a package which is not installed, or a CUDA device (``# doctest: +SKIP``), is not run.
"""

import ast
import doctest
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc.data import digits_test
from fastdc.support import MissingDependencyError
from wings import read_house

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
HOUSE = read_house()


def functions_of(wing: str) -> set[str]:
    """Names of the functions that a wing's modules define, from the sources alone: importing a name could load an
    optional package."""
    return {
        node.name
        for module, source in HOUSE.sources.items()
        if module == wing or module.startswith(f"{wing}.")
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }


def public_functions() -> Iterator[tuple[str, str]]:
    """(wing, name) of each public function, and of each public method of the classes in ``fastdc.__all__``."""
    for wing in sorted(HOUSE.packages - {""}):
        for name in sorted(functions_of(wing).intersection(HOUSE.public(wing) or ())):
            yield wing, name
    for name in sorted(set(fastdc.__all__) - {"__version__"}):
        value = getattr(fastdc, name)
        if inspect.isfunction(value):
            yield "", name
        elif inspect.isclass(value):
            for method, member in vars(value).items():
                if not method.startswith("_") and inspect.isfunction(getattr(member, "__func__", member)):
                    yield "", f"{name}.{method}"


def found(wing: str, name: str) -> Any:
    """The object; skips if a package that it needs is missing."""
    try:
        value: Any = importlib.import_module(f"fastdc.{wing}" if wing else "fastdc")
        for part in name.split("."):
            value = getattr(value, part)
    except (MissingDependencyError, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    return value


@cache
def surroundings() -> dict[str, Any]:
    test = digits_test()
    return {
        "fastdc": fastdc,
        "np": np,
        "clf": fastdc.load("digits-mlp", threads=1),
        "images": test.images[:20],
        "labels": test.labels[:20],
    }


@pytest.mark.parametrize(("wing", "name"), list(public_functions()), ids=lambda part: part or "fastdc")
def test_an_example_is_there_and_runs(wing: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    value = found(wing, name)
    assert inspect.isroutine(value), f"{wing}.{name} is a {type(value).__name__}"
    text = inspect.getdoc(value) or ""
    assert ">>> " in text, f"{wing}.{name} shows no example"
    monkeypatch.chdir(tmp_path)
    names = {**surroundings(), "folder": tmp_path}
    test = doctest.DocTestParser().get_doctest(text, names, f"{wing}.{name}", None, None)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=said.append)
    missing = [line for line in said if "MissingDependencyError" in line or "ModuleNotFoundError" in line]
    if missing:
        pytest.skip(missing[0].strip().splitlines()[-1])
    assert not said, "".join(said)


def test_every_wing_shows_examples() -> None:
    functions = list(public_functions())
    assert len(functions) > 100
    assert len(set(functions)) == len(functions)


def test_examples_are_short() -> None:
    """One line where possible, four at most: imports and preparation count."""
    long = []
    for module, source in HOUSE.sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                lines = [line for line in text.splitlines() if line.lstrip().startswith(">>> ")]
                if len(lines) > 4:
                    long.append(f"{module}.{node.name}: {len(lines)}")
    assert long == []
