"""Scores that compare images: how much a text says about an image, and not how easy the image is to denoise.

For one image, candidate texts compare by the errors e(x, c) themselves: the noise is the same. Between images they do
not: an image of a plain background has small errors under every text. What a text adds to "no class",

    s(x, c) = e(x, no class) - e(x, c)      estimates  log p(x | c) - log p(x), up to the weighting of the levels,

is comparable (Krojer et al., arXiv 2305.16397, DiffusionITM). "No class" is one more condition of the same run, so that
both errors of a difference have the same levels and the same noise.
"""

import time
from typing import Any

import numpy as np

from fastdc.matching.diffusion_matcher import DiffusionMatcher
from fastdc.matching.matched import AbstractMatcher, Matched, OnMatched, last_best
from fastdc.matching.trials import Trials
from fastdc.support import Interrupted


def evidence(
    matcher: AbstractMatcher,
    trials: Trials,
    *,
    subtract: bool = True,
    progress: OnMatched | None = None,
) -> Matched:
    """Scores of texts that may be compared between images.

    Args:
        matcher: The model. A diffusion model evaluates every candidate at every draw; of CLIP, SigLIP and ViLT the
            scores are those of ``match``.
        trials: n images and their candidate texts.
        subtract: Whether the error without a text is subtracted; if not, scores are negative mean errors, which compare
            texts of one image only.
        progress: Called with the number of images that are done, and of all.

    Returns:
        The scores; the answer is the best text of each image, as of a full run.

    Example:
        >>> from fastdc.matching import DiffusionMatcher, Trials, evidence
        >>> trials = Trials.of(images[:2], [["7", "1"], ["9", "3"]], truth=-1)
        >>> evidence(DiffusionMatcher(clf, draws=16), trials).answers
        array([0, 0])

    Raises:
        InputError: Images or texts cannot be used, or the model has no null class.
        Interrupted: Ctrl-C; its ``result`` has the first images.
    """
    if not isinstance(matcher, DiffusionMatcher):
        return matcher.match(trials, progress)
    start = time.perf_counter()

    def matched(table: Any) -> Matched:
        means = table.mean()
        scores = tuple(
            (means[i, -1] if subtract else 0.0) - means[i, : len(trials.candidates[i])] for i in range(len(table))
        )
        return Matched(
            name=matcher.name,
            rows=np.arange(len(table), dtype=np.int64),
            scores=scores,
            answers=np.array([last_best(one) for one in scores], np.int64),
            evaluations=table.evaluations,
            seconds=time.perf_counter() - start,
            facts={"model": table.model, "sha256": table.identity, "bundle": matcher.identity}
            | {"plan": table.plan, "seed": table.seed, "rule": "full", "fastdc": table.version, "subtracted": subtract},
        )

    try:
        return matched(matcher.errors(trials, null=subtract, progress=progress))
    except Interrupted as stop:
        raise Interrupted(str(stop), None if stop.result is None else matched(stop.result)) from None
