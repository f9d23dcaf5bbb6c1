"""A score as a page of text: the summary, the groups, the classes and what was taken for what."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fastdc.certification import Estimate
from fastdc.scoring.intervals import TOTALS
from fastdc.scoring.numbers import ScoreNumbers
from fastdc.support import Float64, aligned, printable, shorten

MOST_ROWS = 20
"""Most classes or groups that are listed without leaving any out."""

WORST = 15
"""Rows of a list that leaves some out."""

_LINE = 100  # characters
_MATRIX = 12  # most classes whose confusion matrix is printed
_CONFUSIONS = 5  # the most frequent ones
_NAME = 40  # characters of the name of a class or group
_WIDTH = 13  # of the names of the summary's lines
_SAID = 27  # of a measure with its interval
_REFUSED = (0.05, 0.1, 0.2)  # shares of images

NAMES = {
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "brier": "Brier",
    "log_loss": "log loss",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "specificity": "specificity",
}
"""Measures as people read them."""

EXPLAINED = {
    "balanced_accuracy": "mean recall of the classes, in percent",
    "macro_f1": "mean F1 of the classes",
    "auroc": "one class against the rest, mean of the classes; 1 is best, 0.5 chance",
    "auprc": "average precision of the same; by chance, the share of the class",
    "ece": "calibration error of the answer's probability, in 15 bins; 0 is best",
    "brier": "squared error of all probabilities; 0 is best, 2 worst",
    "log_loss": "of the true class's probability, in nats; 0 is best",
}
"""What the measures of the summary are."""


def number(value: float | None, digits: int = 4) -> str:
    """A measure, or "-" if it is not defined."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def percentage(value: float) -> str:
    """A share in percent, or "-" if it is not defined."""
    return f"{100 * value:.2f}" if np.isfinite(value) else "-"


def short(name: str) -> str:
    """The name of a class or group, cut if it is long."""
    return shorten(printable(name), _NAME) or "(empty)"


def interval(ends: Sequence[float] | Float64, *, percent: bool = False) -> str:
    """The ends of an interval in brackets, after a space; nothing if they are not known."""
    low, high = (float(end) for end in ends)
    if not np.isfinite(low) or not np.isfinite(high):
        return ""
    return f" ({100 * low:.2f} to {100 * high:.2f})" if percent else f" ({low:.4f} to {high:.4f})"


def refusal_line(score: ScoreNumbers) -> str:
    """How often answers are right when the least certain ones are refused."""
    found = score.refusal
    steps = ", ".join(f"{percentage(found.at(part))} % without the {100 * part:g} %" for part in _REFUSED)
    return f"{steps} least certain; area {number(found.area)}"


def counted(images: int, others: int) -> str:
    """The numbers of images of the class that counts as positive, and of others."""
    return f"{images} image{'s'[: images != 1]} and {others} other{'s'[: others != 1]}"


def positive_lines(score: ScoreNumbers) -> list[tuple[str, str]]:
    """The measures of the class that counts as positive, each with what it is; empty if none does."""
    of = score.positive
    if of is None:
        return []
    shares = ("sensitivity", "specificity", "precision")
    lines = [(name, _estimate(getattr(of, name), share=True)) for name in shares]
    lines += [(NAMES[name], _estimate(getattr(of, name), share=False)) for name in ("f1", "auroc", "auprc")]
    if of.threshold is None:
        return lines
    if of.fixed:
        at = f"at {of.threshold!r} "  # in full: of a sure model it is 0.9999..., which must not become 1
        lines.append((at, f"sensitivity {_estimate(of.sensitivity_at, share=True)}"))
        return [*lines, ("", f"specificity {_estimate(of.specificity_at, share=True)}")]
    found = f"threshold {of.threshold!r}, found on these images: optimistic for others"
    said = f"specificity {_estimate(of.specificity_at, share=True)}; {found}"
    return [*lines, (f"at {100 * of.wanted:.4g} %", f"sensitivity: {said}")]


def _estimate(of: Estimate, *, share: bool) -> str:
    if not np.isfinite(of.value):
        return "-"
    return f"{percentage(of.value)} %{interval(of[1:], percent=True)}" if share else number(of.value) + interval(of[1:])


def summary_of(score: ScoreNumbers) -> list[tuple[str, str]]:
    """The lines of the summary: a name and what is said of it."""
    right = int(score.classes.right.sum())
    lines = [("images", _images(score)), ("accuracy", f"{score.accuracy.percent()}, {right} of {score.images}")]
    for name, what in EXPLAINED.items():
        value = getattr(score, name)
        said = f"{percentage(value)} %" if name == "balanced_accuracy" else number(value)
        if name in TOTALS:
            said += interval(score.intervals.totals[name], percent=name == "balanced_accuracy")
        fitted = score.provenance.get("temperature") if score.provenance.get("decision") == "mean" else None
        text = f"{what}; temperature {fitted:.4g}" if name == "ece" and isinstance(fitted, float) else what
        lines.append((NAMES[name], f"{said:{_SAID}} {text}"))
    lines.append(("refusal", refusal_line(score)))
    if score.evaluations is not None:
        full = "" if score.full is None else f"; a full run takes {score.full:,}"
        lines.append(("evaluations", f"{score.evaluations:.1f} per image{full}"))
    if score.seconds is not None:
        per_image = score.seconds / score.images
        each = f"{1e3 * per_image:.3g} ms" if per_image < 1 else f"{per_image:.3g} s"
        lines.append(("time", f"{each} per image, {score.seconds:.2f} s in all; without reading images and model"))
    if score.agreement is not None:
        cost = f"{score.agreement.evaluations:,} evaluations, {score.agreement.seconds:.2f} s"
        lines.append(("full run", f"same answer for {score.agreement}"))
        lines.append(("", f"this check took {cost}, not counted above"))
    return lines


