"""Class-conditional diffusion models of diffusers: UNets on pixels, and DiT on latents.

* :func:`open_unet2d` opens a ``UNet2DModel`` (Ho et al., arXiv 2006.11239; Nichol & Dhariwal, arXiv 2102.09672), alone
  or in a DDPMPipeline or DDIMPipeline. The class is an index into an embedding that is added to the timestep's. The
  folder does not say whether the last row means "no class"; the caller does, or gives one class name fewer than rows.
* :func:`open_dit` opens a ``DiTPipeline`` (Peebles & Xie, arXiv 2212.09748): a transformer on latents, with "no class"
  after the last class.

Some networks also predict a variance and then return twice the channels. Only the first half, the mean, is used,
because diffusion classifiers compare nothing else.
"""

from collections.abc import Sequence
from typing import Any

from fastdc.bundle import Model
from fastdc.support import BundleError, InputError, require, shown

require("torch", extra="export")

from torch import Tensor, nn  # noqa: E402

from fastdc.sources.base import Source  # noqa: E402
from fastdc.sources.folder import FolderLike, ModelFolder  # noqa: E402
from fastdc.sources.image_size import ImageSize, image_sides  # noqa: E402
from fastdc.sources.latents import open_encoder  # noqa: E402
from fastdc.sources.schedule import schedule_of  # noqa: E402


class UNet2DDenoiser(nn.Module):
    """diffusers' UNet2DModel as F(sample, timestep, class_labels).

    Args:
        unet: The network.
        channels: Number of channels of a sample; further output channels are dropped.
        conditional: Whether the network takes classes; if not, labels are ignored.
    """

    def __init__(self, unet: Any, channels: int, *, conditional: bool) -> None:
        super().__init__()
        self.unet, self.channels, self.conditional = unet, channels, conditional

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The network's output F (b, c, h, w)."""
        labels = class_labels if self.conditional else None
        out: Tensor = self.unet(sample, timestep, class_labels=labels).sample
        return out[:, : self.channels]


class DiTDenoiser(nn.Module):
    """diffusers' DiTTransformer2DModel as F(sample, timestep, class_labels).

    Args:
        transformer: The network.
        channels: Number of channels of a latent; further output channels are dropped.
    """

    def __init__(self, transformer: Any, channels: int) -> None:
        super().__init__()
        self.transformer, self.channels = transformer, channels

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The network's output F (b, c, h, w)."""
        out: Tensor = self.transformer(sample, timestep=timestep, class_labels=class_labels).sample
        return out[:, : self.channels]


def open_unet2d(
    source: FolderLike,
    *,
    class_names: Sequence[str] | None = None,
    image_size: ImageSize = None,
    null_class: bool | None = None,
) -> Source:
    """Opens a UNet2DModel on pixels.

    Args:
        source: A folder in diffusers' format, of the pipeline or of the UNet alone, or a model of the hub.
        class_names: One name per class; default: the class numbers, or "image" for a network without classes.
        image_size: Side or (height, width) of the images; default: the size that the network was trained on. Sides must
            be divisible by 2 once for each halving inside the network.
        null_class: Whether the last row of the class embedding means "no class"; default: only if `class_names` has
            one name fewer than there are rows.

    Raises:
        InputError: An option does not fit the model, the folder does not exist, or it holds no scheduler.
        BundleError: The folder is broken, or the network is of an unsupported kind.
    """
    folder = ModelFolder.open(source).ready()
    unet: Any = folder.component("unet", {"UNet2DModel": _diffusers("UNet2DModel")})
    config = unet.config
    for other in ("vae", "vqvae", "movq"):
        if folder.has(other):
            raise BundleError(f"{folder.name}: a UNet2DModel on latents ({other}) is not supported: expected pixels")
    if config.time_embedding_type != "positional":
        raise BundleError(
            f"{folder.name}: time_embedding_type must be positional, got {shown(config.time_embedding_type)}"
        )
    channels = _channels(folder, config.in_channels, config.out_channels)
    names, null = _unet_classes(folder, config, class_names, null_class)
    height, width = image_sides(image_size, config.sample_size, multiple=2 ** (len(config.block_out_channels) - 1))
    if not folder.has("scheduler"):
        raise InputError(
            f"{folder.name} has no scheduler: give the scheduler_config.json of its training (--scheduler), or put it "
            "beside the config.json"
        )
    schedule, parameterization = schedule_of(folder.config("scheduler"))
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
        provenance=folder.provenance(),
    )


