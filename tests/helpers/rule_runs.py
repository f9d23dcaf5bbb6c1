"""Running stopping rules in tests: requests of any size side by side, look by look, from tables of errors.

A plain version of the scheduler: no engine, no network, and every error is known beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from fastdc.rules.protocol import AbstractRule, Classes, Look
from fastdc.support import Float32, Float64, Int64, Mask

Request = tuple[Classes, Float32]
"""The classes alive (A,) of a request and their errors (A, m)."""


def pack(requests: Sequence[Request], *, index: int = 0, last: bool = False, padding: int = 0) -> Look:
    """A look that shows these requests, with `padding` more columns than the longest one needs."""
    width = max(len(classes) for classes, _ in requests) + padding
    draws = requests[0][1].shape[1]
    classes = np.full((len(requests), width), -1, np.int32)
    errors = np.full((len(requests), width, draws), np.nan, np.float32)
    for row, (ids, values) in enumerate(requests):
        classes[row, : len(ids)] = ids
        errors[row, : len(ids)] = values
    return Look(index=index, draws=draws, last=last, classes=classes, errors=errors)


def single(errors: npt.ArrayLike, *, index: int = 0, classes: Sequence[int] | None = None) -> Look:
    """One request whose classes are 0, 1, ... unless given."""
    values = np.asarray(errors, np.float32)
    ids = np.arange(len(values)) if classes is None else np.asarray(classes)
    return pack([(ids.astype(np.int32), values)], index=index)


def kept(rule: AbstractRule, look: Look) -> list[list[int]]:
    """The classes of each request that stay."""
    keep = rule.keep(look)
    return [row[mask].tolist() for row, mask in zip(look.classes, keep, strict=True)]


@dataclass(frozen=True)
class Run:
    """Result of running n requests of K classes.

    Attributes:
        alive: bool (n, K), whether the class was never dropped.
        evaluations: int64 (n,), number of cells evaluated.
    """

    alive: Mask
    evaluations: Int64


def run(rule: AbstractRule, errors: npt.NDArray[np.floating]) -> Run:
    """Runs a rule over tables of errors (n, K, J); requests with one class left are done."""
    table = errors.astype(np.float32)
    n, n_classes, draws = table.shape
    looks = rule.looks(draws)
    alive = np.ones((n, n_classes), np.bool_)
    evaluations = np.zeros(n, np.int64)
    before = 0
    for index, m in enumerate(looks):
        rows = np.flatnonzero(alive.sum(axis=1) > 1)
        if len(rows) == 0:
            break
        counts = alive[rows].sum(axis=1)
        evaluations[rows] += counts * (m - before)
        before = m
        if m == looks[-1]:
            break
        columns = np.argsort(~alive[rows], axis=1, kind="stable")[:, : counts.max()]
        short = np.arange(counts.max()) >= counts[:, None]
        values = np.ascontiguousarray(table[rows[:, None], columns, :m])
        values[short] = np.nan
        look = Look(
            index=index, draws=m, last=False, classes=np.where(short, -1, columns).astype(np.int32), errors=values
        )
        keep = rule.keep(look)
        assert keep.shape == short.shape
        assert not np.any(keep & short)
        assert np.all(keep.any(axis=1))
        stays = np.zeros((len(rows), n_classes), np.bool_)
        np.put_along_axis(stays, columns, keep, axis=1)
        alive[rows] = stays
    return Run(alive, evaluations)


@st.composite
def batches(draw: st.DrawFn, *, largest: int = 9, longest: int = 40) -> list[Request]:
    """A few requests of 1 to `largest` classes at the same number of draws, some with exactly equal errors."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    draws = draw(st.integers(1, longest))
    spread = draw(st.sampled_from([0.0, 0.1, 1.0]))
    rounding = draw(st.sampled_from([None, 0.5]))
    requests = []
    for n_classes in draw(st.lists(st.integers(1, largest), min_size=1, max_size=5)):
        ids = np.sort(rng.choice(50, n_classes, replace=False)).astype(np.int32)
        values = rng.normal(spread * rng.random((n_classes, 1)), 0.3, (n_classes, draws)) + rng.normal(3, 1, draws)
        if rounding is not None:
            values = np.round(values / rounding) * rounding
        requests.append((ids, values.astype(np.float32)))
    return requests


def check_alone(rule: AbstractRule, requests: list[Request], index: int, padding: int) -> None:
    """Every request keeps at least one class alive, and the same classes as if it were shown alone, in any padding."""
    look = pack(requests, index=index, padding=padding)
    before = look.errors.copy()
    together = rule.keep(look)
    assert together.dtype == np.bool_
    assert together.shape == look.classes.shape
    assert not np.any(together & ~look.alive)
    np.testing.assert_array_equal(look.errors, before)  # a rule may not write into what it is shown
    ids = kept(rule, look)
    for request, expected in zip(requests, ids, strict=True):
        assert expected
        assert kept(rule, pack([request], index=index)) == [expected]
    assert kept(rule, pack(requests[::-1], index=index, padding=padding + 3)) == ids[::-1]


def ties(n: int, n_classes: int, draws: int, *, seed: int) -> Float64:
    """Errors (n, K, J) of classes that are all equal in expectation, so that every elimination is wrong.

    The part that all classes share at a draw is large; their own parts are normal with one variance.
    """
    rng = np.random.default_rng(seed)
    return rng.normal(5, 1, (n, 1, draws)) + rng.normal(0, 0.3, (n, n_classes, draws))


def assert_rate_below(wrong: Mask, alpha: float) -> None:
    """The share of wrong requests is at most alpha plus four standard errors of a rate of alpha."""
    rate = float(wrong.mean())
    assert rate <= alpha + 4 * (alpha * (1 - alpha) / len(wrong)) ** 0.5, rate
