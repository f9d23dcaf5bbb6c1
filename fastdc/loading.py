"""Opens a model: its bundle, the network on the devices that are asked for, and the encoder if there is one."""

import os
from collections.abc import Mapping

from fastdc.backends import NetworkOptions, open_encoder, open_network, with_prompts
from fastdc.bundle import Bundle, Prompts, find_model, load_bundle, read_prompts
from fastdc.classifier import DiffusionClassifier
from fastdc.diffusion import kernels
from fastdc.engine import SpreadNetwork, devices_of


def load(
    model: str | os.PathLike[str] | Bundle,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch: int | None = None,
    threads: int | None = None,
    compile: bool = False,  # noqa: A002 - torch's word
    graphs: bool = True,
    tf32: bool = False,
    provider_options: Mapping[str, str] | None = None,
    prompts: Prompts | str | os.PathLike[str] | None = None,
) -> DiffusionClassifier:
    """Loads a model and opens its network.

    Args:
        model: Name of a shipped model ("digits", "digits-mlp", "shapes"), a bundle folder, or a loaded bundle.
        backend: "auto", "onnx", "torch" or "tensorrt".
        device: "auto", "cpu", "cuda" or "cuda:N"; "cuda:N,M" spreads images over several devices (``spread``).
        precision: "auto", "float32", "float16" or "bfloat16".
        batch: Largest number of network evaluations in a step; default 128 or fewer on the CPU, and on a CUDA device by
            its memory and the network's cost.
        threads: CPU threads; default: the CPUs this process may use.
        compile: See ``backends.NetworkOptions``, as for the three that follow.
        graphs: ...
        tf32: ...
        provider_options: ...
        prompts: For a text-conditional bundle with its text encoder: other classes than its own, as
            :class:`fastdc.bundle.prompts.Prompts` or a CSV file of them (columns prompt, classname, classidx).

    Raises:
        BundleError: No such model, or a bundle that is corrupt, hostile or too new.
        MissingDependencyError: The backend's package is not installed.
        BackendError: The backend has no such device or precision.
        InputError: An option is out of range.
    """
    devices = devices_of(device)
    each = [
        NetworkOptions(
            device=one,
            precision=precision,
            batch=batch,
            threads=threads,
            compile=compile,
            graphs=graphs,
            tf32=tf32,
            provider_options=provider_options or {},
        )
        for one in devices
    ]
    bundle = model if isinstance(model, Bundle) else load_bundle(find_model(model))
    if threads is not None:
        kernels.set_num_threads(threads)
    if prompts is not None:
        bundle = with_prompts(bundle, prompts if isinstance(prompts, Prompts) else read_prompts(os.fspath(prompts)))
    networks = tuple(open_network(bundle, backend, options) for options in each)
    network = networks[0] if len(networks) == 1 else SpreadNetwork(networks)
    return DiffusionClassifier(bundle.model, network, open_encoder(bundle, each[0]))
