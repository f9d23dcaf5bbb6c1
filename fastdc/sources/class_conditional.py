"""Class-conditional diffusion models of diffusers: UNets on pixels, and DiT on latents.

* :func:`open_unet2d`: ``UNet2DModel`` (Ho et al., arXiv 2006.11239; Nichol & Dhariwal, arXiv 2102.09672), in a
  DDPMPipeline, DDIMPipeline or alone. The class is an index into an embedding that is added to the timestep's. The
  folder does not say whether the last row is "no class": the caller does, or gives one class name less than rows.
* :func:`open_dit`: ``DiTPipeline`` (Peebles & Xie, arXiv 2212.09748): a transformer on latents, with "no class" after
  the last class.

Networks that also give a variance (twice the channels) are used for their first half, the mean; diffusion classifiers
compare that alone.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastdc.bundle import Model
from fastdc.support import BundleError, InputError, require

require("torch", extra="export")

from torch import Tensor, nn  # noqa: E402

from fastdc.sources.base import Source  # noqa: E402
from fastdc.sources.folder import ModelFolder  # noqa: E402
from fastdc.sources.latents import open_encoder  # noqa: E402
from fastdc.sources.schedule import schedule_of  # noqa: E402

MAX_SIDE = 4096

FolderLike = str | os.PathLike[str] | ModelFolder
ImageSize = int | Sequence[int] | None


class UNet2DDenoiser(nn.Module):
    """diffusers' UNet2DModel as F(sample, timestep, class_labels).

    Args:
        unet: The network.
        channels: Of the samples; further ones that the network gives are left out.
        conditional: Whether the network takes classes; else labels are not looked at.
    """

    def __init__(self, unet: Any, channels: int, *, conditional: bool) -> None:
        super().__init__()
        self.unet, self.channels, self.conditional = unet, channels, conditional

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """F (b, c, h, w)."""
        labels = class_labels if self.conditional else None
        out: Tensor = self.unet(sample, timestep, class_labels=labels).sample
        return out[:, : self.channels]


class DiTDenoiser(nn.Module):
    """diffusers' DiTTransformer2DModel as F(sample, timestep, class_labels).

    Args:
        transformer: The network.
        channels: Of the latents; further ones that the network gives are left out.
    """

    def __init__(self, transformer: Any, channels: int) -> None:
        super().__init__()
        self.transformer, self.channels = transformer, channels

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """F (b, c, h, w)."""
        out: Tensor = self.transformer(sample, timestep=timestep, class_labels=class_labels).sample
        return out[:, : self.channels]


def open_unet2d(
    source: FolderLike,
    *,
    class_names: Sequence[str] | None = None,
    image_size: ImageSize = None,
    null_class: bool | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> Source:
    """A UNet2DModel on pixels.

    Args:
        source: A folder in diffusers' format (the pipeline's or the UNet's own), or a hub's id.
        class_names: One a class; default their numbers, for a network without classes "image".
        image_size: Side or (height, width) of the images; default what the network was trained on. Sides must be
            divisible by 2 for each halving inside the network.
        null_class: Whether the last row of the class embedding is "no class"; default: whether `class_names` has one
            name less than there are rows.
        scheduler: A scheduler_config.json, where the folder has none.

    Raises:
        InputError: An option does not fit the model, or the folder does not exist.
        BundleError: The folder is broken, or the network of a kind that is not supported.
    """
    folder = ModelFolder.open(source)
    unet: Any = folder.component("unet", {"UNet2DModel": _diffusers("UNet2DModel")})
    config = unet.config
    for other in ("vae", "vqvae", "movq"):
        if folder.has(other):
            raise BundleError(f"{folder.name}: a UNet2DModel on latents ({other}) is not supported: expected pixels")
    if config.time_embedding_type != "positional":
        raise BundleError(f"{folder.name}: time_embedding_type must be positional, got {config.time_embedding_type!r}")
    channels = _channels(folder, config.in_channels, config.out_channels)
    names, null = _unet_classes(folder, config, class_names, null_class)
    height, width = _sides(image_size, config.sample_size, 2 ** (len(config.block_out_channels) - 1))
    if scheduler is None and not folder.has("scheduler"):
        raise InputError(f"{folder.name} has no scheduler: give scheduler, the config of the one it was trained with")
    schedule, parameterization = schedule_of(folder.config("scheduler") if scheduler is None else scheduler)
    conditional = unet.class_embedding is not None
    return Source(
        family="unet2d",
        model=Model(
            name=folder.name,
            image_shape=(channels, height, width),
            class_names=names,
            schedule=schedule,
            parameterization=parameterization,
            null_class=null,
        ),
        denoiser=UNet2DDenoiser(unet, channels, conditional=conditional).eval(),
        provenance=_provenance(folder),
    )


def open_dit(source: FolderLike, *, class_names: Sequence[str] | None = None, image_size: ImageSize = None) -> Source:
    """A DiTPipeline: a transformer on latents, with its encoder of images.

    Args:
        source: The pipeline's folder, or a hub's id.
        class_names: One a class; default what the folder calls them (id2label), else their numbers.
        image_size: Side of the images, which are square; default what the network was trained on. For another size its
            position codes are computed between those that it was trained with, as diffusers does.

    Raises:
        InputError: An option does not fit the model, or the folder does not exist.
        BundleError: The folder is broken, or the network of a kind that is not supported.
    """
    folder = ModelFolder.open(source)
    kind = _diffusers("DiTTransformer2DModel")
    # The published folders call the class by the name that it had before it was one of its own.
    transformer: Any = folder.component("transformer", {"DiTTransformer2DModel": kind, "Transformer2DModel": kind})
    encoder = open_encoder(folder)
    config = transformer.config
    channels = _channels(folder, config.in_channels, transformer.out_channels)
    if encoder.channels != channels:
        raise BundleError(f"{folder.name}: latents have {encoder.channels} channels, the transformer takes {channels}")
    classes = int(config.num_embeds_ada_norm)
    names = _labels(folder, classes) if class_names is None else tuple(class_names)
    if len(names) != classes:
        raise InputError(f"{folder.name} has {classes} classes: expected as many class_names, got {len(names)}")
    size = config.sample_size * encoder.factor
    height, width = _sides(image_size, size, encoder.factor * config.patch_size)
    if height != width:
        raise InputError(f"{folder.name} works on square images, got image_size {height} x {width}")
    latent = height // encoder.factor
    _set_positions(transformer, latent // config.patch_size)
    schedule, parameterization = schedule_of(folder.config("scheduler"))
    return Source(
        family="dit",
        model=Model(
            name=folder.name,
            image_shape=(3, height, width),
            class_names=names,
            schedule=schedule,
            parameterization=parameterization,
            null_class=classes,
            latent_shape=(channels, latent, latent),
        ),
        denoiser=DiTDenoiser(transformer, channels).eval(),
        encoder=encoder,
        provenance=_provenance(folder),
    )


def _diffusers(name: str) -> Any:
    return getattr(require("diffusers", extra="export"), name)


def _channels(folder: ModelFolder, taken: int, given: int) -> int:
    """Channels of samples: the network gives as many, or twice with a variance."""
    if given not in (taken, 2 * taken):
        raise BundleError(f"{folder.name}: out_channels must be {taken}, or {2 * taken} with a variance, got {given}")
    return int(taken)


def _unet_classes(
    folder: ModelFolder, config: Any, class_names: Sequence[str] | None, null_class: bool | None
) -> tuple[tuple[str, ...], int | None]:
    """Names of the classes, and the index of "no class" or None."""
    given = None if class_names is None else tuple(class_names)
    kind, rows = config.class_embed_type, config.num_class_embeds
    if kind == "timestep":  # any number is a class: only the caller knows how many there are
        if given is None:
            raise InputError(f"{folder.name} does not say how many classes it has: give class_names")
        rows = len(given) + bool(null_class)
    elif kind is not None:
        raise BundleError(f"{folder.name}: class_embed_type must be None or timestep, got {kind!r:.80}")
    elif rows is None:
        if null_class:
            raise InputError(f"{folder.name} takes no classes: expected no null_class")
        if given is not None and len(given) != 1:
            raise InputError(f"{folder.name} takes no classes: expected one class name, got {len(given)}")
        return given or ("image",), None
    null = (given is not None and len(given) == rows - 1) if null_class is None else null_class
    classes = rows - 1 if null else rows
    if classes < 1:
        raise InputError(f"{folder.name} has {rows} class row: expected classes beside the null class")
    names = tuple(map(str, range(classes))) if given is None else given
    if len(names) != classes:
        raise InputError(f"{folder.name} has {rows} class rows: expected {classes} class_names, got {len(names)}")
    return names, (classes if null else None)


def _labels(folder: ModelFolder, classes: int) -> tuple[str, ...]:
    """Class names that a pipeline's index gives, else numbers."""
    known = folder.index.get("id2label")
    if known is None:
        return tuple(map(str, range(classes)))
    wanted = [str(k) for k in range(classes)]
    if not isinstance(known, dict) or set(known) != set(wanted) or not all(isinstance(v, str) for v in known.values()):
        raise BundleError(f"{folder.name}: id2label must name classes 0 to {classes - 1}: give class_names")
    return tuple(known[key] for key in wanted)


