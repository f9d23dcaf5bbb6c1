#!/usr/bin/env python3
"""Checks the imports between the wings of fastdc against the storeys of docs/architecture.md.

    python tools/wings.py          prints the graph; exits 1 if an import goes up, in a circle, or to a private name

A *wing* is a package or a single module at the top of fastdc/. The table "Storeys" of docs/architecture.md lists the
wings from the ground up; a wing may import only wings that come before it in the table. A wing's public names are the
``__all__`` of its ``__init__``; other wings may import no other name. Imports are read from the syntax tree, so an
import inside a function counts like one at the top of a module.

One kind of arrow may go up: ``fastdc/__init__.py`` names public objects of any wing for type checkers, under
``if TYPE_CHECKING:``, which it imports when a user asks for them.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = "_C"
NATIVE_IMPORTER = "diffusion.native"
ITSELF = "fastdc"
"""The table's name for ``fastdc/__init__.py``."""


@dataclass(frozen=True)
class House:
    """The sources of fastdc and the order of its wings.

    Attributes:
        sources: Source code by module, relative to fastdc: "" is its ``__init__``, "rules" that of a package.
        packages: The modules that are packages.
        order: The wings, from the ground up.
    """

    sources: Mapping[str, str]
    packages: frozenset[str]
    order: tuple[str, ...]
    _public: dict[str, frozenset[str] | None] = field(default_factory=dict, repr=False)

    def public(self, module: str) -> frozenset[str] | None:
        """The ``__all__`` of a module; None if it has none."""
        if module not in self._public:
            self._public[module] = public_names(self.sources.get(module, ""))
        return self._public[module]


def read_house(root: Path = ROOT) -> House:
    """The house in the repository."""
    package = root / "fastdc"
    sources, packages = {}, set()
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[module] = path.read_text(encoding="utf-8")
        if parts[-1] == "__init__":
            packages.add(module)
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    return House(sources, frozenset(packages), documented_wings(text))


def documented_wings(text: str) -> tuple[str, ...]:
    """The wings in the table of storeys, in its order."""
    rows = re.findall(r"^\| [^|]*\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    return tuple(name for row in rows for name in re.findall(r"`(\w+)`", row))


def public_names(source: str) -> frozenset[str] | None:
    """The names in a module's ``__all__``; None if it has none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and _assigned(node) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return None


def _assigned(node: ast.Assign | ast.AnnAssign) -> str:
    return ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])


def wing_of(module: str) -> str:
    """The wing of a module."""
    return module.partition(".")[0] or ITSELF


def imports_of(house: House, module: str) -> Iterator[tuple[str, str, int]]:
    """The modules of fastdc that a module imports, each as (module, name or "", line)."""
    for node in ast.walk(ast.parse(house.sources[module])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "fastdc":
                    yield alias.name.removeprefix("fastdc").removeprefix("."), "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: count up from the package that holds the module
                above = ["fastdc", *module.split(".")] if module else ["fastdc"]
                above = above[: len(above) + (module in house.packages) - node.level]
                base = ".".join([*above, *([base] if base else [])])
            if base.partition(".")[0] != "fastdc":
                continue
            inside = base.removeprefix("fastdc").removeprefix(".")
            for alias in node.names:
                whole = f"{inside}.{alias.name}" if inside else alias.name
                if inside == "" and (whole in house.sources or whole == NATIVE):
                    yield whole, "", node.lineno  # from fastdc import rules
                else:
                    yield inside, alias.name, node.lineno


def lazy_lines(house: House, module: str) -> set[int]:
    """The lines under ``if TYPE_CHECKING:`` of ``fastdc/__init__.py``, whose names are imported on demand."""
    if module:
        return set()
    blocks = [
        part
        for node in ast.walk(ast.parse(house.sources[module]))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
    ]
    return {line for part in blocks for line in range(part.lineno, (part.end_lineno or part.lineno) + 1)}


def problems_of(house: House) -> list[str]:
    """Every import that breaks a rule, as "module:line: problem"."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    rank = {wing: number for number, wing in enumerate(house.order)}
    for module in house.sources:
        wing = wing_of(module)
        if wing not in rank:
            found.append(f"{module}: wing {wing} is not in the table of docs/architecture.md")
            continue
        graph[module], lazy = set(), lazy_lines(house, module)
        for target, name, line in imports_of(house, module):
            other = wing_of(target)
            where = f"{module or ITSELF}:{line}"
            full = f"{target}.{name}" if name else target
            graph[module].add(full if full in house.sources else target)
            if target == NATIVE:
                if module != NATIVE_IMPORTER:
                    found.append(f"{where}: only {NATIVE_IMPORTER} may import the native module")
            elif line in lazy:
                found += [f"{where}: {problem}" for problem in private_import(house, target, name)]
            elif other != wing and rank.get(other, len(rank)) > rank[wing]:
                found.append(f"{where}: {wing} imports {other}, which stands above it")
            elif other != wing and module:
                found += [f"{where}: {problem}" for problem in private_import(house, target, name)]
        graph[module].discard(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("cycle: " + " -> ".join(map(str, error.args[1])))
    return found


def private_import(house: House, target: str, name: str) -> list[str]:
    """The problem with importing a name of another wing; empty if there is none."""
    if target not in house.packages:
        if "." in target:
            return [f"{target} is private to its wing"]
        return [f"{target}.{name} is private"] if name.startswith("_") and not name.startswith("__") else []
    public = house.public(target)
    if public is None:
        return [f"{target} has no __all__"]
    return [] if not name or name in public else [f"{name} is not among the public names of {target}"]


def arrows(house: House) -> dict[str, set[str]]:
    """For each wing, the wings that it imports."""
    found: dict[str, set[str]] = {wing: set() for wing in house.order}
    for module in house.sources:
        wing = wing_of(module)
        for target, _, _ in imports_of(house, module):
            if wing_of(target) not in (wing, NATIVE):
                found.setdefault(wing, set()).add(wing_of(target))
    return found


def main() -> int:
    """Prints the graph and its problems."""
    house = read_house()
    graph = arrows(house)
    for wing in house.order:
        print(f"{wing:14} <- {' '.join(sorted(graph[wing], key=house.order.index)) or '(nothing)'}")
    found = problems_of(house)
    print(f"{len(house.order)} wings, {sum(map(len, graph.values()))} arrows, {len(found)} problems")
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
