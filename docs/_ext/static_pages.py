"""Formulas as MathML, mermaid diagrams as SVG, and links that leave the folder docs/.

Sphinx's usual ways to show formulas and diagrams load scripts from other hosts when a page is viewed. Here both are
finished when the site is built: docutils converts LaTeX to MathML, which browsers show themselves, and mermaidx runs
mermaid's own code in an embedded interpreter.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

DOCS = Path(__file__).resolve().parent.parent
# Pages of the site that show a file outside docs/.
SHOWN = {
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/security": "SECURITY.md",
    "bench-scripts": "bench/README.md",
    "shipped-models": "models/README.md",
}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>(?!https?:|mailto:)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


class Mermaid(SphinxDirective):
    """A ``mermaid`` fence, drawn as an SVG file."""

    has_content = True
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        """The picture, and the source of the diagram as its alternative text."""
        import mermaidx

        source = "\n".join(self.content)
        name = f"diagram-{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"
        folder = Path(self.env.app.outdir) / "_images"
        folder.mkdir(parents=True, exist_ok=True)
        svg = mermaidx.render(f'%%{{init: {{"theme": "neutral"}}}}%%\n{source}').svg()
        (folder / name).write_text(svg, encoding="utf-8")
        up = "../" * self.env.docname.count("/")
        picture = f'<img class="diagram" src="{up}_images/{name}" alt="diagram">'
        return [nodes.raw("", picture, format="html")]


def _mathml(translator: Any, node: nodes.math | nodes.math_block, *, block: bool) -> None:
    try:
        html = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        raise ExtensionError(f"{node.source}: cannot convert {node.astext()!r}: {error}") from error
    translator.body.append(f'<div class="formula">{html}</div>' if block else html)
    raise nodes.SkipNode


def _inline(translator: Any, node: nodes.math) -> None:
    _mathml(translator, node, block=False)


def _block(translator: Any, node: nodes.math_block) -> None:
    _mathml(translator, node, block=True)


def _from(folder: Path, target: Path) -> str:
    return Path(os.path.relpath(target, folder)).as_posix()


def _show(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the shown file into its page, and leads links to files outside docs/ to their pages.

    Links to other files of the repository, which the site does not have, become plain text.
    """
    root = DOCS.parent
    origin = DOCS / f"{docname}.md"
    here = origin.parent
    if docname in SHOWN:
        origin = root / SHOWN[docname]
        source[0] = origin.read_text(encoding="utf-8")
    pages = {root / file: DOCS / f"{page}.md" for page, file in SHOWN.items()}

    def lead(link: re.Match[str]) -> str:
        target = (origin.parent / link["path"]).resolve()
        target = pages.get(target, target)
        if not link["image"] and not target.is_relative_to(DOCS):
            return link["text"]
        named_by_file = target.suffix == ".md" and link["text"] == link["path"] and not link["anchor"]
        text = "" if named_by_file else link["text"]  # an empty one becomes the title of the page
        return f"{link['image']}[{text}]({_from(here, target)}{link['anchor'] or ''})"

    source[0] = LINK.sub(lead, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("mermaid", Mermaid)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", _show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
