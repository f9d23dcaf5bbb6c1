"""Diffusion models as bundles: torch modules become ONNX graphs, which are checked against torch."""

from fastdc.export.bundle import export_source
from fastdc.export.calibrate import CALIBRATION_SEEDS, supported_delta
from fastdc.export.compare import compare_errors, torch_classifier
from fastdc.export.graph import DEFAULT_OPSET, export_graph, export_onnx
from fastdc.export.int8_graph import calibration_feeds, quantize_graph
from fastdc.export.options import ExportOptions
from fastdc.export.tensorrt_check import build_check
from fastdc.export.trained import export_run
from fastdc.export.verify import tolerance, verify_onnx

__all__ = [
    "CALIBRATION_SEEDS",
    "DEFAULT_OPSET",
    "ExportOptions",
    "build_check",
    "calibration_feeds",
    "compare_errors",
    "export_graph",
    "export_onnx",
    "export_run",
    "export_source",
    "quantize_graph",
    "supported_delta",
    "tolerance",
    "torch_classifier",
    "verify_onnx",
]
