"""Pages in headless Chromium: how wide they are, how well their text can be read, what they complain about.

Pages are put into frames of an outer page, whose script measures them: theirs may have none.
"""

import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

_SCRIPT = """
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
function behind(node, view) {
  for (; node; node = node.parentElement) {
    const colour = rgb(view.getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
}
function contrast(node, view) {
  const style = view.getComputedStyle(node);
  const ink = rgb(node.namespaceURI.endsWith("svg") ? style.fill : style.color);
  const [a, b] = [light(ink), light(behind(node, view))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const view = frame.contentWindow, page = frame.contentDocument;
    const own = node => [...node.childNodes].some(part => part.nodeType === 3 && part.data.trim());
    const texts = [...page.body.querySelectorAll(":not(title)")].filter(own);
    const told = texts.map(node => [contrast(node, view), node.textContent.trim().slice(0, 40)]);
    const worst = told.sort((a, b) => a[0] - b[0]);
    const images = [...page.images];
    return {
      page: frame.title, inner: view.innerWidth, wide: page.scrollingElement.scrollWidth,
      contrast: worst[0][0], worst: worst[0][1], paper: view.getComputedStyle(page.body).backgroundColor,
      images: images.length, broken: images.filter(one => !one.complete || !one.naturalWidth).length,
      silent: images.filter(one => !one.alt).length, requests: view.performance.getEntriesByType("resource").length,
      headings: [...page.querySelectorAll("h1, h2, h3")].map(one => Number(one.tagName[1])),
    };
  });
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
});
"""


def measured(pages: Mapping[str, str], widths: Sequence[int], *, dark: bool) -> list[dict[str, Any]]:
    """What a browser finds of each page at each width; skips if there is none.

    Args:
        pages: HTML by name.
        widths: Widths of the window, in CSS pixels.
        dark: Whether the reader prefers dark pages.

    Raises:
        AssertionError: The browser wrote to its console, or found nothing.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip("no Chromium")
    frames = "".join(
        f'<iframe title="{name}" srcdoc="{html.escape(text)}" style="width:{width}px;height:800px;border:0"></iframe>'
        for name, text in pages.items()
        for width in widths
    )
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder, "outer.html")
        text = f"<!DOCTYPE html><meta charset=utf-8><body><script>{_SCRIPT}</script>{frames}"
        outer.write_text(text, encoding="utf-8")
        quiet = ("gpu", "background-networking", "component-update", "sync", "extensions", "dev-shm-usage")
        run = [browser, "--headless", "--no-sandbox", *(f"--disable-{one}" for one in quiet), "--no-first-run"]
        run += [f"--user-data-dir={folder}/profile", "--enable-logging=stderr", "--dump-dom", "--window-size=1400,900"]
        run += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", outer.as_uri()]
        done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=240)
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    found = re.search(r"FOUND(.*)END", html.unescape(done.stdout))
    assert found, done.stdout[:1000]
    made: list[dict[str, Any]] = json.loads(found[1])
    return made


def check_pages(pages: Mapping[str, str]) -> None:
    """Asserts that pages fit a phone and a desk, can be read in light and dark, and load nothing."""
    for text in pages.values():
        assert "<script" not in text
        assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
        assert "Content-Security-Policy" in text
    papers = set()
    for dark in (False, True):
        for one in measured(pages, (360, 1280), dark=dark):
            assert one["wide"] <= one["inner"], one
            assert one["contrast"] >= 4.5, one
            assert one["broken"] == one["silent"] == one["requests"] == 0, one
            assert one["headings"][0] == 1, one
            assert all(b - a <= 1 for a, b in zip(one["headings"], one["headings"][1:], strict=False)), one
            papers.add((dark, one["paper"]))
    assert len(papers) == 2
