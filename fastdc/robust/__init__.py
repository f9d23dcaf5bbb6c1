"""Gradients through a diffusion classifier, for attacks on it, and likelihood maximisation as a defence against them.

    module = as_module(classifier, draws=16)  # a torch module: images in [0, 1] -> logits
    likelier = maximize_likelihood(classifier, images)

Both need the torch backend. The defence is the Robust Diffusion Classifier (Chen et al., arXiv 2305.15241).
"""

from fastdc.support import require

require("torch", extra="train")

from fastdc.robust.likelihood import LikelihoodMaximization, ReleasedMaximization, maximize_likelihood  # noqa: E402
from fastdc.robust.module import ClassifierModule, as_module  # noqa: E402

__all__ = ["ClassifierModule", "LikelihoodMaximization", "ReleasedMaximization", "as_module", "maximize_likelihood"]
