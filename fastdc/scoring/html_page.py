"""A score as one HTML page that needs no other file, no script and no network."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastdc.scoring.mistakes import Mistake
from fastdc.scoring.numbers import ScoreNumbers
from fastdc.scoring.pictures import confusion_svg, refusal_svg, reliability_svg
from fastdc.scoring.text_page import (
    RIVALS_EXPLAINED,
    class_rows,
    confusion_lines,
    counted,
    group_rows,
    positive_lines,
    positive_rows,
    remarks_of,
    rival_rows,
    shown_classes,
    shown_groups,
    summary_of,
    worst_of,
)
from fastdc.support import html_pages as page

_MOST_ROWS = 200
_MATRIX = 30  # most classes of the picture; of more, those with the most errors
_FEW = 20  # how many of them


def html_page(score: ScoreNumbers, mistakes: Sequence[Mistake] = ()) -> str:
    """The whole page.

    Args:
        score: The score.
        mistakes: Kinds of mistakes with examples.
    """
    model = score.provenance.get("model")
    return page.html_page(f"Score of {model}" if model else "Score", html_body(score, mistakes))


def html_body(score: ScoreNumbers, mistakes: Sequence[Mistake] = ()) -> str:
    """What the page says, for a notebook, too.

    Args:
        score: The score.
        mistakes: Kinds of mistakes with examples.
    """
    value = f"{100 * score.accuracy.value:.2f} %"
    ends = f"95 % interval {100 * score.accuracy.low:.2f} to {100 * score.accuracy.high:.2f} %"
    parts = [f'<p><span class="big">{value}</span> accuracy ({ends}, Wilson)</p>']
    lines = [(name, text) for name, text in summary_of(score) if name != "accuracy"]
    parts.append(page.facts(lines))
    parts += [page.remark(text) for text in remarks_of(score)]
    parts.append(_pictures(score))
    if score.positive is not None:
        of = score.positive
        parts.append(f"<h2>{page.escaped(of.name)} against the rest</h2>")
        counts = f"{counted(of.images, of.others)}; each measure with its 95 % interval."
        parts += [page.facts(positive_lines(score)), page.remark(counts)]
    if score.rivals:
        parts += [
            "<h2>Beside other classifiers</h2>",
            page.table(rival_rows(score)),
            page.remark(f"{RIVALS_EXPLAINED}."),
        ]
    for by, groups in score.groups.items():
        chosen, remark = shown_groups(groups, _MOST_ROWS)
        parts.append(f"<h2>By {page.escaped(by)}</h2>")
        parts += [page.table(group_rows(by, groups, chosen)), page.remark(remark), page.remark(worst_of(by, score))]
        if rows := positive_rows(by, groups, chosen):
            parts.append(page.table(rows))
    which, remark = shown_classes(score, _MOST_ROWS)
    parts += ["<h2>Classes</h2>", page.table(class_rows(score, which)), page.remark(remark)]
    if score.confusions:
        parts.append("<h2>Taken for another class most often</h2>")
        parts.append("<ul>" + "".join(f"<li>{page.escaped(one)}</li>" for one in confusion_lines(score)) + "</ul>")
    if mistakes:
        parts += ["<h2>Mistakes, the surest first</h2>", *map(_examples, mistakes)]
    if score.provenance:
        parts.append("<h2>What reproduces it</h2>")
        parts.append(page.facts(list(_facts(score.provenance))))
    return "\n".join(filter(None, parts))


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
    figures = (page.figure(picture, text) for picture, text in zip(pictures, texts, strict=True))
    return f'<div class="pictures wide">{"".join(figures)}</div>'


def _examples(of: Mistake) -> str:
    """Examples of a kind of mistake."""
    figures = "".join(
        page.figure(
            page.image(page.picture(image), f"{name}: {of.truth} taken for {of.answer}"), f"{name}, {probability:.3f}"
        )
        for image, name, probability in zip(of.images, of.ids, of.probabilities, strict=True)
    )
    head = f"<h3>{page.escaped(of.truth)} taken for {page.escaped(of.answer)}: {of.count}</h3>"
    return f'{head}<div class="pictures small">{figures}</div>'


def _facts(provenance: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in provenance.items():
        items = value.items() if isinstance(value, Mapping) else None
        text = str(value) if items is None else ", ".join(f"{key} {one}" for key, one in items if one is not None)
        yield name, text
