"""Explanations of images: classify them, choose the classes to compare, make the maps."""

import time
from collections.abc import Sequence
from typing import Any, Protocol, Unpack

import numpy as np

from fastdc.bundle import Model
from fastdc.explanation.arrays import LATENTS, PIXELS, WAVELET
from fastdc.explanation.error_maps import ErrorMaps, error_maps, map_plan
from fastdc.explanation.explanation import Explanation
from fastdc.explanation.named_classes import is_one, named_classes, runner_up
from fastdc.explanation.paired_pixels import check_test, p_values, significant_pixels
from fastdc.inference import (
    Candidates,
    Classification,
    Images,
    OnProgress,
    Options,
    RunOptions,
    Settings,
    check_candidates,
    decide_table,
    merged,
    stream_results,
)
from fastdc.support import Floats, InputError, Int32, Int64, shown


class AbstractClassifier(Protocol):
    """What an explanation needs of a classifier; a :class:`fastdc.DiffusionClassifier` has it."""

    @property
    def model(self) -> Model:
        """The model."""

    def settings(self, options: Options | None = None, **keywords: Unpack[RunOptions]) -> Settings:
        """The options of a run, checked and complete."""


def explain(
    classifier: AbstractClassifier,
    images: Any,
    *,
    against: Any = None,
    classes: Any = None,
    options: Options | None = None,
    map_draws: int | None = None,
    smooth: float = 0.0,
    alpha: float = 0.05,
    control: str = "fdr",
    candidates: Candidates | None = None,
    streams: Any = None,
    progress: OnProgress | None = None,
    **keywords: Unpack[RunOptions],
) -> Explanation:
    """Classifies images, and maps where each one's class denoises better than another class, under the same noise.

    The cost is that of :meth:`fastdc.DiffusionClassifier.classify`, and two evaluations per image and draw of a map.

    Args:
        classifier: The classifier.
        images: Images of any kind, see :func:`fastdc.data.prepare`.
        against: The class against the explained one, a name or an index: one for all images, or a list with one per
            image; images of this class take their runner-up, see ``turned``. None: the most probable other class.
        classes: The class to explain, in the same forms; None: the answer.
        options: Options of the run: the answer and the maps share levels, weights, loss and noise.
        map_draws: Number of draws of a map, the first of the plan; if it has fewer, the plan goes on in its order.
            None: all, so that the mean of a map is the difference of the two mean errors of the full run.
        smooth: Standard deviation of a Gaussian that smooths each draw's differences, in pixels of the map; 0: none.
        alpha: Level of the significant pixels, in (0, 0.083]; docs/explain.md says for which classes it holds.
        control: "fdr": alpha bounds the expected share of noise among significant pixels; "fwer": the chance of any.
        candidates: Classes to consider for the answer, see :meth:`fastdc.DiffusionClassifier.classify`.
        streams: Noise stream of each image, whole numbers in [0, 2^56); default: from the image's pixels.
        progress: Called after every step of the answers, then of the maps.
        **keywords: Options by name, see :class:`fastdc.Options`.

    Example:
        >>> from fastdc.explanation import explain
        >>> explain(clf, images[:1], against="1", map_draws=32)
        Explanation(1 image: '7' against '1'; maps of pixels; ... evaluations per image, ... s)

    Raises:
        InputError: Images or options cannot be used, or an image is to be explained against its own class.
    """
    start, model, wanted = time.perf_counter(), classifier.model, merged(options, keywords, explain)
    settings = classifier.settings(wanted)
    check_explanation(settings, map_draws=map_draws, smooth=smooth, alpha=alpha, control=control)
    ready = Images.of(images, model, streams, **wanted.reading)
    own = named_classes(classes, model, len(ready), "classes")
    rival = named_classes(against, model, len(ready), "against")
    _check_different(own, rival, model, excused=is_one(against) and not is_one(classes))
    limits = None if candidates is None else check_candidates(candidates, ready.unit, model)
    answers = next(stream_results(settings, ready, candidates=limits, progress=progress, start=start))
    own = answers.labels if own is None else own
    other = _others(answers, own, rival)
    pairs = _conditions(answers, model, own, other)
    made = error_maps(settings.job, ready, pairs, draws=map_draws, smooth=smooth, progress=progress)
    test = {"alpha": float(alpha), "control": control, "count": made.count, "smooth": float(smooth)}
    return _explanation(answers, ready, own, other, made, test, rival=rival, model=model, start=start)


