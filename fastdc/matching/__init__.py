"""Which text describes an image? Diffusion classifiers beside CLIP, SigLIP and ViLT, on candidates of each image's own.

    trials = Trials.of(files, [["a red cube", "a blue cube"], ...])
    matched = matcher.match(trials)            any model: scores, answers, cost

Modules: `trials` (the question), `matched` (the answer), `diffusion_matcher`.
"""

from fastdc.matching.diffusion_matcher import DiffusionMatcher
Modules: `trials` (the question), `matched` (the answer), `clip_matcher` and `vilt_matcher` (models to compare with;
`pictures` and `collecting` are theirs), `similarity` (of texts to CLIP).
"""

from fastdc.matching.clip_matcher import ClipMatcher
from fastdc.matching.matched import AbstractMatcher, Matched, OnMatched, last_best
from fastdc.matching.trials import RIGHT, Trials
from fastdc.matching.vilt_matcher import ViltMatcher

__all__ = ["RIGHT", "AbstractMatcher", "DiffusionMatcher", "Matched", "OnMatched", "Trials", "last_best"]
__all__ = [
    "RIGHT",
    "AbstractMatcher",
    "ClipMatcher",
    "Matched",
    "OnMatched",
    "Trials",
    "ViltMatcher",
    "last_best",
]