def _sides(image_size: ImageSize, native: Any, factor: int) -> tuple[int, int]:
    """(height, width) of images, which must be divisible by `factor`."""
    wanted = native if image_size is None else image_size
    if wanted is None:
        raise InputError("the model does not say what size it was trained on: give image_size")
    sides = tuple(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else (wanted, wanted)
    plain = len(sides) == 2 and all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if not plain or any(side < 1 or side > MAX_SIDE or side % factor for side in sides):
        raise InputError(f"image_size must be a side or (height, width), divisible by {factor}, got {wanted!r:.80}")
    return sides[0], sides[1]


def _set_positions(transformer: Any, patches: int) -> None:
    """Gives a DiT the position codes of `patches` squared, so that a graph of it holds them as constants."""
    embed = transformer.pos_embed
    if (embed.height, embed.width) == (patches, patches):
        return
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    codes = get_2d_sincos_pos_embed(
        embed.pos_embed.shape[-1],
        (patches, patches),
        base_size=embed.base_size,
        interpolation_scale=embed.interpolation_scale,
        output_type="pt",
    )
    embed.pos_embed = codes.float()[None]
    embed.height = embed.width = patches


def _provenance(folder: ModelFolder) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {"pipeline": folder.pipeline, "source": folder.name}
    if folder.revision:
        found["revision"] = folder.revision
    return found
