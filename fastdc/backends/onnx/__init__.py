"""ONNX Runtime: networks on CPU and CUDA, graphs of a bundle, encoders of images and text."""
