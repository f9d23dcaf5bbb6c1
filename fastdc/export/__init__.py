"""Diffusion models as bundles: torch modules as ONNX graphs, checked against torch, with what a classifier needs."""

from fastdc.export.bundle import export_source
from fastdc.export.calibrate import CALIBRATION_SEEDS, supported_delta
from fastdc.export.compare import compare_errors, torch_classifier
from fastdc.export.graph import DEFAULT_OPSET, PRECISIONS, export_graph, export_onnx
from fastdc.export.storage import LARGE, external, weight_bytes
from fastdc.export.trained import export_run, training_command
from fastdc.export.verify import GraphCheck, denoiser_feeds, tolerance, verify_graph, verify_onnx

__all__ = [
    "CALIBRATION_SEEDS",
    "DEFAULT_OPSET",
    "LARGE",
    "PRECISIONS",
    "GraphCheck",
    "compare_errors",
    "denoiser_feeds",
    "export_graph",
    "export_onnx",
    "export_run",
    "export_source",
    "external",
    "supported_delta",
    "tolerance",
    "torch_classifier",
    "training_command",
    "verify_graph",
    "verify_onnx",
    "weight_bytes",
]
