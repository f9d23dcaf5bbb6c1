"""Which text describes an image? Diffusion classifiers beside CLIP, SigLIP and ViLT, on candidates of each image's own.

    trials = Trials.of(files, [["a red cube", "a blue cube"], ...])
    matched = matcher.match(trials)            any model: scores, answers, cost

Modules: `trials` (the question), `matched` (the answer), `diffusion_matcher`.
"""

from fastdc.matching.diffusion_matcher import DiffusionMatcher
from fastdc.matching.matched import AbstractMatcher, Matched, OnMatched, last_best
from fastdc.matching.trials import RIGHT, Trials

__all__ = ["RIGHT", "AbstractMatcher", "DiffusionMatcher", "Matched", "OnMatched", "Trials", "last_best"]
