#!/usr/bin/env python3
"""Plants single faults in modules and counts how many of them the tests catch.

    python tools/mutate.py fastdc/rules/paired.py             20 faults, tests/rules/test_paired.py
    python tools/mutate.py fastdc/rules --count 50 --seed 1   all modules of a wing, each with its own tests
    python tools/mutate.py fastdc/rules --tests tests/rules   all modules of a wing, with all tests of the wing

A fault is one small edit of the source: a flipped comparison, operator or condition, an integer that is off by one, or
a missing keyword argument, call, exception or returned value. The script copies the tree into a temporary folder,
plants one fault at a time there, and runs the tests until the first failure. The working tree never changes. The result
is JSON on stdout: the score, which is the share of the faults that the tests caught, and the survivors. A survivor
shows a missing test, or has no effect that a test could see.
"""

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[1]

# A fault replaces one operator by another of these.
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}

_NEVER_TESTED = ("TYPE_CHECKING", "__name__ == '__main__'")

Edit: TypeAlias = tuple[Any, str, ast.expr | str]

# Processes of the copy must not find an editable installation, whose finder comes before every path.
STARTUP = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
"""


@dataclass(frozen=True)
class Fault:
    """One edit of a module.

    Attributes:
        module: Path of the module, relative to the root.
        line: Line of the edit, from 1.
        kind: Kind of the fault.
        was: Source before the edit.
        now: Source after the edit.
        start: Offset of the edit in bytes.
    """

    module: str
    line: int
    kind: str
    was: str
    now: str
    start: int

    def planted(self, source: str) -> str:
        """The source with the fault."""
        content = source.encode()
        end = self.start + len(self.was.encode())
        return (content[: self.start] + self.now.encode() + content[end:]).decode()


def faults_of(module: str, source: str) -> list[Fault]:
    """Every fault that can be planted in a module, in the order of the source."""
    lines = source.encode().splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    found = []
    for node, kind, new in _edits(ast.parse(source)):
        start = offsets[node.lineno - 1] + node.col_offset
        end = offsets[node.end_lineno - 1] + node.end_col_offset
        was = source.encode()[start:end].decode()
        now = new if isinstance(new, str) else f"({ast.unparse(new)})"
        found.append(Fault(module, node.lineno, kind, was, now, start))
    return sorted(found, key=lambda fault: (fault.start, fault.kind, fault.now))


def _edits(tree: ast.Module) -> Iterator[Edit]:
    """Nodes of a module, each with the kind of a fault and the node or source that replaces it."""
    for node in _code(tree):
        yield from _edits_of_expression(node)
        yield from _edits_of_statement(node)


def _edits_of_expression(node: ast.AST) -> Iterator[Edit]:
    match node:
        case ast.Compare(ops=ops):
            for index, operator in enumerate(ops):
                for other in COMPARISONS[type(operator)]:
                    new = ast.Compare(node.left, [*ops[:index], other(), *ops[index + 1 :]], node.comparators)
                    yield node, "comparison", new
        case ast.BoolOp(op=operator, values=values):
            yield node, "and/or", ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            yield node, "operator", ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield node, "sign", operand
        case ast.Constant(value=bool(value)):
            yield node, "flag", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield node, "integer", ast.Constant(value + 1)
            yield node, "integer", ast.Constant(value - 1)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            for index, keyword in enumerate(keywords):
                if keyword.arg is not None:
                    yield node, "argument", ast.Call(function, arguments, keywords[:index] + keywords[index + 1 :])


def _edits_of_statement(node: ast.AST) -> Iterator[Edit]:
    match node:
        case ast.If(test=test) | ast.IfExp(test=test) if isinstance(test, ast.Name | ast.Call | ast.Attribute):
            yield test, "condition", ast.UnaryOp(ast.Not(), test)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield node, "return", "return None"
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield node, "statement", "pass"
        case ast.Break():
            yield node, "loop", "continue"
        case ast.Continue():
            yield node, "loop", "pass"


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that can hold a fault: no annotations, decorators, f-strings, or messages of exceptions."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) in _NEVER_TESTED:
                continue
            yield child
            if not isinstance(child, ast.Raise):
                yield from _code(child)


def modules_of(names: Sequence[str], root: Path) -> list[str]:
    """The modules that files and folders name, relative to the root.

    Raises:
        ValueError: There is no such module.
    """
    found: list[str] = []
    for name in names:
        path = root / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise ValueError(f"{name} is neither a module nor a folder of modules below {root}")
        found += [file.relative_to(root).as_posix() for file in files]
    return list(dict.fromkeys(found))


def own_tests(module: str, root: Path) -> str:
    """The tests of a module: its test file, or else the folder of tests that mirrors the module's folder."""
    path = Path("tests", *Path(module).parts[1:])
    own = path.with_name(f"test_{path.name}")
    if len(path.parts) == 2:  # a module at the top, whose tests may be in any folder
        own = next((file.relative_to(root) for file in sorted((root / "tests").rglob(own.name))), own)
    return next(place.as_posix() for place in (own, *own.parents) if (root / place).exists())