def open_dit(source: FolderLike, *, class_names: Sequence[str] | None = None, image_size: ImageSize = None) -> Source:
    """Opens a DiTPipeline: a transformer on latents, with its image encoder.

    Args:
        source: The pipeline's folder, or a model of the hub.
        class_names: One name per class; default: the names in the folder (id2label), or else the class numbers.
        image_size: Side of the images, which are square; default: the size that the network was trained on. For another
            size the position codes are interpolated, as diffusers does.

    Raises:
        InputError: An option does not fit the model, or the folder does not exist.
        BundleError: The folder is broken, or the network is of an unsupported kind.
    """
    folder = ModelFolder.open(source).ready()
    kind = _diffusers("DiTTransformer2DModel")
    # The published folders use the name of the class from before DiT had a class of its own.
    transformer: Any = folder.component("transformer", {"DiTTransformer2DModel": kind, "Transformer2DModel": kind})
    encoder = open_encoder(folder)
    config = transformer.config
    channels = _channels(folder, config.in_channels, transformer.out_channels)
    if encoder.channels != channels:
        raise BundleError(f"{folder.name}: latents have {encoder.channels} channels, expected {channels}")
    classes = int(config.num_embeds_ada_norm)
    names = _labels(folder, classes) if class_names is None else tuple(class_names)
    if len(names) != classes:
        raise InputError(
            f"{folder.name} has {classes} classes: expected as many class names (--classes), got {len(names)}"
        )
    multiple = encoder.factor * config.patch_size
    height, width = image_sides(image_size, config.sample_size, scale=encoder.factor, multiple=multiple)
    if height != width:
        raise InputError(f"{folder.name} works on square images (--image-size), got {height} x {width}")
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
        provenance=folder.provenance(),
    )


def _diffusers(name: str) -> Any:
    """A class of diffusers."""
    return getattr(require("diffusers", extra="export"), name)


def _channels(folder: ModelFolder, taken: int, given: int) -> int:
    """The channels of a sample. The network returns as many, or twice as many if it predicts a variance."""
    if given not in (taken, 2 * taken):
        raise BundleError(f"{folder.name}: out_channels must be {taken}, or {2 * taken} with a variance, got {given}")
    return int(taken)


def _unet_classes(
    folder: ModelFolder, config: Any, class_names: Sequence[str] | None, null_class: bool | None
) -> tuple[tuple[str, ...], int | None]:
    """The names of the classes, and the index of "no class" or None."""
    given = None if class_names is None else tuple(class_names)
    kind, rows = config.class_embed_type, config.num_class_embeds
    if kind == "timestep":  # any number is a class, so only the caller knows how many there are
        if given is None:
            raise InputError(f"{folder.name} does not say how many classes it has: give class names (--classes)")
        rows = len(given) + bool(null_class)
    elif kind is not None:
        raise BundleError(f"{folder.name}: class_embed_type must be None or timestep, got {shown(kind)}")
    elif rows is None:
        if null_class:
            raise InputError(f"{folder.name} takes no classes: expected no null class (--null-class)")
        if given is not None and len(given) != 1:
            raise InputError(f"{folder.name} takes no classes: expected one class name, got {len(given)}")
        return given or ("image",), None
    null = (given is not None and len(given) == rows - 1) if null_class is None else null_class
    classes = rows - 1 if null else rows
    if classes < 1:
        raise InputError(f"{folder.name} has {rows} class row: expected classes beside the null class")
    names = tuple(map(str, range(classes))) if given is None else given
    if len(names) != classes:
        raise InputError(
            f"{folder.name} has {rows} class rows: expected {classes} class names (--classes), got {len(names)}"
        )
    return names, (classes if null else None)


def _labels(folder: ModelFolder, classes: int) -> tuple[str, ...]:
    """The class names in a pipeline's index, or else the class numbers."""
    known = folder.index.get("id2label")
    if known is None:
        return tuple(map(str, range(classes)))
    wanted = [str(k) for k in range(classes)]
    if not isinstance(known, dict) or set(known) != set(wanted) or not all(isinstance(v, str) for v in known.values()):
        raise BundleError(f"{folder.name}: id2label must name classes 0 to {classes - 1}: give class names (--classes)")
    return tuple(known[key] for key in wanted)


def _set_positions(transformer: Any, patches: int) -> None:
    """Gives a DiT the codes of patches x patches positions, which its ONNX graph then holds as constants."""
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
