"""Opens the network and the encoder of a bundle on a backend.

fastdc never falls back silently: a backend or device that is not available raises a one-line error.
"""

import os
from weakref import WeakKeyDictionary

from fastdc.backends.host import usable_cpus
from fastdc.backends.onnx import OnnxCudaNetwork, OnnxEncoder, OnnxNetwork
from fastdc.backends.options import NetworkOptions
from fastdc.backends.protocol import AbstractEncoder, AbstractNetwork
from fastdc.backends.reopening import Reopened
from fastdc.backends.torch import TorchNetwork
from fastdc.bundle import Bundle
from fastdc.diffusion import kernels
from fastdc.support import InputError, MissingDependencyError, check_process, checks, install_hint, installed

BACKENDS = ("onnx", "torch", "tensorrt")
"""Names of the backends that run bundles."""

_makers: "WeakKeyDictionary[AbstractNetwork, int]" = WeakKeyDictionary()
"""The process that made each network."""


def open_network(bundle: Bundle, backend: str = "auto", options: NetworkOptions | None = None) -> AbstractNetwork:
    """The network of a bundle, ready to run.

    Args:
        bundle: The bundle.
        backend: One of :data:`BACKENDS`, or "auto". "auto" is torch for a CUDA device or half precision; otherwise, and
            for a CUDA device without torch, it is onnx if ONNX Runtime is installed, else torch. It is never tensorrt,
            which may build an engine for minutes.
        options: Options of the network; default ``NetworkOptions()``.

    Raises:
        InputError: The backend is unknown.
        MissingDependencyError: The backend's package is not installed.
        BackendError: The backend does not have this device or precision.
        BundleError: The bundle's files do not make a network.

    Example:
        >>> from fastdc.backends import open_network
        >>> from fastdc.bundle import find_model
        >>> open_network(fastdc.load_bundle(find_model("digits-mlp")), "onnx").precision
        'float32'
    """
    chosen = options or NetworkOptions()
    network = _opened(bundle, backend, chosen)
    assert isinstance(network, Reopened)
    network.again = (_network_again, (bundle, backend, chosen))
    _makers[network] = os.getpid()
    return network


def _network_again(bundle: Bundle, backend: str, options: NetworkOptions) -> AbstractNetwork:
    """A network of a pickle, with the threads that its options ask for (``fastdc.load``)."""
    if options.threads is not None:
        kernels.set_num_threads(options.threads)
    return open_network(bundle, backend, options)


def check_usable_here(network: AbstractNetwork) -> None:
    """Refuses a network on a device in a forked child: a device's driver works only in the process that started it.

    Args:
        network: The network.

    Raises:
        BackendError: The network is on a device, and :func:`open_network` made it before a fork.

    Example:
        >>> from fastdc.backends import check_usable_here
        >>> check_usable_here(clf.network)
    """
    if network.device != "cpu":
        check_process(_makers.get(network, os.getpid()), f"the network on {network.device}")


def _opened(bundle: Bundle, backend: str, options: NetworkOptions) -> AbstractNetwork:
    checks.one_of("backend", backend, ("auto", *BACKENDS))
    if backend == "auto":
        backend = default_backend(options)
    _check_used(backend, options)
    if backend == "torch":
        return TorchNetwork.from_bundle(bundle, options)
    if backend == "tensorrt":
        from fastdc.backends.tensorrt import TensorRTNetwork

        return TensorRTNetwork(bundle, options)
    if options.device.startswith("cuda"):
        return OnnxCudaNetwork(bundle, options)
    return OnnxNetwork(bundle, options)


def open_encoder(bundle: Bundle, options: NetworkOptions | None = None) -> AbstractEncoder | None:
    """The image encoder of a bundle, on the CPU; None if the bundle's network works on images.

    Args:
        bundle: The bundle.
        options: Only the number of threads applies; default: all CPUs that the process may use.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BundleError: The bundle's encoder is missing or corrupt.

    Example:
        >>> from fastdc.backends import open_encoder
        >>> from fastdc.bundle import find_model
        >>> open_encoder(fastdc.load_bundle(find_model("digits-mlp"))) is None
        True
    """
    if bundle.model.latent_shape is None:
        return None
    encoder = OnnxEncoder(bundle, (options and options.threads) or usable_cpus())
    encoder.again = (open_encoder, (bundle, options))
    return encoder


def _check_used(backend: str, options: NetworkOptions) -> None:
    """Refuses options that the backend has no use for.

    Raises:
        InputError: An option has no effect.
    """
    on_cpu = options.device == "cpu" or (backend == "onnx" and options.device == "auto")
    if options.compile and backend != "torch":
        raise InputError(f"compile is for backend torch, got backend {backend}")
    if options.tf32 and on_cpu:
        raise InputError("tf32 is for CUDA devices, got device cpu")
    if options.provider_options and (backend != "onnx" or on_cpu):
        raise InputError(f"provider_options are for backend onnx on a CUDA device, got {backend} on {options.device}")


def default_backend(options: NetworkOptions) -> str:
    """The backend that "auto" stands for, see :func:`open_network`.

    Args:
        options: Options of the network.

    Raises:
        MissingDependencyError: No backend is installed.

    Example:
        >>> from fastdc.backends import NetworkOptions, default_backend
        >>> default_backend(NetworkOptions(precision="bfloat16"))
        'torch'
    """
    if options.device.startswith("cuda") and not installed("torch") and installed("onnxruntime"):
        return "onnx"
    if options.device.startswith("cuda") or options.precision not in ("auto", "float32"):
        return "torch"
    if installed("onnxruntime"):
        return "onnx"
    if installed("torch"):
        return "torch"
    raise MissingDependencyError(f"no backend is installed: {install_hint('cpu')} for ONNX Runtime")
