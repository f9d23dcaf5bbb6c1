"""The API pages: each page in api/ documents the public names of one wing, and no public name may be missing.

A name that both fastdc and a wing export is documented once, on the page of fastdc.
"""

import ast
import importlib
import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import fastdc

logger = logging.getLogger(__name__)
FACE = frozenset(fastdc.__all__)
SECTION = re.compile(r"[A-Z]\w+( \w+)?:")  # "Args:", "Returns:", ...
NUMPY = r"~?(?:typing\.|numpy\.(?:[\w.]*\.)?)?"  # how the name of a type in a signature begins
ARRAY = re.compile(rf"{NUMPY}ndarray\[tuple\[{NUMPY}Any, \.\.\.\], {NUMPY}dtype\[{NUMPY}(\w+(?:\[.*?\])?)\]\]")
ARRAY_LIKE = re.compile(rf"{NUMPY}_Buffer \| .*?{NUMPY}_NestedSequence\[complex \| bytes \| str\]")
SHORT = 80  # characters of a value that is shown
NOT_OURS = ("__new__", "set_fit_request", "set_score_request")  # what Python and scikit-learn add to classes


def names_of(wing: str) -> list[str]:
    """The names in the ``__all__`` of a wing, without modules of its own."""
    return sorted(importlib.import_module(wing).__all__)


def _origin(wing: str, name: str) -> str:
    """The module from which a wing imports a name."""
    tree = ast.parse(inspect.getsource(importlib.import_module(wing)))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            return node.module or wing
    return wing


def _value(wing: str, name: str) -> list[str]:
    """A constant or a type, with the text below its definition."""
    text = repr(getattr(importlib.import_module(wing), name))
    origin = _origin(wing, name)
    described = ModuleAnalyzer.for_module(origin).find_attr_docs().get(("", name), [])
    short = [f"   :value: {text}"] if len(text) <= SHORT and " at 0x" not in text else []
    return [f".. py:data:: {name}", f"   :module: {wing}", *short, "", *(f"   {line}" for line in described), ""]


def _directives(wing: str, left_out: frozenset[str]) -> list[str]:
    """ReStructuredText that describes each public name of a wing."""
    module = importlib.import_module(wing)
    values: list[str] = []
    others: list[str] = []
    for name in names_of(wing):
        if name in left_out:
            continue
        value = getattr(module, name)
        if inspect.ismodule(value):
            exclude = ", ".join(names_of(wing))
            others += [f".. automodule:: {value.__name__}", f"   :exclude-members: {exclude}", ""]
        elif not (inspect.isclass(value) or inspect.isroutine(value)) or not inspect.getdoc(value):
            values += _value(wing, name)
        elif name not in vars(module):  # imported on first use, which autodoc does not see
            others += [f".. auto{'class' if inspect.isclass(value) else 'function'}:: {wing}.{name}", ""]
    exclude = ", ".join([*NOT_OURS, *sorted(left_out)])
    return [f".. automodule:: {wing}", f"   :exclude-members: {exclude}", "", *values, *others]


def page(wing: str) -> str:
    """The text of a wing's page, below its title."""
    shared = [] if wing == "fastdc" else [name for name in names_of(wing) if name in FACE - {"__version__"}]
    lines = _directives(wing, frozenset([*shared, "__version__"]))
    text = "\n```{eval-rst}\n" + "\n".join(lines) + "\n```\n"
    if shared:
        links = ", ".join(f"{{py:obj}}`~fastdc.{name}`" for name in shared)
        text += f"\nAlso public here, and described with [fastdc](fastdc.md): {links}.\n"
    return text


def _fill(_app: Sphinx, docname: str, source: list[str]) -> None:
    folder, _, wing = docname.partition("/")
    if folder == "api" and wing != "index":
        source[0] += page("fastdc" if wing == "fastdc" else f"fastdc.{wing}")


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of every public name that no page describes."""
    described = set(env.domains.python_domain.objects)
    for docname in sorted(env.found_docs):
        folder, _, wing = docname.partition("/")
        if folder != "api" or wing == "index":
            continue
        module = "fastdc" if wing == "fastdc" else f"fastdc.{wing}"
        for name in set(names_of(module)) - {"__version__"}:
            if not {f"fastdc.{name}" if name in FACE else f"{module}.{name}"} & described:
                logger.warning("%s.%s is public and on no page", module, name, location=docname)


def _literal_blocks(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Formulas and code are indented in the docstrings' text; reStructuredText wants a ``::`` before them."""
    text, last = [], ""
    for index, line in enumerate(lines):
        if SECTION.fullmatch(line):
            text += lines[index:]
            break
        begins = line.startswith("    ") and text and not text[-1].strip() and not last.startswith((" ", "- ", "* "))
        if begins and not last.endswith("::"):
            text += ["::", ""]
        text.append(line)
        last = line if line.strip() else last
    lines[:] = text


def _short(text: str | None) -> str | None:
    return text and ARRAY_LIKE.sub("ArrayLike", ARRAY.sub(r"NDArray[\1]", text))


def _short_arrays(
    _app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """``NDArray[float32]`` and ``ArrayLike`` for what NumPy expands these names to."""
    return _short(signature), _short(returned)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("source-read", _fill)
    app.connect("env-check-consistency", _check)
    app.connect("autodoc-process-docstring", _literal_blocks, priority=400)  # before napoleon reads the sections
    app.connect("autodoc-process-signature", _short_arrays)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
