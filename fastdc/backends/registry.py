"""Picks the backend of a bundle. What is asked for runs, or an error says what is missing; nothing falls back."""

from fastdc.backends.protocol import AbstractEncoder, AbstractNetwork, NetworkOptions
from fastdc.bundle import Bundle
from fastdc.support import InputError, MissingDependencyError, installed

BACKENDS = ("onnx", "torch", "tensorrt")


def open_network(bundle: Bundle, backend: str = "auto", options: NetworkOptions | None = None) -> AbstractNetwork:
    """The network of a bundle, ready to run.

    Args:
        bundle: The bundle.
        backend: One of :data:`BACKENDS`, or "auto": torch when a CUDA device is asked for and torch is installed, else
            onnx where ONNX Runtime is installed, else torch. An engine of TensorRT may take minutes to build: it is
            asked for by name.
        options: See :class:`NetworkOptions`.

    Raises:
        InputError: Unknown backend.
        MissingDependencyError: The backend's package is not installed.
        BackendError: The backend has no such device or precision.
        BundleError: The bundle's files do not make a network.
    """
    options = options or NetworkOptions()
    if backend == "auto":
        backend = _choose(options)
    if backend == "onnx" and options.device.startswith("cuda"):
        from fastdc.backends.onnx.cuda import OnnxCudaNetwork

        return OnnxCudaNetwork(bundle, options)
    if backend == "onnx":
        from fastdc.backends.onnx.cpu import OnnxNetwork

        return OnnxNetwork(bundle, options)
    if backend == "torch":
        from fastdc.backends.torch import TorchNetwork

        return TorchNetwork.from_bundle(bundle, options)
    if backend == "tensorrt":
        from fastdc.backends.tensorrt.network import TensorRTNetwork

        return TensorRTNetwork(bundle, options)
    raise InputError(f"backend must be auto or one of {', '.join(BACKENDS)}, got {backend!r}")


def open_encoder(bundle: Bundle, options: NetworkOptions | None = None) -> AbstractEncoder | None:
    """The encoder of a bundle whose network works on latents, None where it works on images; on the CPU.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BundleError: The bundle's encoder is corrupt, or none.
    """
    if bundle.model.latent_shape is None:
        return None
    from fastdc.backends.onnx.cpu import usable_cpus
    from fastdc.backends.onnx.image_encoder import OnnxEncoder

    return OnnxEncoder(bundle, (options and options.threads) or usable_cpus())


def _choose(options: NetworkOptions) -> str:
    if options.device.startswith("cuda") and not installed("torch") and installed("onnxruntime"):
        return "onnx"
    if options.device.startswith("cuda") or options.precision not in ("auto", "float32"):
        return "torch"
    if installed("onnxruntime"):
        return "onnx"
    if installed("torch"):
        return "torch"
    raise MissingDependencyError("no backend is installed: pip install 'fastdc[cpu]' for ONNX Runtime")