class Copy:
    """A copy of the tree in which faults are planted.

    Args:
        root: The tree.
        folder: An empty folder for the copy.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "tree"
        hidden = shutil.ignore_patterns(
            ".git", ".*_cache", ".venv", "venv", "build", "dist", "__pycache__", "*.egg-info"
        )
        shutil.copytree(root, self.root, ignore=hidden, symlinks=True)
        if (self.root / "fastdc").is_dir() and not list((self.root / "fastdc").glob("_C.*.so")):
            shutil.copy(_native_module(), self.root / "fastdc")
        startup = folder / "startup"
        startup.mkdir()
        (startup / "sitecustomize.py").write_text(STARTUP, encoding="utf-8")
        paths = os.pathsep.join((str(startup), str(self.root)))
        # Without bytecode: two faults of one size within a second would share it.
        self._environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}

    def run(self, tests: Sequence[str], timeout: float | None) -> tuple[int | None, str]:
        """Runs tests until the first failure; returns pytest's exit code, None after a timeout, and the output."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that a timeout also ends the processes that tests start
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None, ""
        return process.returncode, output

    def catches(self, fault: Fault, source: str, tests: Sequence[str], timeout: float) -> str:
        """Whether tests catch a fault: "caught", "timeout" (also caught) or "survived"."""
        path = self.root / fault.module
        path.write_text(fault.planted(source), encoding="utf-8")
        try:
            code, _ = self.run(tests, timeout)
        finally:
            path.write_text(source, encoding="utf-8")
        return "timeout" if code is None else "survived" if code == 0 else "caught"


def _native_module() -> str:
    """Path of the compiled module of an editable installation, which is not in the source tree."""
    command = [sys.executable, "-P", "-c", "from fastdc import _C; print(_C.__file__)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def measure(
    names: Sequence[str],
    *,
    root: Path = ROOT,
    tests: Sequence[str] = (),
    count: int = 20,
    seed: int = 0,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Plants faults and runs tests.

    Args:
        names: Modules or folders of modules, relative to the root.
        root: The tree.
        tests: Tests to run for every module; empty: the module's own.
        count: Number of faults, drawn at random; 0: all.
        seed: Seed of the draw.
        timeout: Seconds per run of the tests; None: 10 plus five times the run without a fault.

    Returns:
        The score, the numbers behind it, and the survivors.

    Raises:
        ValueError: There is no such module, or the tests fail without a fault.
    """
    modules = modules_of(names, root)
    sources = {module: (root / module).read_text(encoding="utf-8") for module in modules}
    faults = [fault for module in modules for fault in faults_of(module, sources[module])]
    if count and count < len(faults):
        chosen = random.Random(seed).sample(range(len(faults)), count)
        faults = [faults[index] for index in sorted(chosen)]
    found: dict[str, list[Fault]] = {"caught": [], "timeout": [], "survived": []}
    limits: dict[tuple[str, ...], float] = {}
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Copy(root, Path(folder))
        for number, fault in enumerate(faults, 1):
            own = tuple(tests) or (own_tests(fault.module, root),)
            if own not in limits:
                start = time.monotonic()
                code, output = copy.run(own, None)
                if code != 0:
                    raise ValueError(f"{' '.join(own)} must pass without a fault:\n{output[-2000:]}")
                limits[own] = timeout or 10 + 5 * (time.monotonic() - start)
            outcome = copy.catches(fault, sources[fault.module], own, limits[own])
            found[outcome].append(fault)
            print(f"{number}/{len(faults)} {outcome:8} {fault.module}:{fault.line} {fault.kind}", file=sys.stderr)
    caught = len(found["caught"]) + len(found["timeout"])
    return {
        "score": round(caught / len(faults), 3) if faults else None,
        "faults": len(faults),
        "caught": caught,
        "timeouts": len(found["timeout"]),
        "seed": seed,
        "survivors": [
            {"where": f"{fault.module}:{fault.line}", "kind": fault.kind, "was": fault.was, "now": fault.now}
            for fault in found["survived"]
        ],
    }


def main() -> None:
    """Reads the command line and prints the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="modules, or folders of modules, below the repository's root")
    parser.add_argument("--tests", nargs="+", default=[], help="tests to run [default: each module's own]")
    parser.add_argument("--count", type=int, default=20, help="number of faults, drawn at random; 0: all [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw [%(default)s]")
    parser.add_argument(
        "--timeout", type=float, help="seconds per test run [default: 10 + 5 times a run without a fault]"
    )
    options = parser.parse_args()
    try:
        result = measure(
            options.modules, tests=options.tests, count=options.count, seed=options.seed, timeout=options.timeout
        )
    except ValueError as error:
        sys.exit(f"mutate: {error}")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
