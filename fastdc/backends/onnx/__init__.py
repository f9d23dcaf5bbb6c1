"""ONNX Runtime: networks on CPU and CUDA, graphs of a bundle, encoders of images and text."""

from fastdc.backends.onnx.cpu import OnnxNetwork, usable_cpus
from fastdc.backends.onnx.cuda import OnnxCudaNetwork
from fastdc.backends.onnx.image_encoder import ModuleEncoder, OnnxEncoder
from fastdc.backends.onnx.text_encoder import with_prompts
from fastdc.backends.onnx.widen import widen, widened_session

__all__ = [
    "ModuleEncoder",
    "OnnxCudaNetwork",
    "OnnxEncoder",
    "OnnxNetwork",
    "usable_cpus",
    "widen",
    "widened_session",
    "with_prompts",
]
