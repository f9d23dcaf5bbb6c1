"""Opens a model: its bundle, its network on the devices that a user names, and its encoder if there is one."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fastdc.backends import (
    AbstractNetwork,
    NetworkOptions,
    open_chosen,
    open_encoder,
    open_network,
    usable_choice,
    with_prompts,
)
from fastdc.bundle import Bundle, Prompts, find_model, load_bundle, read_prompts
from fastdc.classifier import DiffusionClassifier
from fastdc.diffusion import kernels
from fastdc.engine import devices_of
from fastdc.support import FastdcError

if TYPE_CHECKING:
    import torch


def load(
    model: str | os.PathLike[str] | Bundle,
    *,
    backend: str = "auto",
    device: "str | torch.device" = "auto",
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

    If backend, precision and batch are left open, a choice that ``fastdc bench --write`` kept for this model and this
    machine decides, and the result says so: in its ``repr``, in provenances, and on the logger "fastdc".

    Args:
        model: A shipped model (digits, digits-mlp, mnist: white on black; phantoms; shapes), a bundle folder or Bundle.
        backend: "auto", "onnx", "torch" or "tensorrt".
        device: "auto", "cpu", "cuda", "cuda:N", or such a torch.device; "cuda:N,M" shares images out among devices.
        precision: "auto", "float32", "float16" or "bfloat16".
        batch: Largest number of evaluations in a step; default: at most 128 on the CPU, by memory and cost on a GPU.
        threads: Number of CPU threads (CPU backends only); default: the CPUs that this process may use.
        compile: Whether to compile the network (torch on a CUDA device).
        graphs: Whether to capture steps and replay them (CUDA devices).
        tf32: Whether float32 networks may round the factors of their products to TF32 (CUDA devices).
        provider_options: Options of ONNX Runtime's execution provider, by name; they win over fastdc's own.
        prompts: Other classes than the bundle's own, for a text-conditional bundle with its text encoder:
            :class:`fastdc.bundle.Prompts` or a CSV file of them (columns prompt, classname, classidx).

    Example:
        >>> fastdc.load("digits", threads=1).class_names[:3]
        ('0', '1', '2')

    Raises:
        BundleError: No such model, or a bundle that is corrupt, hostile or too new.
        MissingDependencyError: The backend's package is not installed.
        BackendError: The backend has no such device or precision.
        InputError: An option is out of range.
    """
    options = NetworkOptions(
        precision=precision,
        batch=batch,
        threads=threads,
        compile=compile,
        graphs=graphs,
        tf32=tf32,
        provider_options=provider_options or {},
    )
    each = [replace(options, device=one) for one in devices_of(device)]
    bundle = model if isinstance(model, Bundle) else load_bundle(find_model(model))
    if threads is not None:
        kernels.set_num_threads(threads)
    if prompts is not None:
        bundle = with_prompts(bundle, prompts if isinstance(prompts, Prompts) else read_prompts(os.fspath(prompts)))
    first, *others = (_opened(bundle, backend, wanted, alone=len(each) == 1) for wanted in each)
    return DiffusionClassifier(bundle.model, first, open_encoder(bundle, each[0]), tuple(others))


def _opened(bundle: Bundle, backend: str, options: NetworkOptions, *, alone: bool) -> AbstractNetwork:
    """A bundle's network, by the machine's choice where that applies and the network is on one device alone."""
    choice = usable_choice(bundle, backend, options) if alone else None
    if choice is None:
        return open_network(bundle, backend, options)
    try:
        return open_chosen(bundle, choice, options)
    except FastdcError as error:
        remove = f"fastdc bench {bundle.path} --forget removes it"
        raise type(error)(f"{error} (by the choice of fastdc bench; {remove})") from None
