"""What certification files say: certified accuracy, average radius and cost, from the records alone.

Over n images, with c_i = 1 where the smoothed classifier names the true class of image i (an abstention is never right)
and r_i its certified radius:

    certified accuracy at R    A(R) = mean of c_i [r_i >= R]       >=, as in Cohen et al. (arXiv 1902.02918)
    clean accuracy             A(0), of the smoothed classifier
    average certified radius   mean of c_i r_i                     ACR, Zhai et al. (arXiv 2001.02378)

Standard errors are those of n images drawn from all that could have been: sqrt(A (1 - A) / n), and for the ACR the
standard deviation (n - 1) over sqrt(n). Every certificate also holds with probability 1 - alpha only, which is no part
of them.

Two files on the same images are compared in pairs. With b images certified at R by the first file only and c by the
second only, A1 - A2 = (b - c) / n, its standard error is sqrt(b + c - (b - c)^2 / n) / n, and McNemar's exact test asks
how likely a split of b + c as uneven as this is if either side were as probable.
"""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastdc.certification.certificate import ABSTAIN
from fastdc.certification.records import Records
from fastdc.support import InputError, require, write_whole

SUFFIXES = (".png", ".svg", ".pdf")

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # between the radii of a table that nobody asked for
_MOST = 9  # of those radii

# Okabe & Ito's palette; beyond it the lines differ in style.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#111111")
_LINES = ("-", "--", ":", "-.")

Floats = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over images and its standard error, which is NaN where one image tells nothing of it."""

    value: float
    error: float


@dataclass(frozen=True)
class Summary:
    """One file.

    Attributes:
        name: A short one, of the file.
        images: Records.
        expected: Records of the finished run, or None where that is not known.
        radii: At which `certified` is given; L2 of pixels in [0, 1].
        certified: Certified accuracy at each radius, in [0, 1]; None where true classes are not known.
        accuracy: Clean accuracy; None where true classes are not known.
        average_radius: Average certified radius; None where true classes are not known.
        abstained: Share of abstentions.
        evaluations: Network evaluations an image (NFE); None for a file of another program.
        copies: Noisy copies an image, those of the selection included; None for a file of another program.
        seconds: Wall time an image.
    """

    name: str
    images: int
    expected: int | None
    radii: tuple[float, ...]
    certified: tuple[Estimate, ...] | None
    accuracy: Estimate | None
    average_radius: Estimate | None
    abstained: Estimate
    evaluations: float | None
    copies: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: estimates become {"value": ..., "error": ...}, what is not a number null."""
        return {field: _plain(value) for field, value in vars(self).items()}


