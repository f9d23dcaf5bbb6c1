"""Statistics of certification files: certified accuracy, average radius and cost, from the records alone.

Over n images, let c_i = 1 if the smoothed classifier names the true class of image i (an abstention is never correct),
and let r_i be the certified radius:

    certified accuracy at R    A(R) = mean of c_i [r_i >= R]       >=, as in Cohen et al. (arXiv 1902.02918)
    clean accuracy             A(0), of the smoothed classifier
    average certified radius   mean of c_i r_i                     ACR, Zhai et al. (arXiv 2001.02378)

Each has a 95 % confidence interval (:mod:`fastdc.certification.intervals`), for n images drawn from a larger set.

Two files on the same images are compared in pairs. With b images certified at R by the first file only and c by the
second only, A1 - A2 = (b - c) / n, and McNemar's exact test asks how likely so uneven a split of b + c is if both sides
are equally probable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.certification.certificate import ABSTAIN
from fastdc.certification.intervals import Estimate, mean, paired_difference, share
from fastdc.certification.records import Records
from fastdc.support import Float64, InputError, Mask, aligned, printable

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # steps between the default radii of a table
_MOST = 9  # largest number of default radii
_INTERVAL = "  95 % interval"  # the name of a row of intervals


@dataclass(frozen=True)
class Summary:
    """Statistics of one file.

    Attributes:
        name: Short name of the file.
        images: Number of records.
        expected: Number of records of the finished certification, or None if that is unknown.
        radii: Radii of `certified`, L2 distances of pixels in [0, 1].
        certified: Certified accuracy at each radius, in [0, 1]; None if true classes are unknown.
        accuracy: Clean accuracy, in [0, 1]; None if true classes are unknown.
        average_radius: Average certified radius; None if true classes are unknown.
        mean_radius: Mean radius whatever the true classes are; 0 for an abstention.
        abstained: Share of abstentions, in [0, 1].
        evaluations: Network evaluations per image (NFE); None for a file of another program.
        copies: Noisy copies per image, selection included; None for a file of another program.
        seconds: Wall time per image.
    """

    name: str
    images: int
    expected: int | None
    radii: tuple[float, ...]
    certified: tuple[Estimate, ...] | None
    accuracy: Estimate | None
    average_radius: Estimate | None
    mean_radius: Estimate
    abstained: Estimate
    evaluations: float | None
    copies: float | None
    seconds: float

    def __str__(self) -> str:
        return summary_table([self])

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values: estimates as their ``to_dict`` says."""
        return {field: _plain(value) for field, value in vars(self).items()}


