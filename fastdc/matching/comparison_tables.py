"""A comparison of models as people read it: text, LaTeX, one HTML page, and columns for files.

The accuracies of a task stand in the form of the paper's tables (Pearson et al., arXiv 2508.20783): models in rows,
splits and settings in columns. A longer table per task has intervals, kinds of errors and costs.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fastdc.matching.cells import Cell
from fastdc.matching.comparison_numbers import CellScore, ComparisonNumbers
from fastdc.support import aligned
from fastdc.support import html_pages as page

_LINE = 100  # characters of a line of text

TITLES = {"single": "Single object", "two_object": "Two objects", "relational": "Relational"}
"""Tasks as people read them."""

TESTS_EXPLAINED = (
    "Differences are the first model's accuracy minus the second's, on the same images; p is McNemar's exact test of "
    "equal accuracies, and p Holm the same{corrected}."
)
ERRORS_EXPLAINED = "Accuracy and errors are in percent of all images; intervals are 95 %, Wilson's."


def _tests_explained(comparison: ComparisonNumbers) -> str:
    count = len(comparison.tests)
    corrected = ", as it is the only comparison" if count == 1 else f" corrected for all {count} comparisons"
    return TESTS_EXPLAINED.format(corrected=corrected)


def title_of(task: str) -> str:
    """A task's name as a heading."""
    return TITLES.get(task, task.replace("_", " ").capitalize())


def tasks_of(comparison: ComparisonNumbers) -> list[str]:
    """The tasks, in order."""
    return list(dict.fromkeys(cell.task for cell in comparison.cells))


def error_kinds(scores: Sequence[CellScore]) -> tuple[str, ...]:
    """The kinds of errors of some scores, in the order of the first that has each."""
    return tuple(dict.fromkeys(kind for score in scores for kind in score.kinds))


def accuracy_rows(comparison: ComparisonNumbers, task: str, *, intervals: bool) -> list[list[str]]:
    """The accuracies of a task in the form of the paper's table, in percent, with its head and a row of chance."""
    cells = [cell for cell in comparison.cells if cell.task == task]
    rows = [["accuracy, %", *(f"{cell.split} {cell.setting}" for cell in cells)]]
    for name in comparison.models:
        scores = [comparison.score(name, cell) for cell in cells]
        if any(scores):
            rows.append([name, *("-" if score is None else _accuracy(score, intervals) for score in scores)])
    return [*rows, ["chance", *(_percent(_chance(comparison, cell), 1) for cell in cells)]]


def detail_rows(comparison: ComparisonNumbers, task: str) -> list[list[str]]:
    """Every score of a task with its kinds of errors and its costs, with its head."""
    scores = [score for score in comparison.scores if score.cell.task == task]
    kinds = error_kinds(scores)
    costs = ["candidates", "evaluations", "s/image"]
    rows = [["split", "model", "images", "accuracy, %", "95 % interval", *(f"{one}, %" for one in kinds), *costs]]
    for score in scores:
        images = str(score.images) if score.images == score.wanted else f"{score.images} of {score.wanted}"
        low, high = score.accuracy[1:]
        rows.append(
            [
                f"{score.cell.split} {score.cell.setting}",
                score.name,
                images,
                _percent(score.accuracy.value),
                f"{_percent(low)}-{_percent(high)}",
                *(_percent(score.kinds[kind]) if kind in score.kinds else "-" for kind in kinds),
                f"{score.candidates:.4g}",
                f"{score.evaluations:,.1f}",
                f"{score.seconds / score.images:.4f}",
            ]
        )
    return rows


