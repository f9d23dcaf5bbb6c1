"""Calibration of the race: a threshold from validation images, with a finite-sample guarantee.

For every validation image and noise seed, the errors of the full run give its class w and the limit that the race would
have needed to keep w at every look,

    score = max over looks m of  m (e_w - min_k e_k) / min_k e_k ,    e_k the mean error of class k after m draws.

The loss of a limit on an image is the share of its seeds with score > limit. It falls with the limit and bounds the
chance that the race drops w: the race compares with the best class still alive, which is never better than the best of
all. Conformal risk control (Angelopoulos et al., arXiv 2208.02814, theorem 1) then takes the smallest limit with

    n / (n + 1) * (mean loss over the n images) + 1 / (n + 1)  <=  delta ,

so that the expected loss on a new image, exchangeable with the n, is at most delta. Images are the exchangeable unit:
several seeds of one image make its loss finer, but count once. Labels are not needed. With n images, no delta below
1 / (n + 1) can be promised.
"""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fastdc.diffusion import PlanConfig
from fastdc.rules import Calibration, geometric_looks, plan_without_draws
from fastdc.support import Float64, InputError, Int64, checks, shown

_LARGEST_DELTA = 0.05  # of the race, unless a user asks for more


def needed_limits(errors: npt.NDArray[np.floating]) -> Float64:
    """For each image, the smallest limit with which the race keeps the full run's class, float64 (n,).

    Args:
        errors: (n, K, J), without NaN; infinite for a class that does not compete.

    Example:
        >>> from fastdc.calibration import needed_limits
        >>> needed_limits(np.array([[[1.0, 1.0], [0.5, 2.0]]]))
        array([1.])
    """
    totals = np.cumsum(errors, axis=2, dtype=np.float64)
    winners = totals[:, :, -1].argmin(axis=1)
    needed = np.zeros(len(errors))
    for m in geometric_looks(errors.shape[2])[:-1]:
        total = totals[:, :, m - 1]
        best = total.min(axis=1)
        gap = np.take_along_axis(total, winners[:, None], axis=1)[:, 0] - best
        needed = np.maximum(needed, np.where(gap > 0, m * gap / np.where(best > 0, best, np.nan), 0))
    return np.where(np.isnan(needed), np.inf, needed)  # the best class has no error at all: no limit is enough