@dataclass(frozen=True)
class Comparison:
    """Two files on the images that both hold.

    Attributes:
        names: Of the files.
        images: That both hold.
        radii: L2 of pixels in [0, 1].
        difference: Certified accuracy of the first less that of the second, at each radius.
        only: Images certified at each radius by the first file only, and by the second only.
        p_value: Of McNemar's exact two-sided test, at each radius.
        average_radius: ACR of the first less that of the second.
    """

    names: tuple[str, str]
    images: int
    radii: tuple[float, ...]
    difference: tuple[Estimate, ...]
    only: tuple[tuple[int, int], ...]
    p_value: tuple[float, ...]
    average_radius: Estimate

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as :meth:`Summary.to_dict`."""
        return {field: _plain(value) for field, value in vars(self).items()}


def certified_accuracy(records: Records, radii: Sequence[float]) -> Floats:
    """Certified accuracy at each radius, in [0, 1].

    Args:
        records: Whose true classes are known.
        radii: L2 of pixels in [0, 1], from 0.

    Raises:
        InputError: A true class is not known, or a radius is negative.
    """
    accuracy: Floats = _certified(records, check_radii(radii)).mean(axis=1)
    return accuracy


def summarize(records: Records, radii: Sequence[float], *, name: str | None = None) -> Summary:
    """What one file says.

    Args:
        records: Of the file.
        radii: L2 of pixels in [0, 1], from 0.
        name: To go by; default: the file's.

    Raises:
        InputError: A radius is negative.
    """
    asked = check_radii(radii)
    n, own = len(records), records.own
    known = records.labelled
    shares = _certified(records, (0.0, *asked)).mean(axis=1).tolist() if known else []
    certified = [_share(share, n) for share in shares]
    return Summary(
        name=records.path.name if name is None else name,
        images=n,
        expected=records.expected,
        radii=asked,
        certified=tuple(certified[1:]) if known else None,
        accuracy=certified[0] if known else None,
        average_radius=_mean(records.radius * records.correct) if known else None,
        abstained=_share(float((records.predict == ABSTAIN).mean()), n),
        evaluations=float(own["evaluations"].mean()) if own else None,
        copies=float((own["copies"] + own["selection_copies"]).mean()) if own else None,
        seconds=float(records.seconds.mean()),
    )


def compare(
    first: Records, second: Records, radii: Sequence[float], *, names: tuple[str, str] | None = None
) -> Comparison:
    """Compares two files on the images that both hold.

    Args:
        first: Records of one.
        second: Records of the other.
        radii: L2 of pixels in [0, 1], from 0.
        names: To go by; default: the files'.

    Raises:
        InputError: They share no image, are of different data, a true class is not known, or a radius is negative.
    """
    asked = check_radii(radii)
    pair = f"{first.path} and {second.path}"
    shared, left, right = np.intersect1d(first.idx, second.idx, assume_unique=True, return_indices=True)
    if not len(shared):
        raise InputError(f"{pair} have no image in common")
    digests = {_digest(records) for records in (first, second)} - {None}
    if len(digests) > 1 or (first.label[left] != second.label[right]).any():
        raise InputError(f"{pair} are of different data: a comparison is of the same images")
    a, b = _certified(first, asked)[:, left], _certified(second, asked)[:, right]
    n = len(shared)
    only = [(int(here), int(there)) for here, there in zip((a & ~b).sum(axis=1), (b & ~a).sum(axis=1), strict=True)]
    acr = (first.radius * first.correct)[left] - (second.radius * second.correct)[right]
    return Comparison(
        names=names or (first.path.name, second.path.name),
        images=n,
        radii=asked,
        difference=tuple(
            Estimate((here - there) / n, math.sqrt(here + there - (here - there) ** 2 / n) / n) for here, there in only
        ),
        only=tuple(only),
        p_value=tuple(mcnemar(*split) for split in only),
        average_radius=_mean(acr),
    )


def mcnemar(b: int, c: int) -> float:
    """P-value of McNemar's exact test, two-sided: of b against c where each of b + c falls on either side like a coin.

    Args:
        b: Pairs in which only the first succeeded.
        c: Pairs in which only the second did.
    """
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5)))


def curve(records: Records) -> tuple[Floats, Floats]:
    """Certified accuracy as the staircase that it is.

    Args:
        records: Whose true classes are known.

    Returns:
        Radii (m,), 0 and then every radius of a correct image, ascending; and the accuracy (m,) at each, which holds
        down to the radius before. Beyond the last it is 0.

    Raises:
        InputError: A true class is not known.
    """
    _check_labelled(records)
    certified = np.sort(records.radius[records.correct])
    radii = np.unique(np.concatenate([[0.0], certified]))
    beyond = len(certified) - np.searchsorted(certified, radii, side="left")
    return radii, beyond / len(records)


def default_radii(several: Sequence[Records]) -> tuple[float, ...]:
    """Radii for a table of these files: 0 and round steps up to the largest radius certified, nine at most."""
    largest = max((float(records.radius.max()) for records in several), default=0.0)
    step = next((step for step in _STEPS if largest < step * _MOST), largest / (_MOST - 1))
    return tuple(round(step * i, 10) for i in range(math.floor(largest / step + 1e-9) + 1))


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart: "b", or "run1/b" where there are several; no .tsv or .txt."""
    bare = [path.with_suffix("") if path.suffix in (".tsv", ".txt") else path for path in paths]
    for parts in range(1, max((len(path.parts) for path in bare), default=0) + 1):
        names = [str(Path(*path.parts[-parts:])) for path in bare]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def table(summaries: Sequence[Summary]) -> str:
    """Files as rows, in two blocks: certified accuracy at the radii, then what else is known. All of the same radii."""
    radii = summaries[0].radii if summaries else ()
    accuracy = [["certified accuracy, %", *(f"{radius:g}" for radius in radii)]]
    others = [["", "images", "abstained, %", "average radius", "NFE", "copies", "seconds"]]
    for summary in summaries:
        cells = [_text(estimate, 100, 1) for estimate in summary.certified or (None,) * len(radii)]
        accuracy.append([summary.name, *cells])
        missing = summary.expected is not None and summary.expected > summary.images
        others.append(
            [
                summary.name,
                f"{summary.images} of {summary.expected}" if missing else str(summary.images),
                _text(summary.abstained, 100, 1),
                _text(summary.average_radius, 1, 3),
                "-" if summary.evaluations is None else f"{summary.evaluations:,.0f}",
                "-" if summary.copies is None else f"{summary.copies:,.0f}",
                f"{summary.seconds:.3g}" if summary.seconds < 1000 else f"{summary.seconds:,.0f}",
            ]
        )
    return f"{_aligned(accuracy)}\n\n{_aligned(others)}"