@dataclass(frozen=True)
class Comparison:
    """Comparison of two files on the images that both hold.

    Attributes:
        names: Names of the files.
        images: Number of images that both files hold.
        radii: Radii of the comparison, L2 distances of pixels in [0, 1].
        difference: Certified accuracy of the first file minus that of the second, at each radius.
        only: Number of images that only the first file certifies at each radius, and that only the second does.
        p_value: P-value of McNemar's exact two-sided test, at each radius.
        average_radius: ACR of the first file minus that of the second.
    """

    names: tuple[str, str]
    images: int
    radii: tuple[float, ...]
    difference: tuple[Estimate, ...]
    only: tuple[tuple[int, int], ...]
    p_value: tuple[float, ...]
    average_radius: Estimate

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values: estimates as their ``to_dict`` says."""
        return {field: _plain(value) for field, value in vars(self).items()}


def summarize(records: Records, radii: Sequence[float], *, name: str | None = None) -> Summary:
    """Summarizes one file.

    Args:
        records: Records of the file.
        radii: Radii at which to state certified accuracy, L2 distances of pixels in [0, 1]; not negative.
        name: Name of the file in tables; default: its file name.

    Raises:
        InputError: There is no radius, or a radius is negative or not finite.

    Example:
        >>> from fastdc.certification import Fixed, records_of, summarize
        >>> made = clf.certify(images[:2], Fixed(sigma=0.25, n=32, alpha=0.05), n0=8)
        >>> summarize(records_of(made, labels[:2]), radii=[0, 0.1]).images
        2
    """
    asked = _check_radii(radii)
    n, own = len(records), records.own
    known = records.labelled
    counts = _certified(records, (0.0, *asked)).sum(axis=1).tolist() if known else []
    certified = [share(count, n) for count in counts]
    return Summary(
        name=records.path.name if name is None else name,
        images=n,
        expected=records.expected,
        radii=asked,
        certified=tuple(certified[1:]) if known else None,
        accuracy=certified[0] if known else None,
        average_radius=mean(records.radius * records.correct, lowest=0.0) if known else None,
        mean_radius=mean(records.radius, lowest=0.0),
        abstained=share(int((records.predict == ABSTAIN).sum()), n),
        evaluations=float(own["evaluations"].mean()) if own else None,
        copies=float((own["copies"] + own["selection_copies"]).mean()) if own else None,
        seconds=float(records.seconds.mean()),
    )


def compare(
    first: Records, second: Records, radii: Sequence[float], *, names: tuple[str, str] | None = None
) -> Comparison:
    """Compares two files on the images that both hold.

    Args:
        first: Records of one file.
        second: Records of the other file.
        radii: Radii of the comparison, L2 distances of pixels in [0, 1]; not negative.
        names: Names of the files in tables; default: their file names.

    Raises:
        InputError: The files share no image or are of different data, a true class is unknown, there is no radius, or a
            radius is negative or not finite.

    Example:
        >>> from fastdc.certification import Certificate, compare, records_of
        >>> first, second = (records_of([Certificate(3, r, 0.9, 95, 100, 10, 1000, 2.0)], [3]) for r in (0.3, 0.2))
        >>> compare(first, second, radii=[0.25]).only
        ((1, 0),)
    """
    asked = _check_radii(radii)
    pair = f"{first.path} and {second.path}"
    shared, left, right = np.intersect1d(first.idx, second.idx, assume_unique=True, return_indices=True)
    if not len(shared):
        raise InputError(f"{pair} have no image in common")
    digests = {_digest(records) for records in (first, second)} - {None}
    if len(digests) > 1 or (first.label[left] != second.label[right]).any():
        raise InputError(f"{pair} are of different data: expected files on the same images")
    a, b = _certified(first, asked)[:, left], _certified(second, asked)[:, right]
    n = len(shared)
    only = [(int(here), int(there)) for here, there in zip((a & ~b).sum(axis=1), (b & ~a).sum(axis=1), strict=True)]
    acr = (first.radius * first.correct)[left] - (second.radius * second.correct)[right]
    return Comparison(
        names=names or (first.path.name, second.path.name),
        images=n,
        radii=asked,
        difference=tuple(paired_difference(*split, n) for split in only),
        only=tuple(only),
        p_value=tuple(mcnemar(*split) for split in only),
        average_radius=mean(acr),
    )


def mcnemar(b: int, c: int) -> float:
    """P-value of McNemar's exact two-sided test: how uneven b against c is, if both sides are equally probable.

    Args:
        b: Number of pairs in which only the first succeeded.
        c: Number of pairs in which only the second succeeded.

    Example:
        >>> from fastdc.certification import mcnemar
        >>> mcnemar(8, 1)
        0.0390625
    """
    from scipy import stats

    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def certified_curve(records: Records) -> tuple[Float64, Float64]:
    """Certified accuracy as a function of the radius, which is a staircase.

    Args:
        records: Records with known true classes.

    Returns:
        Radii (m,), 0 and then every radius of a correct image, ascending; and the accuracy (m,) at each radius, which
        also holds down to the radius before. Beyond the last radius the accuracy is 0.

    Raises:
        InputError: A true class is unknown.

    Example:
        >>> from fastdc.certification import Certificate, certified_curve, records_of
        >>> made = [Certificate(label, 0.3, 0.9, 95, 100, 10, 1000, 2.0) for label in (3, 8)]
        >>> certified_curve(records_of(made, labels=[3, 9]))
        (array([0. , 0.3]), array([0.5, 0.5]))
    """
    _check_labelled(records)
    certified = np.sort(records.radius[records.correct])
    radii = np.unique(np.concatenate([[0.0], certified]))
    beyond = len(certified) - np.searchsorted(certified, radii, side="left")
    return radii, beyond / len(records)


def default_radii(several: Sequence[Records]) -> tuple[float, ...]:
    """Radii for a table of several files: 0 and round steps up to the largest certified radius, nine at most.

    Args:
        several: Records of each file.

    Example:
        >>> from fastdc.certification import Certificate, default_radii, records_of
        >>> default_radii([records_of([Certificate(3, 0.43, 0.9, 95, 100, 10, 1000, 2.0)])])
        (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    """
    largest = max((float(records.radius.max()) for records in several), default=0.0)
    step = next((step for step in _STEPS if largest < step * _MOST), largest / (_MOST - 1))
    return tuple(round(step * i, 10) for i in range(math.floor(largest / step + 1e-9) + 1))


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell files apart, without .tsv or .txt: "b", or "one/b" if several are named b.

    Args:
        paths: Paths of the files.

    Example:
        >>> from pathlib import Path
        >>> from fastdc.certification import names_of
        >>> names_of([Path("one/b.tsv"), Path("two/b.tsv")])
        ['one/b', 'two/b']
    """
    bare = [path.with_suffix("") if path.suffix in (".tsv", ".txt") else path for path in paths]
    for parts in range(1, max((len(path.parts) for path in bare), default=0) + 1):
        names = [str(Path(*path.parts[-parts:])) for path in bare]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def summary_table(summaries: Sequence[Summary]) -> str:
    """Formats files in two blocks: certified accuracy at the radii, then the other statistics, with their intervals.

    If no file has true classes, the first block is left out and the radius is the mean over all images.

    Args:
        summaries: Summary of each file, all with the same radii.

    Example:
        >>> from fastdc.certification import Certificate, records_of, summarize, summary_table
        >>> records = records_of([Certificate(3, 0.3, 0.9, 95, 100, 10, 1000, 2.0)], labels=[3])
        >>> print(summary_table([summarize(records, radii=[0, 0.5], name="one")]).splitlines()[0])
        certified accuracy, %            0        0.5
    """
    radii = summaries[0].radii if summaries else ()
    accuracy = [["certified accuracy, %", *(f"{radius:g}" for radius in radii)]]
    known = any(summary.certified is not None for summary in summaries)
    name = "average radius" if known else "mean radius"
    others = [["", "images", "abstained, %", name, "NFE", "copies", "seconds"]]
    for summary in summaries:
        radius = summary.average_radius if known else summary.mean_radius
        certified = summary.certified or (None,) * len(radii)
        accuracy.append([summary.name, *(_text(estimate, 100, 1) for estimate in certified)])
        missing = summary.expected is not None and summary.expected > summary.images
        others.append(
            [
                summary.name,
                f"{summary.images} of {summary.expected}" if missing else str(summary.images),
                _text(summary.abstained, 100, 1),
                _text(radius, 1, 3),
                "-" if summary.evaluations is None else f"{summary.evaluations:,.0f}",
                "-" if summary.copies is None else f"{summary.copies:,.0f}",
                f"{summary.seconds:.3g}" if summary.seconds < 1000 else f"{summary.seconds:,.0f}",
            ]
        )
        if summary.certified is not None:
            accuracy.append([_INTERVAL, *(_interval(estimate, 100, 1) for estimate in certified)])
        ends = (_interval(summary.abstained, 100, 1), _interval(radius, 1, 3))
        others.append([_INTERVAL, "", *ends, "", "", ""])
    return f"{aligned(accuracy)}\n\n{aligned(others)}" if known else aligned(others)


def comparison_table(comparison: Comparison) -> str:
    """Formats a comparison, one row per radius: the difference, the images that only one file certifies, McNemar's p.

    Args:
        comparison: Comparison of two files.

    Example:
        >>> from fastdc.certification import Certificate, compare, comparison_table, records_of
        >>> records = records_of([Certificate(3, 0.3, 0.9, 95, 100, 10, 1000, 2.0)], labels=[3])
        >>> comparison_table(compare(records, records, radii=[0], names=("a", "b"))).splitlines()[0]
        'a minus b, 1 images'
    """
    first, second = map(printable, comparison.names)
    rows = [["radius", "difference, points", "95 % interval", "only the first", "only the second", "p"]]
    for i, radius in enumerate(comparison.radii):
        here, there = comparison.only[i]
        found = comparison.difference[i]
        cells = [f"{100 * found.value:+.1f}", _interval(found, 100, 1, sign="+"), str(here), str(there)]
        rows.append([f"{radius:g}", *cells, f"{comparison.p_value[i]:.2g}"])
    acr, ends = comparison.average_radius, _interval(comparison.average_radius, 1, 4, sign="+")
    radius_line = f"average radius  {acr.value:+.4f}" + (ends and f", 95 % interval {ends}")
    return f"{first} minus {second}, {comparison.images} images\n{aligned(rows)}\n{radius_line}"


def _check_radii(radii: Sequence[float]) -> tuple[float, ...]:
    """Returns radii as a tuple.

    Raises:
        InputError: There is no radius, or a radius is negative or not finite.
    """
    checked = tuple(float(radius) for radius in radii)
    if not checked or not all(0 <= radius < math.inf for radius in checked):
        raise InputError(f"radii must be numbers of at least 0, got {', '.join(f'{r:g}' for r in checked) or 'none'}")
    return checked


def _certified(records: Records, radii: tuple[float, ...]) -> Mask:
    """Whether each image (columns) is certified at each radius (rows)."""
    _check_labelled(records)
    return records.correct & (records.radius >= np.array(radii)[:, None])


def _check_labelled(records: Records) -> None:
    if not records.labelled:
        unknown = int(records.idx[records.label < 0][0])
        raise InputError(f"{records.path}: the true class of image {unknown} is unknown, but accuracy needs it")


def _digest(records: Records) -> str | None:
    """sha256 of the data set, if the manifest states it."""
    data = (records.manifest or {}).get("data")
    digest = data.get("sha256") if isinstance(data, dict) else None
    return digest if isinstance(digest, str) else None


def _text(estimate: Estimate | None, scale: float, digits: int) -> str:
    return "-" if estimate is None else f"{scale * estimate.value:.{digits}f}"


def _interval(estimate: Estimate | None, scale: float, digits: int, *, sign: str = "") -> str:
    if estimate is None or not math.isfinite(estimate.low):
        return ""
    return (" to " if sign else "-").join(f"{scale * end:{sign}.{digits}f}" for end in (estimate.low, estimate.high))


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