def race_evaluations(errors: npt.NDArray[np.floating], limit: float) -> Int64:
    """For each image, the evaluations of the race with a limit, replayed from a full run, int64 (n,).

    Args:
        errors: (n, K, J), without NaN; infinite for a class that does not compete.
        limit: Limit of the race.

    Example:
        >>> from fastdc.calibration import race_evaluations
        >>> race_evaluations(np.array([[[1.0, 1.0], [0.5, 2.0]]]), limit=2.0)
        array([4])
    """
    totals = np.cumsum(errors, axis=2, dtype=np.float64)
    alive = np.asarray(np.isfinite(totals[:, :, -1]))
    spent = np.zeros(len(errors), np.int64)
    before = 0
    for m in geometric_looks(errors.shape[2]):
        going = alive.sum(axis=1)
        spent += np.where(going > 1, going * (m - before), 0)
        before = m
        means = np.where(alive, totals[:, :, m - 1] / m, np.inf)
        best = means.min(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinite where a class was dropped
            alive &= m * (means - best) <= limit * best
    return spent


def check_level(delta: float, images: int) -> None:
    """Refuses a level that a number of validation images cannot support.

    Args:
        delta: Level, in (0, 1).
        images: Number of validation images.

    Example:
        >>> from fastdc.calibration import check_level
        >>> check_level(0.01, 99)

    Raises:
        InputError: delta is out of range or below 1 / (images + 1).
    """
    if not checks.is_number(delta) or not 0 < delta < 1:
        raise InputError(f"delta must lie strictly between 0 and 1, got {shown(delta)}")
    need = math.ceil(1 / delta - 1 - 1e-9)
    if images < need:
        least = math.ceil(1000 / (images + 1) - 1e-9) / 1000
        enough = f": these support {least:g}" if images and least < 1 else ""
        raise InputError(f"delta = {delta:g} needs at least {need} validation images, got {images}{enough}")


def supported_delta(images: int) -> float:
    """The default level of a race calibrated on n images: 0.01, or the next whole percent that n images support.

    Args:
        images: Number n of validation images.

    Example:
        >>> from fastdc.calibration import supported_delta
        >>> supported_delta(60)
        0.02

    Raises:
        InputError: The images support no level up to 0.05; a larger one would not be worth its name.
    """
    delta = max(1, math.ceil(100 / (images + 1) - 1e-9)) / 100
    if delta > _LARGEST_DELTA:
        least = f"{100 / (images + 1):.2g} %"
        raise InputError(
            f"{images} images support no level below {least}: 5 %, the largest by default, takes 19, and 1 % takes 99"
        )
    return delta


def controlled_limit(scores: Float64, delta: float) -> float:
    """The smallest limit whose expected loss on a new image is at most delta.

    Args:
        scores: float64 (n, S), limits needed by n images under S noise seeds.
        delta: Level, in (0, 1).

    Example:
        >>> from fastdc.calibration import controlled_limit
        >>> controlled_limit(np.arange(10.0)[:, None], delta=0.2)
        8.0

    Raises:
        InputError: See :func:`check_level`, or no finite limit is enough.
    """
    n, seeds = scores.shape
    check_level(delta, n)
    allowed = max(math.floor(((n + 1) * delta - 1) * seeds + 1e-9), 0)  # (image, seed) pairs that may be lost
    ranked = np.sort(scores, axis=None)
    limit = float(ranked[max(len(ranked) - 1 - allowed, 0)])
    if not math.isfinite(limit):
        raise InputError("no finite limit is enough: some class has no error at all on a validation image")
    return limit


def calibrate_errors(errors: Iterable[npt.NDArray[np.floating]], config: PlanConfig, *, delta: float) -> Calibration:
    """The calibration from full runs.

    Args:
        errors: Errors (n, K, J) of the same n validation images, one array per noise seed; NaN only for a class that
            is no candidate of an image. Read one at a time.
        config: Plan of the runs.
        delta: Level of the guarantee, in (0, 1).

    Example:
        >>> from fastdc.calibration import calibrate_errors
        >>> runs = clf.validation_runs(images, draws=8)
        >>> calibrate_errors((table.errors for table in runs.tables(2)), runs.config, delta=0.1).seeds
        2

    Raises:
        InputError: No run, different shapes, NaN, or see :func:`controlled_limit`.
    """
    columns: list[Float64] = []
    shape, bound = None, 0.0
    for table in errors:
        shape = table.shape if shape is None else shape
        if table.ndim != 3 or 0 in table.shape or table.shape != shape:
            raise InputError(f"errors must be runs of one shape (n, K, J), got {shape} and {table.shape}")
        absent = np.isnan(table).all(axis=2, keepdims=True)
        finite = bool((np.isfinite(table) | absent).all() and not absent.all(axis=1).any())
        if shape[2] != config.draws or not finite:
            raise InputError(f"errors must be finite at all {config.draws} draws, got shape {shape}")
        columns.append(needed_limits(np.where(absent, np.inf, table) if absent.any() else table))
        bound = max(bound, float((np.nanmax(table, axis=1) - np.nanmin(table, axis=1)).max()))
    if not columns:
        raise InputError("errors must be one run or more, got none")
    scores = np.stack(columns, axis=1)
    limit = controlled_limit(scores, delta)
    return Calibration(
        limit=limit,
        delta=float(delta),
        risk=float(np.mean(scores > limit)),
        draws=config.draws,
        images=len(scores),
        seeds=scores.shape[1],
        bound=bound,
        plan=plan_without_draws(config),
    )