def comparison_table(comparison: Comparison) -> str:
    """A row a radius: the difference, the images that only one file certifies, McNemar's p."""
    first, second = map(_one_line, comparison.names)
    rows = [["radius", "difference, points", "only the first", "only the second", "p"]]
    for i, radius in enumerate(comparison.radii):
        here, there = comparison.only[i]
        difference = _text(comparison.difference[i], 100, 1, sign="+")
        rows.append([f"{radius:g}", difference, str(here), str(there), f"{comparison.p_value[i]:.2g}"])
    acr = _text(comparison.average_radius, 1, 4, sign="+")
    return f"{first} less {second}, {comparison.images} images\n{_aligned(rows)}\naverage radius  {acr}"


def check_radii(radii: Sequence[float]) -> tuple[float, ...]:
    """Radii as a tuple.

    Raises:
        InputError: There is none, or one is not a number from 0.
    """
    checked = tuple(float(radius) for radius in radii)
    if not checked or not all(0 <= radius < math.inf for radius in checked):
        raise InputError(f"radii must be numbers from 0, got {', '.join(f'{r:g}' for r in checked) or 'none'}")
    return checked


def plot_curves(
    path: str | os.PathLike[str], several: Sequence[Records], *, names: Sequence[str] | None = None
) -> Path:
    """Draws certified accuracy over the radius, a line a file with a band of one standard error.

    Args:
        path: Where to write; .png, .svg or .pdf. An existing file is replaced, in one step.
        several: Records of each file.
        names: Of each file, for the legend; default: :func:`names_of`.

    Returns:
        The path written.

    Raises:
        InputError: A true class is not known, an unknown suffix, or a place that cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"a plot is written as {', '.join(SUFFIXES)}, got {target.name!r:.80}")
    curves = [curve(records) for records in several]
    labels = names_of([records.path for records in several]) if names is None else names
    matplotlib, figures = require("matplotlib", extra="plot"), require("matplotlib.figure", extra="plot")
    # Text stays text in SVG, files are reproducible, and the user's own style does not get in.
    style = {**matplotlib.rcParamsDefault, "svg.fonttype": "none", "svg.hashsalt": "fastdc", "text.parse_math": False}
    style.pop("backend", None)
    suffix = target.suffix.lower()
    dates: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(7.2, 4.6), dpi=130, facecolor="white")
        _draw(figure.add_subplot(), curves, several, labels)
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=dates.get(suffix))
    try:
        write_whole(target, buffer.getvalue())
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from None
    return target


def _draw(axes: Any, curves: list[tuple[Floats, Floats]], several: Sequence[Records], names: Sequence[str]) -> None:
    end = max((float(radii[-1]) for radii, _ in curves), default=0.0) * 1.04 or 1.0
    for i, ((radii, accuracy), records, name) in enumerate(zip(curves, several, names, strict=True)):
        colour, line = _COLOURS[i % len(_COLOURS)], _LINES[i // len(_COLOURS) % len(_LINES)]
        x, y = np.append(radii, radii[-1]), 100 * np.append(accuracy, 0.0)  # down to the axis
        half = 100 * np.sqrt(y / 100 * (1 - y / 100) / len(records))
        acr = float((records.radius * records.correct).mean())
        shown = _one_line(name)[:60].lstrip("_")  # which would hide it from the legend
        label = f"{shown}, average radius {acr:.3f}"
        axes.step(x, y, line, where="pre", color=colour, linewidth=1.6, label=label)
        axes.fill_between(x, y - half, y + half, step="pre", color=colour, alpha=0.13, linewidth=0)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 101)
    axes.set_xlabel("radius (L2, pixels in [0, 1])")
    axes.set_ylabel("certified accuracy, %  (band: one standard error)")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _certified(records: Records, radii: tuple[float, ...]) -> npt.NDArray[np.bool_]:
    """Whether each image (columns) is certified at each radius (rows)."""
    _check_labelled(records)
    return records.correct & (records.radius >= np.array(radii)[:, None])


def _check_labelled(records: Records) -> None:
    if not records.labelled:
        unknown = int(records.idx[records.label < 0][0])
        raise InputError(f"{records.path}: the true class of image {unknown} is not known, which accuracy needs")


def _digest(records: Records) -> str | None:
    """sha256 of the data that a run was on, where its manifest says so."""
    data = (records.manifest or {}).get("data")
    digest = data.get("sha256") if isinstance(data, dict) else None
    return digest if isinstance(digest, str) else None


def _share(share: float, n: int) -> Estimate:
    return Estimate(share, math.sqrt(share * (1 - share) / n))


def _mean(values: Floats) -> Estimate:
    n = len(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan)


def _text(estimate: Estimate | None, scale: float, digits: int, *, sign: str = "") -> str:
    if estimate is None:
        return "-"
    error = f" ± {scale * estimate.error:.{digits}f}" if math.isfinite(estimate.error) else ""
    return f"{scale * estimate.value:{sign}.{digits}f}{error}"


def _aligned(rows: list[list[str]]) -> str:
    """Columns of one width each, the first to the left."""
    clean = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in clean
    )


def _one_line(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name)


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {"value": _plain(value.value), "error": _plain(value.error)}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