def check_explanation(settings: Settings, *, map_draws: int | None, smooth: float, alpha: float, control: str) -> None:
    """Refuses options of :func:`explain`, without a network.

    Args:
        settings: The options of the run.
        map_draws: Number of draws of a map; None: those of the plan.
        smooth: Standard deviation of a Gaussian that smooths maps.
        alpha: Level of the significant pixels.
        control: What alpha bounds.

    Example:
        >>> from fastdc.explanation import check_explanation
        >>> check_explanation(clf.settings(), map_draws=64, smooth=0.0, alpha=0.05, control="fdr")

    Raises:
        InputError: An option cannot be used.
    """
    map_plan(settings.job, map_draws, smooth)
    check_test(alpha, control)


def _others(answers: Classification, own: Int64, rival: Int64 | None) -> Int64:
    """The class (n,) against each image's own: the one that was named, or the runner-up."""
    found, second = own if rival is None else rival, runner_up(answers, own)
    alone = np.flatnonzero(np.isnan(answers.errors[np.arange(len(own)), second]) & (found == own))
    if len(alone):
        raise InputError(f"image {alone[0]} has no second class that was evaluated: expected one against its class")
    return np.where(found == own, second, found)


def _check_different(own: Int64 | None, rival: Int64 | None, model: Model, *, excused: bool) -> None:
    """Refuses to explain an image against its own class, if both were named.

    Raises:
        InputError: See above.
    """
    if own is None or rival is None or excused:
        return
    same = np.flatnonzero(own == rival)
    if len(same):
        name = shown(model.class_names[own[same[0]]], 60)
        raise InputError(f"image {same[0]} is explained as {name}: expected another class against it")


def _conditions(answers: Classification, model: Model, own: Int64, other: Int64) -> Int32:
    """The condition of each class: itself, or of the prompts that describe it the one with the smallest mean error."""
    pairs = np.stack([own, other], axis=1).astype(np.int32)
    if not model.class_of:
        return pairs
    means = np.nan_to_num(decide_table(answers.table).mean_errors, nan=np.inf)
    owner = np.asarray(model.class_of)
    for row, column in np.ndindex(*pairs.shape):
        prompts = np.flatnonzero(owner == pairs[row, column])
        pairs[row, column] = prompts[means[row, prompts].argmin()]
    return pairs


def _class_draws(answers: Classification, model: Model) -> Int64:
    """Draws at which each class was evaluated, int64 (n, K); of several prompts of a class, the most."""
    counts = answers.table.counts.astype(np.int64)
    if not model.class_of:
        return counts
    most = np.zeros((len(counts), model.num_classes), np.int64)
    for prompt, k in enumerate(model.class_of):
        most[:, k] = np.maximum(most[:, k], counts[:, prompt])
    return most


def _explanation(
    answers: Classification,
    images: Images,
    own: Int64,
    other: Int64,
    made: ErrorMaps,
    test: dict[str, Any],
    *,
    rival: Int64 | None,
    model: Model,
    start: float,
) -> Explanation:
    """The maps and what they say, of the images' size."""
    p = p_values(made.mean, made.standard_error, made.count)
    significant = [significant_pixels(one, alpha=test["alpha"], control=test["control"]) for one in p]
    size = model.image_shape[1:]
    space = LATENTS if model.latent_shape is not None else PIXELS if model.transform is None else WAVELET
    return Explanation(
        answers=answers,
        images=images.given,
        classes=own,
        against=other,
        maps=upsampled(made.mean, size),
        standard_errors=upsampled(made.standard_error, size),
        significant=upsampled(np.array(significant, np.bool_).reshape(made.mean.shape), size),
        channels=upsampled(made.channels, size),
        bands=upsampled(made.bands, size),
        edges=made.edges,
        pair_errors=made.errors,
        ratio=made.ratio,
        class_draws=_class_draws(answers, model),
        evaluations=answers.evaluations + made.evaluations,
        turned=np.zeros(len(own), np.bool_) if rival is None else rival == own,
        test=test,
        space=space,
        seconds=time.perf_counter() - start,
    )


def upsampled(maps: Any, size: Sequence[int]) -> Any:
    """Maps (..., h, w) at another size: each pixel takes the value of the cell that its centre lies in.

    No value is invented, so that the map's true resolution can be seen; for whole factors its mean stays.
    """
    old: Floats = maps
    for axis, wanted in zip((-2, -1), size, strict=True):
        if old.shape[axis] != wanted:
            old = np.take(old, (np.arange(wanted) * 2 + 1) * old.shape[axis] // (2 * wanted), axis=axis)
    return old