def test_rows(comparison: ComparisonNumbers) -> list[list[str]]:
    """The paired tests, with their head; empty if there are none."""
    if not comparison.tests:
        return []
    head = ["cell", "first", "second", "images", "1st only", "2nd only", "ties", "difference", "95 % interval"]
    rows = [[*head, "p", "p Holm"]]
    for test in comparison.tests:
        value, low, high = test.difference
        counts = [test.images, test.first_only, test.second_only, test.ties]
        ends = f"{100 * low:+.2f} to {100 * high:+.2f}"
        ps = [f"{test.p_value:.2g}", f"{test.corrected:.2g}"]
        rows.append([str(test.cell), test.first, test.second, *map(str, counts), f"{100 * value:+.2f}", ends, *ps])
    return rows


def text_page(comparison: ComparisonNumbers) -> str:
    """The whole comparison as text; its lines do not end in a line break."""
    blocks = []
    for task in tasks_of(comparison):
        blocks.append(f"{title_of(task)}\n{aligned(accuracy_rows(comparison, task, intervals=False))}")
        blocks.append(aligned(_second_left(detail_rows(comparison, task))))
    if rows := test_rows(comparison):
        explained = textwrap.fill(_tests_explained(comparison), _LINE)
        blocks.append(f"{aligned(rows)}\n{explained}")
    notes = (textwrap.fill(note, _LINE, initial_indent="* ", subsequent_indent="  ") for note in comparison.notes)
    blocks += ["\n".join(notes)] if comparison.notes else []
    return "\n\n".join([*blocks, ERRORS_EXPLAINED])


def html_body(comparison: ComparisonNumbers) -> str:
    """What the page says, for a notebook, too."""
    parts = [page.remark(ERRORS_EXPLAINED), *map(page.remark, comparison.notes)]
    for task in tasks_of(comparison):
        parts += [
            f"<h2>{page.escaped(title_of(task))}</h2>",
            page.table(accuracy_rows(comparison, task, intervals=True)),
        ]
        parts += ["<h3>Kinds of errors, and costs</h3>", page.table(detail_rows(comparison, task))]
    if rows := test_rows(comparison):
        explained = page.remark(_tests_explained(comparison))
        parts += ["<h2>Models in pairs</h2>", page.table(rows), explained]
    if comparison.facts:
        facts = [(name, _fact(value)) for name, value in comparison.facts.items()]
        parts += ["<h2>What reproduces it</h2>", page.facts(facts)]
    return "\n".join(filter(None, parts))


def html_page(comparison: ComparisonNumbers) -> str:
    """The whole page, which needs no other file, no script and no network."""
    return page.html_page("Texts that describe images", html_body(comparison))


