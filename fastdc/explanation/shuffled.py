"""Networks with the same weights in another order: what a map must not survive (Adebayo et al., arXiv 1810.03292).

The numbers within each weight tensor are shuffled. Their distribution stays, and so do the scale and the speed of the
network; what it learned is gone.
"""

import copy
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.bundle import DATA, DECODER, DENOISER, ENCODER, TABLES, Bundle, find_model, load_bundle, write_bundle
from fastdc.support import BundleError, InputError, checks, require

if TYPE_CHECKING:
    from torch import nn

_KEPT = (ENCODER, DECODER, TABLES)  # what comes before and after the denoiser stays
_KINDS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8")  # of weights; sizes and indices have 64 bits
_SHAPES = 7  # numbers of a tensor that may be factors of sizes, such as those of Resize, and stay


def shuffled_module(module: "nn.Module", *, layers: int | None = None, seed: int = 0) -> "nn.Module":
    """A copy of a torch module whose weights are shuffled, tensor by tensor.

    Args:
        module: The module, such as that of ``fastdc.robust.as_module``.
        layers: Number of layers to shuffle, counted from the output, by the order in which the module lists its
            parts: the cascading randomisation of the paper. None: all.
        seed: Seed of the order.

    Raises:
        InputError: The module has no weights, or fewer layers.

    Example:
        >>> import torch
        >>> from fastdc.explanation import shuffled_module
        >>> shuffled_module(torch.nn.Linear(3, 2)).weight.shape
        torch.Size([2, 3])
    """
    torch = require("torch")
    made = copy.deepcopy(module)
    parts = [part for part in made.modules() if next(part.parameters(recurse=False), None) is not None]
    if not parts:
        raise InputError("module must have weights, got one without")
    count = len(parts) if layers is None else checks.whole("layers", layers, high=len(parts))
    generator = torch.Generator().manual_seed(checks.seed(seed) % 2**63)
    with torch.no_grad():
        for part in parts[len(parts) - count :]:
            for weight in part.parameters(recurse=False):
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
    return made


def shuffled_bundle(
    model: str | os.PathLike[str] | Bundle, path: str | os.PathLike[str], *, seed: int = 0, overwrite: bool = False
) -> Bundle:
    """Writes a bundle whose network has shuffled weights, for any backend that runs ONNX; needs the package onnx.

    Args:
        model: Name of a shipped model, a bundle's folder, or a bundle. Its calibration, which would not hold, and its
            weights for torch are left out.
        path: The folder to make.
        seed: Seed of the order.
        overwrite: Replace an existing bundle.

    Returns:
        The bundle.

    Raises:
        BundleError: There is no such model, or the folder may not be replaced.
        MissingDependencyError: onnx is not installed.

    Example:
        >>> from fastdc.explanation import shuffled_bundle
        >>> shuffled_bundle("digits-mlp", folder / "shuffled").name
        'digits-mlp, shuffled'
    """
    onnx = require("onnx", extra="export")
    bundle = model if isinstance(model, Bundle) else load_bundle(find_model(model))
    graph = _graph(onnx, bundle)
    rng = np.random.default_rng(checks.seed(seed))
    weights = [tensor for tensor in graph.graph.initializer if _is_weight(onnx, tensor)]
    if not weights:
        raise BundleError(f"bundle {bundle.name!r} has a network without weights")
    for tensor in sorted(weights, key=lambda one: one.name):
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(rng.permutation(values.ravel()).reshape(values.shape), tensor.name)
        )
    left_out = ("files", "format", "version", "calibration", "noised_calibrations", "level_weights", "network", "cost")
    manifest: dict[str, Any] = {key: value for key, value in bundle.manifest.items() if key not in left_out}
    manifest |= {"name": f"{bundle.name}, shuffled", "network": None}
    kept = {name: bundle.read(name) for name in bundle.files if name in _KEPT}
    files = {DENOISER: graph.SerializeToString(deterministic=True), **kept}
    return write_bundle(path, manifest, files, overwrite=overwrite)


def _graph(onnx: Any, bundle: Bundle) -> Any:
    """The denoiser's graph with its weights inside."""
    if DATA not in bundle.files:
        return onnx.load_model_from_string(bundle.read(DENOISER))
    with TemporaryDirectory() as folder:
        for name in (DENOISER, DATA):
            (Path(folder) / name).write_bytes(bundle.read(name))
        return onnx.load(str(Path(folder) / DENOISER))


def _is_weight(onnx: Any, tensor: Any) -> bool:
    kinds = {getattr(onnx.TensorProto, kind) for kind in _KINDS}
    return tensor.data_type in kinds and int(np.prod(tensor.dims)) > _SHAPES
