"""Gradients through a diffusion classifier, and what they are for: attacks, and likelihood maximisation against them.

    module = as_module(classifier, draws=16)          # a torch module: images in [0, 1] -> logits, differentiable
    cleaned = maximize_likelihood(classifier, images)

Both run on the torch backend. The method is the Robust Diffusion Classifier (Chen et al., arXiv 2305.15241).
"""

from fastdc.robust.likelihood import LikelihoodMaximization, ReleasedMaximization, maximize_likelihood
from fastdc.robust.module import ClassifierModule, as_module

__all__ = ["ClassifierModule", "LikelihoodMaximization", "ReleasedMaximization", "as_module", "maximize_likelihood"]
