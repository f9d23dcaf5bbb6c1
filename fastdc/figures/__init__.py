"""Pictures of errors, explanations, certificates, scores and benchmarks, drawn by matplotlib."""

from fastdc.figures.bench_bars import bench_bars
from fastdc.figures.certified_curve import plot_curves
from fastdc.figures.counterfactual_sheet import counterfactual_sheet
from fastdc.figures.error_sheet import error_sheet
from fastdc.figures.explanation_sheet import explanation_sheet
from fastdc.figures.level_sheet import level_sheet
from fastdc.figures.score_sheet import score_sheet

__all__ = [
    "bench_bars",
    "counterfactual_sheet",
    "error_sheet",
    "explanation_sheet",
    "level_sheet",
    "plot_curves",
    "score_sheet",
]
