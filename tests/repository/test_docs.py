"""The documentation without building it: links lead somewhere, every page is in the site, every wing has an API page.

tools/docs.sh builds the site, in which every warning is an error; docs/_ext/public_names.py then warns of each public
name that no page describes.
"""

import importlib
import io
import json
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdc.data import digits_test
from fastdc.support import MissingDependencyError
from helpers.paths import ROOT
from wings import read_house

DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```|~~~|:::).*?^\1", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """The Markdown files of the repository, without those of installed packages."""
    folders = [DOCS, *(ROOT / name for name in ("bench", "models", "tests", ".github"))]
    found = [path for folder in folders for path in folder.rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *found])


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links of a page that lead to no file or to no heading."""
    broken = []
    for path, anchor in LINK.findall(FENCE.sub("", text)):
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(path)
        elif anchor and anchor[1:] not in anchors(target.read_text(encoding="utf-8") if path else text):
            broken.append(f"{path}{anchor}")
    return broken


def toctree(page: Path) -> list[str]:
    """The entries of a page's tables of contents."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_of_code_end(page: Path) -> None:
    """A fence that is not on a line of its own ends nothing: the rest of the page would be code."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if "```" in line]
    assert [line for line in lines if not line.lstrip().startswith("```")] == []
    assert len(lines) % 2 == 0


def test_a_broken_link_is_seen() -> None:
    page = DOCS / "index.md"
    text = (
        "# One\n[a](none.md) [b](#two) [c](#one) [d](conf.py) [e](https://example.org/none)\n```\n[f](none.md)\n```\n"
    )
    assert broken_links(page, text) == ["none.md", "#two"]


def test_every_page_is_in_the_site_once() -> None:
    listed = toctree(DOCS / "index.md")
    assert len(set(listed)) == len(listed)
    sources = [path for path in DOCS.rglob("*") if path.suffix in {".md", ".ipynb"}]
    sources = [path for path in sources if path.parent.name != "api" and path.name != "index.md"]
    assert len(sources) > 15
    assert {path.relative_to(DOCS).with_suffix("").as_posix() for path in sources} <= set(listed)


def test_every_wing_has_an_api_page() -> None:
    wings = {wing or "fastdc" for wing in read_house().packages} - {"cli"}
    top = {wing for wing in wings if "." not in wing}
    assert {path.stem for path in (DOCS / "api").glob("*.md")} - {"index"} == top
    assert set(toctree(DOCS / "api" / "index.md")) == top


def test_pictures_are_small() -> None:
    files = [path for path in DOCS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.name: path.stat().st_size for path in files if path.stat().st_size > 100_000} == {}


def test_the_tutorial_shows_what_ran() -> None:
    """Each console block of the tutorial is a part of the transcript that docs/tutorial/tutorial.sh wrote."""
    transcript = (DOCS / "tutorial" / "transcript.txt").read_text(encoding="utf-8")
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    assert [block for block in blocks if block not in transcript] == []


def answer(port: int, body: bytes) -> Any:
    """What the server of docs/serve.md answers to a picture."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}", data=body, timeout=30) as response:
        return json.load(response)


def test_the_server_of_the_documentation_answers(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "serve.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "served"}
    exec(compile(code, "serve.md", "exec"), names)
    server = names["ThreadingHTTPServer"](("127.0.0.1", 0), names["Handler"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        test, picture = digits_test(), io.BytesIO()
        index = int(np.flatnonzero(test.labels == 3)[0])
        Image.fromarray(test.images[index, 0]).save(picture, "PNG")
        assert answer(server.server_port, picture.getvalue())["class"] == "3"
        with pytest.raises(urllib.error.HTTPError, match="400"):
            answer(server.server_port, b"no picture")
        assert "POST" in capsys.readouterr().err
    finally:
        server.shutdown()
        server.server_close()
        names["session"].close()


def test_names_on_the_front_page_of_the_api_exist() -> None:
    names = re.findall(r"\{py:obj\}`([\w.]+)`", (DOCS / "api" / "index.md").read_text(encoding="utf-8"))
    assert len(names) > 15
    for name in names:
        module, _, rest = name.partition(".")
        wing, _, attribute = rest.partition(".")
        inside = wing in read_house().packages
        try:
            value: Any = importlib.import_module(f"{module}.{wing}" if inside else module)
            for part in (attribute if inside else rest).split("."):
                value = getattr(value, part)
        except MissingDependencyError:
            continue
