"""A score as one HTML page that needs no other file, no script and no network."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastdc.scoring.numbers import ScoreNumbers
from fastdc.scoring.pictures import confusion_svg, refusal_svg, reliability_svg
from fastdc.scoring.text_page import (
    class_rows,
    confusion_lines,
    group_rows,
    positive_lines,
    positive_rows,
    remarks_of,
    shown_classes,
    shown_groups,
    summary_of,
    worst_of,
)

_MOST_ROWS = 200
_MATRIX = 30  # most classes of the picture; of more, those with the most errors
_FEW = 20  # how many of them

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e4e4 }
th:first-child, td:first-child { text-align: left } th { font-weight: 600 }
table.summary td { text-align: left } .big { font-size: 2rem; font-weight: 600 }
.remark { color: #666; max-width: 44rem }
.pictures { display: flex; flex-wrap: wrap; gap: 2rem; margin-top: 2rem; align-items: flex-start }
figure { margin: 0 } figcaption { color: #666; font-size: 0.85rem; max-width: 24rem }
svg { max-width: 100%; height: auto }
"""


def html_page(score: ScoreNumbers) -> str:
    """The whole page.

    Args:
        score: The score.
    """
    title = _title(score)
    head = f'<meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n'
        f"{html_body(score)}\n</body></html>\n"
    )


def html_body(score: ScoreNumbers) -> str:
    """What the page says, for a notebook, too.

    Args:
        score: The score.
    """
    value = f"{100 * score.accuracy.value:.2f} %"
    ends = f"95 % interval {100 * score.accuracy.low:.2f} to {100 * score.accuracy.high:.2f} %"
    parts = [f'<p><span class="big">{value}</span> accuracy ({ends}, Wilson)</p>']
    lines = [(name, text) for name, text in summary_of(score) if name != "accuracy"]
    parts.append(_rows([[name, text] for name, text in lines], kind="summary"))
    parts += [f'<p class="remark">{html.escape(text)}</p>' for text in remarks_of(score)]
    parts.append(_pictures(score))
    if score.positive is not None:
        of = score.positive
        parts.append(f"<h2>{html.escape(of.name)} against the rest</h2>")
        counts = f"{of.images} images and {of.others} others; each measure with its 95 % interval."
        parts += [_rows(positive_lines(score), kind="summary"), _remark(counts)]
    for by, groups in score.groups.items():
        chosen, remark = shown_groups(groups, _MOST_ROWS)
        parts.append(f"<h2>By {html.escape(by)}</h2>")
        parts += [_table(group_rows(by, groups, chosen)), _remark(remark), _remark(worst_of(by, score))]
        if rows := positive_rows(by, groups, chosen):
            parts.append(_table(rows))
    which, remark = shown_classes(score, _MOST_ROWS)
    parts += ["<h2>Classes</h2>", _table(class_rows(score, which)), _remark(remark)]
    if score.confusions:
        parts.append("<h2>Taken for another class most often</h2>")
        parts.append("<ul>" + "".join(f"<li>{html.escape(one)}</li>" for one in confusion_lines(score)) + "</ul>")
    if score.provenance:
        parts.append("<h2>What reproduces it</h2>")
        parts.append(_rows([[name, text] for name, text in _facts(score.provenance)], kind="summary"))
    return "\n".join(filter(None, parts))


def _title(score: ScoreNumbers) -> str:
    model = score.provenance.get("model")
    return html.escape(f"Score of {model}" if model else "Score")


def _pictures(score: ScoreNumbers) -> str:
    errors = score.confusion.sum(axis=0) + score.confusion.sum(axis=1) - 2 * score.confusion.diagonal()
    k = len(score.class_names)
    some = np.arange(k) if k <= _MATRIX else np.sort(np.argsort(-errors, kind="stable")[:_FEW])
    matrix = confusion_svg(score.confusion[np.ix_(some, some)], [score.class_names[one] for one in some])
    cut = "" if k <= _MATRIX else f" The {_FEW} of {k} classes with the most errors."
    texts = (
        f"Images of each class by answer; the colour is the share of the row.{cut}",
        f"How often answers are right, by their probability (bars), at the mean probability of the bin (dots). On the "
        f"dashed line they would be calibrated; ECE {score.ece:.4f}.",
        f"How often the other answers are right when the least certain ones are refused. Mean of the whole curve: "
        f"{score.refusal.area:.4f}.",
    )
    pictures = (matrix, reliability_svg(score.reliability), refusal_svg(score.refusal))
    figures = (
        f"<figure>{picture}<figcaption>{html.escape(text)}</figcaption></figure>"
        for picture, text in zip(pictures, texts, strict=True)
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def _facts(provenance: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in provenance.items():
        items = value.items() if isinstance(value, Mapping) else None
        text = str(value) if items is None else ", ".join(f"{key} {one}" for key, one in items if one is not None)
        yield name, text


def _remark(text: str) -> str:
    return f'<p class="remark">{html.escape(text)}</p>' if text else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    names = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{_cells(body)}</tbody></table>"


def _rows(rows: Sequence[Sequence[str]], *, kind: str) -> str:
    return f'<table class="{kind}"><tbody>{_cells(rows)}</tbody></table>'


def _cells(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
