"""Diffusion models as bundles: torch modules become ONNX graphs, which are checked against torch."""

from typing import TYPE_CHECKING

from fastdc.support import lazy_names

if TYPE_CHECKING:
    from fastdc.export.bundle import export_source
    from fastdc.export.calibrate import check_calibration
    from fastdc.export.compare import compare_errors, torch_classifier
    from fastdc.export.graph import DEFAULT_OPSET, export_graph, export_onnx
    from fastdc.export.int8_graph import calibration_feeds, quantize_graph
    from fastdc.export.options import ExportOptions
    from fastdc.export.tensorrt_check import build_check
    from fastdc.export.trained import export_run
    from fastdc.export.verify import tolerance, verify_onnx
else:  # the options and the checks need no torch
    __getattr__ = lazy_names(
        __name__,
        {
            "DEFAULT_OPSET": "graph",
            "ExportOptions": "options",
            "build_check": "tensorrt_check",
            "calibration_feeds": "int8_graph",
            "check_calibration": "calibrate",
            "compare_errors": "compare",
            "export_graph": "graph",
            "export_onnx": "graph",
            "export_run": "trained",
            "export_source": "bundle",
            "quantize_graph": "int8_graph",
            "tolerance": "verify",
            "torch_classifier": "compare",
            "verify_onnx": "verify",
        },
    )

__all__ = [
    "DEFAULT_OPSET",
    "ExportOptions",
    "build_check",
    "calibration_feeds",
    "check_calibration",
    "compare_errors",
    "export_graph",
    "export_onnx",
    "export_run",
    "export_source",
    "quantize_graph",
    "tolerance",
    "torch_classifier",
    "verify_onnx",
]
