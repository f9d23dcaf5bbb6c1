"""Pages for people: one HTML file that needs no other file, no script and no network.

A page follows the reader's light or dark setting and fits a phone. Its Content-Security-Policy allows pictures in the
page itself and styles, and nothing else. All text is escaped by the functions here, whatever it holds. Colours are
those of Okabe & Ito, "Color universal design" (2008), which most colour-blind people tell apart; text has a contrast of
at least 4.5 to 1.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fastdc.support.messages import printable

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)
"""For and against, right and wrong: RGB in 0 ... 255."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #555e68; --paper: #ffffff; --card: #f5f7f9; --line: #d5dbe1;
  --blue: #0072b2; --orange: #b84f00; --bar: #9fb8c8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --soft: #a9b3bd; --paper: #14171b; --card: #1d2228;
  --line: #39424c; --blue: #5cb8ea; --orange: #f0914a; --bar: #4e6575 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 66rem; padding: 1rem clamp(0.8rem, 3vw, 2rem) 3rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.8rem 0 } h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem }
p, ul { margin: 0.5rem 0 } ul { padding-left: 1.2rem }
.remark, figcaption, .soft { color: var(--soft); font-size: 0.9rem } .remark { max-width: 46rem }
.big { font-size: 2rem; font-weight: 600 }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400;
  overflow-wrap: normal }
th:first-child, td:first-child { text-align: left } thead th { font-weight: 600 }
table:not(.summary, .bars) td + td { white-space: nowrap }
table.summary td { text-align: left; vertical-align: top; overflow-wrap: anywhere }
table.summary td + td { white-space: normal } table.summary td:first-child { color: var(--soft); min-width: 6rem }
table.bars { width: 100% } table.bars th { overflow-wrap: anywhere }
td.track { width: 40%; min-width: 5rem; padding-right: 0 }
.bar { display: block; height: 0.8rem; min-width: 1px; background: var(--bar); border-radius: 2px }
.bar.blue { background: var(--blue) } .bar.orange { background: var(--orange) }
.blue-text { color: var(--blue) } .orange-text { color: var(--orange) }
.pictures { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr));
  margin: 1rem 0; align-items: start }
.pictures.small { grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: 0.8rem }
.pictures.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
figure { margin: 0 } figcaption { margin-top: 0.3rem }
img { display: block; width: 100%; height: auto; image-rendering: pixelated; border: 1px solid var(--line) }
svg { max-width: 100%; height: auto; color: var(--ink) }
section { border-top: 1px solid var(--line); margin-top: 2rem }
details summary { cursor: pointer }
"""


def html_page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: What it is about; its heading, too.
        body: HTML below the heading.

    Example:
        >>> from fastdc.support import html_pages
        >>> "<h1>a &lt; b</h1>" in html_pages.html_page("a < b", "")
        True
    """
    name = escaped(title)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<style>{_STYLE}</style>"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n<main>\n<h1>{name}</h1>\n{body}\n</main>\n'
        "</body></html>\n"
    )


def escaped(text: object) -> str:
    """A text as HTML; characters that do not print become question marks."""
    return html.escape(printable(str(text)))


def remark(text: str) -> str:
    """A remark; nothing if there is none."""
    return f'<p class="remark">{escaped(text)}</p>' if text else ""


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row has the names of the columns; wide ones can be scrolled."""
    head, *body = rows
    names = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{_cells(body)}</tbody></table></div>'


def facts(rows: Sequence[Sequence[str]]) -> str:
    """A table of names and values."""
    return f'<div class="scroll"><table class="summary"><tbody>{_cells(rows)}</tbody></table></div>'


def _cells(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)


def bars(rows: Iterable[tuple[str, float, str, str]], *, names: tuple[str, str]) -> str:
    """A table with a bar per row.

    Args:
        rows: Name, length in [0, 1], value as text, and colour: "", "blue" or "orange".
        names: Names of the columns of names and of values.

    Example:
        >>> from fastdc.support import html_pages
        >>> "width:50%" in html_pages.bars([("cat", 0.5, "0.5", "blue")], names=("class", "probability"))
        True
    """
    body = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(value)}</td><td class="track" aria-hidden="true">'
        f'<span class="bar {colour}" style="width:{100 * min(1.0, max(0.0, length)):.3g}%"></span></td></tr>'
        for name, length, value, colour in rows
    )
    head = f'<th scope="col">{escaped(names[0])}</th><th scope="col">{escaped(names[1])}</th><td></td>'
    return f'<table class="bars"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def figure(picture: str, caption: str) -> str:
    """A picture, as HTML, with its caption."""
    return f"<figure>{picture}<figcaption>{escaped(caption)}</figcaption></figure>"


def image(pixels: npt.NDArray[np.uint8], text: str) -> str:
    """A picture in the page itself.

    Args:
        pixels: uint8 (h, w) or (h, w, 3).
        text: What it shows, for those who do not see it.

    Example:
        >>> from fastdc.support import html_pages
        >>> html_pages.image(np.zeros((8, 8), np.uint8), "black")[:42]
        '<img alt="black" width="8" height="8" src='
    """
    from PIL import Image  # which takes a while to load

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    return f'<img alt="{escaped(text)}" {size} src="data:image/png;base64,{content}">'


def picture(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """An image (c, h, w), uint8 or float in [0, 1], as a picture (h, w) or (h, w, 3); of other channels, the mean."""
    values = pixels if pixels.dtype == np.uint8 else np.rint(255 * np.clip(pixels.astype(np.float64), 0, 1))
    if len(values) == 3:
        return np.ascontiguousarray(values.transpose(1, 2, 0).astype(np.uint8))
    return np.ascontiguousarray((values[0] if len(values) == 1 else values.mean(axis=0)).astype(np.uint8))
