"""The numbers of a score: every measure of :mod:`fastdc.scoring.measures` on labelled images, also by groups.

Shares of images, such as accuracy, recall, precision and specificity, have Wilson's 95 % confidence interval: where the
number on more images like these would lie. F1, AUROC, AUPRC and means over classes have that of a bootstrap. A measure
that is not defined is None, and ``undefined`` says why.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Any, Self

import numpy as np

from fastdc.certification import Estimate, share
from fastdc.scoring.agreement import Agreement
from fastdc.scoring.intervals import CLASSES, TOTALS, Intervals
from fastdc.scoring.measures import ClassMeasures, Reliability
from fastdc.scoring.positive import NOT_KNOWN, PositiveMeasures
from fastdc.scoring.refusal import Refusal
from fastdc.support import Int64, plain

_MEASURES = ("balanced_accuracy", "macro_f1", "auroc", "auprc", "ece", "brier", "log_loss")
_OF_CLASS = ("precision", "specificity", "f1", "auroc", "auprc")


@dataclass(frozen=True, eq=False, repr=False)
class ScoreNumbers:
    """How good n answers are, in numbers.

    Attributes:
        class_names: K names, each with its index if several classes share it.
        images: n.
        accuracy: Share of right answers.
        balanced_accuracy: Mean recall of the classes that have images.
        macro_f1: Mean F1 of the classes that have images.
        auroc: Mean AUROC, one class against the rest, of the classes that have images; None if there is one only.
        auprc: Mean average precision of the same classes; None if there is one only.
        ece: Expected calibration error in 15 bins, in [0, 1].
        brier: Brier score over all classes, in [0, 2].
        log_loss: Log loss in nats; None if an image's own class has the probability 0.
        classes: Measures of each class.
        confusion: int64 (K, K), images of each class (rows) with each answer (columns).
        reliability: The bins of `ece`.
        refusal: Accuracy of the rest when the least certain answers are refused.
        intervals: Bootstrap intervals.
        positive: Measures of the class that counts as positive; None if none does.
        evaluations: Network evaluations per image; None if they are not known.
        groups: By column and by its value, the score of the images that have it.
        undefined: Why a measure is None, or is not of all classes, by its name.
        agreement: Agreement of the race with the full run; None if it was not checked.
        rivals: Other classifiers on the same images.
        seconds: Wall time of the run; None if it is not known.
        full: Evaluations of a full run, per image; None if they are not known.
        given: Number of images of the data set, with those that were left out or not finished.
        left_out: Path of each image that could not be read, and why.
        provenance: Everything that reproduces the answers; empty if it is not known.
        notes: What a reader of the probabilities should know.
    """

    class_names: tuple[str, ...]
    images: int
    accuracy: Estimate
    balanced_accuracy: float
    macro_f1: float
    auroc: float | None
    auprc: float | None
    ece: float
    brier: float
    log_loss: float | None
    classes: ClassMeasures
    confusion: Int64
    reliability: Reliability
    refusal: Refusal
    intervals: Intervals
    evaluations: float | None
    groups: Mapping[str, Mapping[str, Self]]
    undefined: Mapping[str, str]
    positive: PositiveMeasures | None = None
    agreement: Agreement | None = None
    rivals: tuple["Rival", ...] = ()
    seconds: float | None = None
    full: int | None = None
    given: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """The share of the data set that the numbers are about, in [0, 1]."""
        return self.images / self.given

    @property
    def confusions(self) -> list[tuple[int, int, int]]:
        """(class, wrong answer, images) of each confusion that occurred, the most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        true, answer = np.nonzero(wrong)
        counts = wrong[true, answer]
        order = np.argsort(-counts, kind="stable")
        return [(int(true[i]), int(answer[i]), int(counts[i])) for i in order]

    @property
    def below_chance(self) -> list[int]:
        """The classes whose images have smaller probabilities of the class than the others, by more than chance.

        By Mann and Whitney's one-sided test at 0.01, shared by the classes (Bonferroni), with the normal deviation of
        an AUROC without ties, with which it is smaller.
        """
        own = self.classes.support.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt((self.images + 1) / (12 * own * (self.images - own)))
            found = self.classes.auroc < 0.5 - _normal_quantile(0.01 / len(own)) * spread
        return [int(k) for k in np.flatnonzero(found)]

    @property
    def worst_groups(self) -> dict[str, str]:
        """By column, the group with the smallest accuracy; of equals, the largest."""
        return {
            by: min(groups, key=lambda name: (groups[name].accuracy.value, -groups[name].images))
            for by, groups in self.groups.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; what is not defined is None.

        Example:
            >>> from fastdc.scoring import score_of
            >>> score_of(clf.classify(images), labels).to_dict()["accuracy"]["value"]
            1.0
        """
        cover = {"given": self.given, "share": self.coverage, "left_out": [list(pair) for pair in self.left_out]}
        per_image = None if self.seconds is None else self.seconds / self.images
        found: dict[str, Any] = plain(
            {
                **self._totals(),
                "undefined": dict(self.undefined),
                "evaluations_per_image": self.evaluations,
                "evaluations_of_a_full_run": self.full,
                "seconds": self.seconds,
                "seconds_per_image": per_image,
                "baselines": [one.to_dict() for one in self.rivals],
                "agreement": None if self.agreement is None else self.agreement.to_dict(),
                "coverage": cover,
                "classes": self.to_classes(),
                "confusion_matrix": self.confusion,
                "reliability": vars(self.reliability),
                "refusal": self.refusal.to_dict(),
                "groups": {by: {name: one._group() for name, one in of.items()} for by, of in self.groups.items()},
                "worst_groups": self.worst_groups,
                "notes": self.notes,
                "provenance": self.provenance,
            }
        )
        return found

    def _totals(self) -> dict[str, Any]:
        measures = {name: getattr(self, name) for name in _MEASURES}
        found = {"images": self.images, "accuracy": self.accuracy.to_dict(), **measures}
        found["intervals"] = {name: self.intervals.total(name) for name in TOTALS}
        found["bootstrap_resamples"] = self.intervals.resamples
        found["positive"] = None if self.positive is None else self.positive.to_dict()
        return found

    def _group(self) -> dict[str, Any]:
        rest = {"undefined": dict(self.undefined), "evaluations_per_image": self.evaluations}
        return {**self._totals(), **rest, "classes": self.to_classes(), "confusion_matrix": self.confusion}

    def to_classes(self) -> list[dict[str, Any]]:
        """The measures of each class as JSON values; intervals of what is no share are under "intervals"."""
        of = self.classes
        counts = zip(of.right.tolist(), of.support.tolist(), of.predicted.tolist(), strict=True)
        return [
            {
                "class": self.class_names[k],
                "images": images,
                "predicted": answers,
                "precision": share(right, answers).to_dict() if answers else None,
                "recall": share(right, images).to_dict() if images else None,
                "specificity": self.specificity(k).to_dict() if images < self.images else None,
                "f1": plain(of.f1[k]),
                "auroc": plain(of.auroc[k]),
                "auprc": plain(of.auprc[k]),
                "intervals": {name: self.intervals.of_class(name, k) for name in CLASSES},
            }
            for k, (right, images, answers) in enumerate(counts)
        ]

    def specificity(self, k: int) -> Estimate:
        """The share of the other classes' images that are not taken for class k."""
        others = self.images - int(self.classes.support[k])
        return share(others - int(self.classes.predicted[k] - self.classes.right[k]), others)

    @cached_property
    def table(self) -> dict[str, list[Any]]:
        """A row for the whole set and for each of its groups, each followed by a row for each class."""
        rows = self._rows("", "")
        for by, of in self.groups.items():
            for name, one in of.items():
                rows += one._rows(by, name)
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _rows(self, by: str, group: str) -> list[dict[str, Any]]:
        of, none, known = self.classes, math.nan, self.intervals
        right = int(of.right.sum())
        measures = {name: none if (value := getattr(self, name)) is None else value for name in _MEASURES}
        measures["f1"] = measures.pop("macro_f1")
        whole = {"class": "", "images": self.images, "right": right, **_ends("accuracy", self.accuracy)}
        cost = none if self.evaluations is None else self.evaluations
        whole |= {"precision": none, "specificity": none, **measures, "evaluations": cost}
        totals = {"f1": "macro_f1", "auroc": "auroc", "auprc": "auprc"}
        rows = [whole | _named_ends({name: known.totals[total] for name, total in totals.items()})]
        for k, name in enumerate(self.class_names):
            counts = {"images": int(of.support[k]), "right": int(of.right[k])}
            recall = share(counts["right"], counts["images"]) if counts["images"] else NOT_KNOWN
            own = {**_ends("accuracy", recall), **{one: getattr(of, one)[k] for one in _OF_CLASS}}
            rest = {**dict.fromkeys(("evaluations", *measures), none), **own}
            rows.append(
                {"class": name, **counts, **rest} | _named_ends({one: known.classes[one][:, k] for one in CLASSES})
            )
        if self.positive is not None:
            _add_positive(rows, self.positive)
        return [{"by": by, "group": group, **row} for row in rows]


@dataclass(frozen=True, eq=False)
class Rival:
    """A classifier beside the one that is scored.

    Attributes:
        name: Its name.
        score: Its score on the same images.
        only_scored: Number of images on which only the scored classifier is right.
        only_rival: Number of images on which only this one is right.
        difference: Accuracy of the scored classifier minus that of this one.
        p_value: McNemar's exact two-sided test of equal accuracies.
        auroc_difference: Mean AUROC of the scored classifier minus that of this one; NaN if it is not defined.
        facts: What was trained and chosen, plain values.
    """

    name: str
    score: ScoreNumbers
    only_scored: int
    only_rival: int
    difference: Estimate
    p_value: float
    auroc_difference: Estimate
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        numbers = self.score.to_dict()
        names = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc", "ece", "brier", "log_loss", "intervals")
        found: dict[str, Any] = plain(
            {
                "name": self.name,
                **{name: numbers[name] for name in (*names, "positive", "refusal")},
                "only_scored_right": self.only_scored,
                "only_this_right": self.only_rival,
                "accuracy_difference": self.difference.to_dict(),
                "mcnemar_p_value": self.p_value,
                "auroc_difference": self.auroc_difference.to_dict(),
                "facts": self.facts,
            }
        )
        return found


def _add_positive(rows: list[dict[str, Any]], of: PositiveMeasures) -> None:
    """Adds the operating point of the class that counts as positive to its row, and empty cells to the others."""
    threshold = math.nan if of.threshold is None else of.threshold
    at = {"threshold": threshold, "sensitivity_at": of.sensitivity_at.value, "specificity_at": of.specificity_at.value}
    at |= _named_ends({name: getattr(of, name)[1:] for name in ("sensitivity_at", "specificity_at")})
    for row in rows:
        row.update(at if row["class"] == of.name else dict.fromkeys(at, math.nan))


def _normal_quantile(p: float) -> float:
    """The number of deviations from the mean above which a normal variable lies with probability p."""
    return NormalDist().inv_cdf(1 - p)


def _ends(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, "ci95_low": estimate.low, "ci95_high": estimate.high}


def _named_ends(ends: Mapping[str, Any]) -> dict[str, float]:
    """Columns of the ends of several measures."""
    found = {name: [float(end) for end in of] for name, of in ends.items()}
    return {f"{name}_{side}": of[i] for name, of in found.items() for i, side in enumerate(("ci95_low", "ci95_high"))}
