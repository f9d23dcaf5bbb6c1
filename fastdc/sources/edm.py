"""EDM models of NVlabs: a pickled ``EDMPrecond`` around a SongUNet (DDPM++, NCSN++) or a DhariwalUNet (ADM).

The denoiser of Karras et al. (arXiv 2206.00364, eq. 7) is D(x; sigma) = c_skip x + c_out F(c_in x, c_noise, class) with
c_noise = ln(sigma) / 4. Only the network F is loaded. The rest becomes a schedule with time input ln(sigma) / 4 and the
"edm" parameterisation with the file's sigma_data. Images are in [-1, 1]. Files whose sigma is bounded by 0 and
infinity, as training writes them, get [0.002, 80], the range of the paper's sampler.

A class is an index. If training dropped labels, the index after the last class means "no class". A model without
classes (label_dim 0) is loaded with the single class "image": it denoises but has nothing to classify. The option
use_fp16 is ignored: the parameters are float32 in the files, and the network is float32 here.

Not tested on a file of NVlabs; :mod:`fastdc.sources.edm_pickle` reads the file without executing it.
"""

import math
from pathlib import Path
from typing import Any

from fastdc.bundle import Model
from fastdc.diffusion import EDMSchedule, Parameterization
from fastdc.sources.base import Source
from fastdc.sources.edm_networks import build
from fastdc.sources.edm_options import DhariwalOptions, SongOptions, options_from
from fastdc.sources.edm_pickle import PickledModule, read_edm_pickle
from fastdc.support import BundleError, InputError, checks, require, shown

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
TIMESTEP_SCALE = 0.25
_PRECOND = "EDMPrecond"
_DEFAULTS: dict[str, float] = {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5}


def open_edm(path: str | Path, *, class_names: tuple[str, ...] | None = None) -> Source:
    """Opens an EDM pickle, without executing any of it.

    Args:
        path: The ``.pkl`` file.
        class_names: One name per class; default: "class 0", "class 1", ...

    Returns:
        A source of the family "edm", whose provenance names the network.

    Raises:
        InputError: The file cannot be opened, or there are more or fewer names than classes.
        BundleError: The file is corrupt, hostile or over a limit, or it holds another kind of model.
    """
    path = Path(path)
    root = read_edm_pickle(path)
    try:
        return _source(path.stem, root, class_names)
    except BundleError as error:
        raise BundleError(f"{path.name}: {error}") from None


def _source(name: str, root: PickledModule, class_names: tuple[str, ...] | None) -> Source:
    """The source that a file's module describes."""
    if root.class_name != _PRECOND:
        raise BundleError(f"expected an {_PRECOND} around a SongUNet or DhariwalUNet, got {shown(root.class_name)}")
    if root.tensors or set(root.modules) != {"model"}:
        raise BundleError(
            f"an {_PRECOND} must hold one network, 'model', got {', '.join(root.modules) or 'none'}"[:200]
        )
    inner = root.modules["model"]
    options = options_from(inner.class_name, inner.init_kwargs)
    if options.in_channels != options.out_channels:
        raise BundleError(f"network must have as many outputs as inputs, got {options.out_channels} outputs")
    denoiser = _load(options, inner.state_dict())
    numbers = {
        key: _number(key, root.attributes.get(key, root.init_kwargs.get(key, _DEFAULTS[key]))) for key in _DEFAULTS
    }
    side = options.img_resolution
    names = _class_names(options.label_dim, class_names)
    try:
        model = Model(
            name=name,
            image_shape=(options.in_channels, side, side),
            class_names=names,
            schedule=EDMSchedule(
                sigma_min=numbers["sigma_min"] or SIGMA_MIN,
                sigma_max=numbers["sigma_max"] if math.isfinite(numbers["sigma_max"]) else SIGMA_MAX,
                timestep_scale=TIMESTEP_SCALE,
            ),
            parameterization=Parameterization("edm", sigma_data=numbers["sigma_data"]),
            value_range=(-1.0, 1.0),
            null_class=options.label_dim if options.label_dim and options.label_dropout > 0 else None,
        )
    except InputError as error:
        raise BundleError(str(error)) from None
    return Source(family="edm", model=model, denoiser=denoiser, provenance=_provenance(inner.class_name, options))


def _load(options: SongOptions | DhariwalOptions, tensors: dict[str, Tensor]) -> nn.Module:
    """The network with the file's parameters, whose names and shapes must match exactly."""
    with torch.device("meta"):  # takes no memory for any options
        network = build(options)
    wanted = network.state_dict()
    for name in [*wanted, *tensors]:
        if name not in tensors or name not in wanted:
            raise BundleError(f"network parameter {name:.120} is {'missing' if name in wanted else 'not expected'}")
        if tensors[name].shape != wanted[name].shape or not tensors[name].is_floating_point():
            got, shape = tensors[name], tuple(wanted[name].shape)
            raise BundleError(
                f"network parameter {name:.120} must be of floats {shape}, got {got.dtype} {tuple(got.shape)}"
            )
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True, assign=True)
    return network.requires_grad_(False)


def _number(name: str, value: Any) -> float:
    if not checks.is_number(value) or not value >= 0:
        raise BundleError(f"{name} must be a number of at least 0, got {shown(value)}")
    return float(value)


def _class_names(label_dim: int, given: tuple[str, ...] | None) -> tuple[str, ...]:
    if given is not None:
        if len(given) != max(1, label_dim):
            raise InputError(f"the class names (--classes) must hold {max(1, label_dim)} names, got {len(given)}")
        return tuple(given)
    return tuple(f"class {index}" for index in range(label_dim)) if label_dim else ("image",)


def _provenance(network: str, options: SongOptions | DhariwalOptions) -> dict[str, str | int | float]:
    known: dict[str, str | int | float] = {
        "format": "NVlabs EDM pickle",
        "network": network,
        "label_dim": options.label_dim,
        "label_dropout": options.label_dropout,
    }
    if isinstance(options, SongOptions):
        known |= {"embedding_type": options.embedding_type, "encoder_type": options.encoder_type}
    if not options.label_dim:
        known["use"] = "denoising only: the model has no classes"
    return known