def latex_tables(comparison: ComparisonNumbers) -> str:
    """For each task a table of accuracies with intervals, and one of errors, for the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for task in tasks_of(comparison):
        parts.append(_latex_accuracy(comparison, task))
        parts.append(_latex(detail_rows(comparison, task), f"{title_of(task)}: accuracy, kinds of errors, and costs."))
    if rows := test_rows(comparison):
        parts.append(_latex(rows, _tests_explained(comparison)))
    return "\n\n".join(parts) + "\n"


def score_columns(comparison: ComparisonNumbers) -> dict[str, list[Any]]:
    """The columns of a file of scores: a row per model and cell; an error that a cell has not is empty."""
    scores = comparison.scores
    columns: dict[str, list[Any]] = {
        "task": [score.cell.task for score in scores],
        "split": [score.cell.split for score in scores],
        "setting": [score.cell.setting for score in scores],
        "model": [score.name for score in scores],
        "images": [score.images for score in scores],
        "accuracy": [score.accuracy.value for score in scores],
        "ci95_low": [score.accuracy.low for score in scores],
        "ci95_high": [score.accuracy.high for score in scores],
    }
    for kind in error_kinds(scores):
        columns[kind] = [score.kinds.get(kind) for score in scores]
    columns["candidates_per_image"] = [score.candidates for score in scores]
    columns["chance"] = [score.chance for score in scores]
    columns["evaluations_per_image"] = [score.evaluations for score in scores]
    columns["seconds"] = [score.seconds for score in scores]
    return columns


def test_columns(comparison: ComparisonNumbers) -> dict[str, list[Any]]:
    """The columns of a file of paired tests."""
    rows = [test.to_dict() for test in comparison.tests]
    for row in rows:
        row |= {f"difference_{end}".removesuffix("_value"): x for end, x in row.pop("difference").items()}
    names = list(rows[0]) if rows else []
    return {name: [row[name] for row in rows] for name in names}


def answer_columns(comparison: ComparisonNumbers) -> dict[str, list[Any]]:
    """The columns of a file of answers: a row per image and cell; of each model its answer and the answer's kind.

    Models that were asked about an image with another right text have rows of their own, as has an image that is there
    twice.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in comparison.answered:
        trials, matched, nth = one.trials, one.matched, _occurrences(one.trials.ids)
        for row, answer, kind in zip(matched.rows.tolist(), matched.answers.tolist(), one.kinds, strict=True):
            texts, truth = trials.texts_of(row), int(trials.truth[row])
            facts = {
                "task": one.cell.task,
                "split": one.cell.split,
                "setting": one.cell.setting,
                "image": trials.ids[row],
                "group": trials.groups[row] if trials.groups else "",
                "truth": texts[truth] if truth >= 0 else "",
            }
            own = rows.setdefault((*facts.values(), nth[row]), facts)
            own |= {f"{matched.name} answer": texts[answer], f"{matched.name} kind": kind}
    names = ["task", "split", "setting", "image", "group", "truth"]
    names += [f"{model} {what}" for model in comparison.models for what in ("answer", "kind")]
    return {name: [row.get(name) for row in rows.values()] for name in names}


def _occurrences(names: Sequence[str]) -> list[int]:
    """How often each name was there before."""
    before, found = Counter[str](), []
    for name in names:
        found.append(before[name])
        before[name] += 1
    return found


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


def _accuracy(score: CellScore, intervals: bool) -> str:
    value, low, high = score.accuracy
    return f"{_percent(value, 1)} ({_percent(low, 1)}-{_percent(high, 1)})" if intervals else _percent(value, 1)


def _chance(comparison: ComparisonNumbers, cell: Cell) -> float:
    return next(score.chance for score in comparison.scores if score.cell == cell)


def _second_left(rows: list[list[str]]) -> list[list[str]]:
    """Rows whose second column, too, begins at the left."""
    width = max(len(row[1]) for row in rows)
    return [[row[0], row[1].ljust(width), *row[2:]] for row in rows]


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(one)}" for name, one in value.items() if one is not None)
    return str(value)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _LATEX[found[0]], text)


def _latex_accuracy(comparison: ComparisonNumbers, task: str) -> str:
    """A table of the paper's form: splits over two settings each."""
    head, *body = accuracy_rows(comparison, task, intervals=True)
    cells = [cell for cell in comparison.cells if cell.task == task]
    splits = list(dict.fromkeys(cell.split for cell in cells))
    over = [(split, sum(cell.split == split for cell in cells)) for split in splits]
    first = " & ".join(["", *(f"\\multicolumn{{{count}}}{{c}}{{{_tex(split)}}}" for split, count in over)])
    second = " & ".join(["accuracy, \\%", *(cell.setting for cell in cells)])
    lines = [" & ".join(map(_tex, row)) for row in body]
    return _tabular([first, second], lines, len(head), f"{title_of(task)}: accuracy with 95 % intervals.")


def _latex(rows: list[list[str]], caption: str) -> str:
    head, *body = ([_tex(cell) for cell in row] for row in rows)
    return _tabular([" & ".join(head)], [" & ".join(row) for row in body], len(head), caption)


def _tabular(head: Sequence[str], body: Sequence[str], columns: int, caption: str) -> str:
    end = r" \\"
    lines = [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{_tex(caption)}}}",
        f"\\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
    ]
    lines += [r"\toprule", *(line + end for line in head), r"\midrule", *(line + end for line in body), r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", r"\end{table}"])