def _images(score: ScoreNumbers) -> str:
    text = f"{score.images} of {len(score.class_names)} classes"
    if score.given == score.images:
        return text
    bad = len(score.left_out)
    left = [f"{bad} could not be read"] if bad else []
    unfinished = score.given - score.images - bad
    left += [f"{unfinished} not finished"] if unfinished else []
    return f"{text}, {100 * score.coverage:.4g} % of {score.given}: {' and '.join(left)}"


def remarks_of(score: ScoreNumbers) -> list[str]:
    """Why measures are "-" or are means over some of the classes, and what to know about the probabilities."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in score.undefined.items():
        by_reason.setdefault(reason, []).append(NAMES[name])
    remarks = [*(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()), *score.notes]
    if below := score.below_chance:
        names = ", ".join(short(score.class_names[k]) for k in below[:3]) + ", ..." * (len(below) > 3)
        remarks.append(f"AUROC of {names}: below 0.5 by more than chance: are the labels of classes exchanged?")
    found = score.agreement
    if found is not None and found.promised is not None and found.share.high < found.promised:
        other = "these images are probably of another kind than the validation images"
        remarks.append(f"fewer answers than promised are those of the full run: {other}")
    return remarks


def shown_classes(score: ScoreNumbers, most: int = MOST_ROWS) -> tuple[list[int], str]:
    """The classes to list, all or the worst by F1, and a remark if some are left out."""
    of, k = score.classes, len(score.class_names)
    if k <= most:
        return list(range(k)), ""
    few = WORST if most == MOST_ROWS else most
    order = np.lexsort((-of.support, of.f1))  # without images, and so without F1: last
    return order[:few].tolist(), f"the {few} of {k} classes with the smallest F1; a .csv or .json file has all"


def shown_groups(groups: Mapping[str, ScoreNumbers], most: int = MOST_ROWS) -> tuple[list[str], str]:
    """The groups to list, all or the worst by accuracy, and a remark if some are left out."""
    if len(groups) <= most:
        return list(groups), ""
    few = WORST if most == MOST_ROWS else most
    order = sorted(groups, key=lambda name: groups[name].accuracy.value)
    return order[:few], f"the {few} of {len(groups)} groups with the smallest accuracy; a .csv or .json file has all"


def worst_of(by: str, score: ScoreNumbers) -> str:
    """The group with the smallest accuracy, beside all other images."""
    groups = score.groups[by]
    name = score.worst_groups[by]
    worst = groups[name]
    others = score.images - worst.images
    if not others:
        return ""
    if all(one.accuracy.value == worst.accuracy.value for one in groups.values()):
        return "all groups have the same accuracy"
    right = int(score.classes.right.sum()) - int(worst.classes.right.sum())
    return (
        f"worst: {printable(by)} {short(name)}, accuracy {worst.accuracy.percent()} on {worst.images} "
        f"image{'s'[: worst.images != 1]}; the others {100 * right / others:.2f} %"
    )


def class_rows(score: ScoreNumbers, chosen: Iterable[int]) -> list[list[str]]:
    """The table of classes, with its head."""
    of = score.classes
    names = ["class", "images", "precision, %", "recall, %", "95 % interval", "specificity, %", "F1", "AUROC"]
    rows = [[*names, "95 % interval", "AUPRC"]]
    listed = score.to_classes()
    for k in chosen:
        recall = listed[k]["recall"]
        ends = "-" if recall is None else f"{100 * recall['ci95_low']:.1f}-{100 * recall['ci95_high']:.1f}"
        low, high = score.intervals.classes["auroc"][:, k]
        cells = [str(of.support[k]), percentage(of.precision[k]), percentage(of.recall[k]), ends]
        cells += [percentage(of.specificity[k]), number(of.f1[k]), number(of.auroc[k])]
        area = f"{low:.4f}-{high:.4f}" if np.isfinite(low) else "-"
        rows.append([short(score.class_names[k]), *cells, area, number(of.auprc[k])])
    return rows


def group_rows(by: str, groups: Mapping[str, ScoreNumbers], chosen: Sequence[str]) -> list[list[str]]:
    """The table of groups, with its head."""
    rows = [[by, "images", "accuracy, %", "95 % interval", "balanced, %", "AUROC", "ECE", "Brier", "log loss", "NFE"]]
    for name in chosen:
        one = groups[name]
        rows.append(
            [
                short(name),
                str(one.images),
                percentage(one.accuracy.value),
                f"{100 * one.accuracy.low:.1f}-{100 * one.accuracy.high:.1f}",
                percentage(one.balanced_accuracy),
                number(one.auroc),
                number(one.ece),
                number(one.brier),
                number(one.log_loss),
                number(one.evaluations, 1),
            ]
        )
    return rows


def positive_rows(by: str, groups: Mapping[str, ScoreNumbers], chosen: Sequence[str]) -> list[list[str]]:
    """The table of groups with the measures of the class that counts as positive, with its head; empty if none does."""
    shown = [(name, groups[name].positive) for name in chosen]
    if not shown or shown[0][1] is None:
        return []
    first = shown[0][1]
    at = f"at {first.threshold!r}" if first.fixed else f"at {100 * first.wanted:g} % sens."
    rows = [[by, "positive", "sensitivity, %", "specificity, %", "F1", "AUROC", "AUPRC", f"specificity {at}, %"]]
    for name, of in shown:
        assert of is not None
        three = (of.sensitivity, of.specificity, of.specificity_at)
        *shares, last = (f"{percentage(one.value)}{interval(one[1:], percent=True)}" for one in three)
        areas = [number(of.f1.value), _estimate(of.auroc, share=False), number(of.auprc.value)]
        rows.append([short(name), str(of.images), *shares, *areas, last])
    return rows


def rival_rows(score: ScoreNumbers) -> list[list[str]]:
    """The table of the scored classifier and of others on the same images, with its head; empty without others."""
    if not score.rivals:
        return []
    names = ["classifier", "accuracy, %", "95 % interval", "difference", "95 % interval", "p", "AUROC", "difference"]
    rows = [[*names, "95 % interval", "ECE", "Brier"]]
    for name, of, rival in [("this model", score, None), *((one.name, one.score, one) for one in score.rivals)]:
        ends = f"{100 * of.accuracy.low:.2f}-{100 * of.accuracy.high:.2f}"
        cells = [short(name), percentage(of.accuracy.value), ends]
        paired, areas = ["", "", ""], ["", ""]
        if rival is not None:
            more, area = rival.difference, rival.auroc_difference
            paired = [f"{100 * more.value:+.2f}", f"{100 * more.low:+.2f} to {100 * more.high:+.2f}"]
            paired.append(f"{rival.p_value:.2g}")
            areas = ["-", "-"]
            if np.isfinite(area.value):
                known = np.isfinite(area.low)
                areas = [f"{area.value:+.4f}", f"{area.low:+.4f} to {area.high:+.4f}" if known else "-"]
        rows.append([*cells, *paired, number(of.auroc), *areas, number(of.ece), number(of.brier)])
    return rows


RIVALS_EXPLAINED = (
    "differences are this model minus the other, on the same images; p is McNemar's exact test of equal accuracies"
)
"""What stands below the table of other classifiers."""


def confusion_lines(score: ScoreNumbers) -> list[str]:
    """What was taken for what most often."""
    found = score.confusions
    lines = [
        f"{short(score.class_names[true])} as {short(score.class_names[answer])}: {count}"
        for true, answer, count in found[:_CONFUSIONS]
    ]
    more = len(found) - len(lines)
    return [*lines, f"and {more} others, less often"] if more > 0 else lines


def text_page(score: ScoreNumbers) -> str:
    """The whole page; its lines do not end in a line break.

    Args:
        score: The score.
    """
    lines = [f"{name:{_WIDTH}}{text}" for name, text in summary_of(score)]
    remarks = [textwrap.fill(text, _LINE, initial_indent="* ", subsequent_indent="  ") for text in remarks_of(score)]
    blocks = ["\n".join(lines), *(["\n".join(remarks)] if remarks else [])]
    if score.positive is not None:
        of = score.positive
        head = f"{short(of.name)} against the rest: {counted(of.images, of.others)}"
        blocks.append("\n".join([head, *(f"{name:{_WIDTH}}{said}".rstrip() for name, said in positive_lines(score))]))
    if score.rivals:
        blocks.append(f"{aligned(rival_rows(score))}\n{RIVALS_EXPLAINED}")
    for by, groups in score.groups.items():
        chosen, remark = shown_groups(groups)
        told = [aligned(group_rows(by, groups, chosen)), remark, worst_of(by, score)]
        blocks.append("\n".join(filter(None, told)))
        if rows := positive_rows(by, groups, chosen):
            blocks.append(aligned(rows))
    which, remark = shown_classes(score)
    blocks.append("\n".join(filter(None, [aligned(class_rows(score, which)), remark])))
    if len(score.class_names) <= _MATRIX:
        room = max(12, _LINE // (len(score.class_names) + 1) - 2)
        names = [shorten(short(name), room) for name in score.class_names]
        rows = [[str(count or ".") for count in row] for row in score.confusion.tolist()]
        table = [["true \\ answer", *names], *([name, *row] for name, row in zip(names, rows, strict=True))]
        blocks.append(aligned(table))
    if score.confusions:
        blocks.append("taken for another class most often\n" + "\n".join(f"  {one}" for one in confusion_lines(score)))
    return "\n\n".join(blocks)
