"""EDM models of NVlabs: a pickled preconditioner around a SongUNet (DDPM++, NCSN++) or a DhariwalUNet (ADM).

Only the network F is loaded. The preconditioner becomes a schedule and a parameterisation
(:mod:`fastdc.sources.edm_preconditioning`). Images are in [-1, 1].

A class is an index. If training dropped labels, the index after the last class means "no class". A model without
classes (label_dim 0) is loaded with the single class "image": it denoises but has nothing to classify. The option
use_fp16 is ignored: the parameters are float32 in the files, and the network is float32 here.

Not tested on a file of NVlabs; :mod:`fastdc.sources.edm_pickle` reads the file without executing it.
"""

from pathlib import Path

from fastdc.bundle import Model
from fastdc.sources.base import Source
from fastdc.sources.edm_networks import FirstChannels, build
from fastdc.sources.edm_options import DhariwalOptions, SongOptions, options_from
from fastdc.sources.edm_pickle import PickledModule, read_edm_pickle
from fastdc.sources.edm_preconditioning import outputs_per_channel, preconditioning
from fastdc.support import BundleError, InputError, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402


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
    try:
        schedule, parameterization = preconditioning(root)
    except InputError as error:
        raise BundleError(f"{root.class_name}: {error}") from None
    if set(root.modules) != {"model"}:
        raise BundleError(
            f"a {root.class_name} must hold one network, 'model', got {', '.join(root.modules) or 'none'}"[:200]
        )
    inner = root.modules["model"]
    options = options_from(inner.class_name, inner.init_kwargs)
    channels, wanted = options.in_channels, options.in_channels * outputs_per_channel(root)
    if options.out_channels != wanted:
        raise BundleError(
            f"the network of {root.class_name} must have {wanted} outputs for {channels} channels, "
            f"got {options.out_channels}"
        )
    denoiser = _load(options, inner.state_dict())
    if wanted > channels:
        denoiser = FirstChannels(denoiser, channels).eval()
    side = options.img_resolution
    names = _class_names(options.label_dim, class_names)
    try:
        model = Model(
            name=name,
            image_shape=(channels, side, side),
            class_names=names,
            schedule=schedule,
            parameterization=parameterization,
            value_range=(-1.0, 1.0),
            null_class=options.label_dim if options.label_dim and options.label_dropout > 0 else None,
        )
    except InputError as error:
        raise BundleError(str(error)) from None
    return Source(family="edm", model=model, denoiser=denoiser, provenance=_provenance(root, options))


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


def _class_names(label_dim: int, given: tuple[str, ...] | None) -> tuple[str, ...]:
    if given is not None:
        if len(given) != max(1, label_dim):
            raise InputError(f"the class names (--classes) must hold {max(1, label_dim)} names, got {len(given)}")
        return tuple(given)
    return tuple(f"class {index}" for index in range(label_dim)) if label_dim else ("image",)


def _provenance(root: PickledModule, options: SongOptions | DhariwalOptions) -> dict[str, str | int | float]:
    known: dict[str, str | int | float] = {
        "format": "NVlabs EDM pickle",
        "preconditioning": root.class_name,
        "network": root.modules["model"].class_name,
        "label_dim": options.label_dim,
        "label_dropout": options.label_dropout,
    }
    if isinstance(options, SongOptions):
        known |= {"embedding_type": options.embedding_type, "encoder_type": options.encoder_type}
    if not options.label_dim:
        known["use"] = "denoising only: the model has no classes"
    return known
