"""The mutation script: the faults that it plants, and its verdict on a small tree with good and bad tests."""

import ast
from pathlib import Path

import pytest

from mutate import faults_of, measure, modules_of, own_tests

SOURCE = '''
"""A module with 1 number in its docstring."""
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    NEVER = 1


@functools.lru_cache(maxsize=4)
def clamp(value: "tuple[1]", *, low: int = 0, strict: bool = False) -> int:
    if strict and value < low:
        raise ValueError(f"at least {low + 1}, got {value!r:.80}")
    for _ in range(2):
        break
    return max(value, low, key=lambda é: é * 2 - 1)
'''


def planted() -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    for fault in faults_of("clamp.py", SOURCE):
        found.setdefault(fault.kind, set()).add((fault.was, fault.now))
    return found


def test_every_kind_of_fault_is_planted_and_nothing_else() -> None:
    whole = "max(value, low, key=lambda é: é * 2 - 1)"
    assert planted() == {
        "integer": {("0", "(1)"), ("0", "(-1)"), ("2", "(3)"), ("2", "(1)"), ("1", "(2)"), ("1", "(0)")},
        "flag": {("False", "(True)")},
        "and/or": {("strict and value < low", "(strict or value < low)")},
        "comparison": {("value < low", "(value <= low)"), ("value < low", "(value >= low)")},
        "statement": {('raise ValueError(f"at least {low + 1}, got {value!r:.80}")', "pass")},
        "loop": {("break", "continue")},
        "operator": {("é * 2", "(é / 2)"), ("é * 2 - 1", "(é * 2 + 1)")},
        "argument": {(whole, "(max(value, low))")},
        "return": {(f"return {whole}", "return None")},
    }


def test_a_fault_is_one_edit_that_still_parses() -> None:
    for fault in faults_of("clamp.py", SOURCE):
        changed = fault.planted(SOURCE)
        assert changed != SOURCE
        ast.parse(changed)
        assert changed.splitlines()[: fault.line - 1] == SOURCE.splitlines()[: fault.line - 1]
        assert changed.replace(fault.now, "", 1) != SOURCE
        assert len(changed) - len(SOURCE) == len(fault.now) - len(fault.was)


def test_the_tests_of_a_module_are_found(tmp_path: Path) -> None:
    for name in ("rules/test_paired.py", "face/test_session.py", "backends/onnx/test_cpu.py"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).touch()
    assert own_tests("fastdc/rules/paired.py", tmp_path) == "tests/rules/test_paired.py"
    assert own_tests("fastdc/rules/other.py", tmp_path) == "tests/rules"
    assert own_tests("fastdc/session.py", tmp_path) == "tests/face/test_session.py"
    assert own_tests("fastdc/backends/torch/step.py", tmp_path) == "tests/backends"
    with pytest.raises(ValueError, match="fastdc/none is neither a module nor a folder"):
        modules_of(["fastdc/none"], tmp_path)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with one module of five faults: two comparisons, two integers, and a returned value."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins take longer than these tests
    root = tmp_path / "root"
    (root / "demo").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "demo" / "__init__.py").touch()
    (root / "demo" / "sign.py").write_text("def positive(x):\n    return x > 0\n")
    return root


def write_test(tree: Path, condition: str) -> None:
    test = f"from demo.sign import positive\ndef test_positive():\n    assert {condition}\n"
    (tree / "tests" / "test_sign.py").write_text(test)


@pytest.mark.slow
def test_good_tests_catch_every_fault_and_the_tree_stays(tree: Path) -> None:
    write_test(tree, "[positive(x) for x in (-1, 0, 1)] == [False, False, True]")
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    result = measure(["demo"], root=tree, count=0)
    assert (result["score"], result["faults"], result["survivors"]) == (1.0, 5, [])
    assert {path: path.read_bytes() for path in tree.rglob("*.py")} == before


@pytest.mark.slow
def test_a_survivor_shows_what_no_test_sees(tree: Path) -> None:
    write_test(tree, "[positive(x) for x in (-0.5, 0.5)] == [False, True]")
    result = measure(["demo/sign.py"], root=tree, count=0)
    survived = {(entry["where"], entry["was"], entry["now"]) for entry in result["survivors"]}
    assert survived == {("demo/sign.py:2", "x > 0", "(x >= 0)")}
    assert (result["score"], result["caught"], result["faults"]) == (0.8, 4, 5)


@pytest.mark.slow
def test_a_fault_that_never_ends_is_caught(tree: Path) -> None:
    (tree / "demo" / "sign.py").write_text("def positive(x):\n    while x:\n        break\n    return x\n")
    write_test(tree, "positive(3) == 3")
    result = measure(["demo/sign.py"], root=tree, count=0, timeout=5.0)
    assert (result["score"], result["faults"], result["timeouts"]) == (1.0, 2, 1)


def test_tests_that_fail_without_a_fault_are_refused(tree: Path) -> None:
    write_test(tree, "False")
    with pytest.raises(ValueError, match=r"tests/test_sign.py must pass without a fault"):
        measure(["demo/sign.py"], root=tree, count=1)
