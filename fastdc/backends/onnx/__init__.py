"""ONNX Runtime: networks on the CPU and on CUDA devices, and encoders of images and texts."""

from fastdc.backends.onnx.cpu import OnnxNetwork
from fastdc.backends.onnx.cuda import OnnxCudaNetwork
from fastdc.backends.onnx.image_encoder import OnnxEncoder
from fastdc.backends.onnx.text_encoder import firsts_of_texts, with_prompts
from fastdc.backends.onnx.widen import widen

__all__ = [
    "OnnxCudaNetwork",
    "OnnxEncoder",
    "OnnxNetwork",
    "firsts_of_texts",
    "widen",
    "with_prompts",
]
