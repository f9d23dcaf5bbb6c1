"""The diffusion classifier as a scikit-learn estimator: cross-validation, grid search, pipelines, ensembles.

    from fastdc.estimator import DiffusionClassifierEstimator     # or fastdc.DiffusionClassifierEstimator

Importing this package imports scikit-learn; ``import fastdc`` does not.
"""

from fastdc.estimator.classifier import DiffusionClassifierEstimator

__all__ = ["DiffusionClassifierEstimator"]
