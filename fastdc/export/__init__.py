"""Diffusion models as bundles: torch modules as ONNX graphs, checked against torch, with what a classifier needs."""

from fastdc.export.graph import export_onnx
from fastdc.export.run import CALIBRATION_SEEDS, export_run, supported_delta, training_command, with_doubt
from fastdc.export.verify import tolerance, verify_onnx

__all__ = [
    "CALIBRATION_SEEDS",
    "export_onnx",
    "export_run",
    "supported_delta",
    "tolerance",
    "training_command",
    "verify_onnx",
    "with_doubt",
]
