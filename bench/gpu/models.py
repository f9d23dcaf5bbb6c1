"""The networks of bench/gpu/networks.py: published architectures, random weights, and the work that is timed.

* edm: the DDPM++ of EDM for CIFAR-10 (Karras et al., arXiv 2206.00364, table 7): 55.7 million parameters, 3 x 32 x 32.
* sd: the UNet of Stable Diffusion 1.5 (860 million parameters) on latents of 4 x 64 x 64, under 10 prompts, which are
  tables of random numbers. It has no encoder of images or texts.
* tiny, tiny-text: the same two kinds of network, small enough for a test on a CPU.

The speed of a network does not depend on its weights, but the length of a race does. The race's limit is set by hand so
that a race takes some tens of evaluations, as with trained networks (edm: 24 to 27, on the CPU). The savings of these
races say nothing about trained networks, so results state evaluations per image beside images per second.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Defaults, Model
from fastdc.diffusion import AbstractSchedule, DiscreteSchedule, EDMSchedule, Parameterization
from fastdc.support import installed, require

CLASSES = 10
TOKENS = 77  # tokens of a prompt in CLIP


@dataclass(frozen=True)
class Work:
    """Amount of work that is timed on a network.

    Attributes:
        batch: Number of evaluations of the largest step.
        draws: Number of draws J.
        full: Number of images under all classes and draws; together they make whole steps.
        raced: Number of images with the race.
        plain: Number of images in the plain loop.
        latency: Largest number of images that are classified one by one.
        copies: Number of noisy copies that are classified as a part of a certificate; 0 for no certificates.
        limit: Limit of the race.
        check: Number of draws in the comparison with the CPU, for one image under all classes.
    """

    batch: int
    draws: int
    full: int
    raced: int
    plain: int
    latency: int
    copies: int
    limit: float
    check: int


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its work.

    Attributes:
        name: Key of :data:`NETWORKS`.
        source: The network as a ``fastdc.sources.Source``, float32 on the CPU.
        work: Amount of work that is timed.
        images: Images uint8 (n, 3, H, W), enough for every part.
        encoder: Makes latents of images; None if the network works on images.
    """

    name: str
    source: Any
    work: Work
    images: npt.NDArray[np.uint8] = field(repr=False)
    encoder: Any = None

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.source.denoiser.parameters())


def missing_for(name: str) -> str:
    """Name of a package that a network needs and that is not installed, or ""."""
    return "" if name in ("edm", "tiny") or installed("diffusers") else "diffusers"


class RepeatedChannels:
    """Takes the place of an encoder, which is not timed: a latent has the image's channels and the first one again."""

    def encode(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Latents (n, 4, h, w) of images (n, 3, h, w)."""
        return np.concatenate([images, images[:, :1]], axis=1)


def open_case(name: str, *, quick: bool = False) -> Case:
    """One of :data:`NETWORKS`, with the same weights and images every time.

    Args:
        name: Key of :data:`NETWORKS`.
        quick: Whether to do only a fraction of the work, with the same step sizes.

    Raises:
        MissingDependencyError: torch is not installed, or diffusers for a network that comes from it.
    """
    torch = require("torch", extra="export")
    make, work = NETWORKS[name]
    if quick:
        few = {"full": -(-work.full // 2), "raced": -(-work.raced // 4), "latency": -(-work.latency // 5)}
        work = replace(work, **few, plain=1, copies=work.copies // 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source = make()
    shape = source.model.image_shape
    count = max(work.full, work.raced, work.plain, work.latency, 1)
    images = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)
    return Case(name, source, work, images, RepeatedChannels() if source.model.latent_shape else None)


def _song(**options: Any) -> Callable[[], Any]:
    """Makes a SongUNet with random weights."""

    def make() -> Any:
        from fastdc.sources import edm_network
        from random_weights import fill

        side = options["img_resolution"]
        given = {"in_channels": 3, "out_channels": 3, "label_dim": CLASSES, **options}
        network = edm_network("SongUNet", given)
        fill(network)
        schedule = EDMSchedule(sigma_min=0.002, sigma_max=80.0, timestep_scale=0.25)
        return _source("edm", network, (3, side, side), schedule, Parameterization("edm", sigma_data=0.5))

    return make


def _text_unet(**options: Any) -> Callable[[], Any]:
    """Makes a UNet2DConditionModel of diffusers; options not given are those of Stable Diffusion 1.5."""

    def make() -> Any:
        diffusers = require("diffusers", extra="export")
        from fastdc.sources.stable_diffusion import TextUNet

        given = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, **options}
        network = TextUNet(diffusers.UNet2DConditionModel(**given))
        width, side = given["cross_attention_dim"], given["sample_size"]
        table = np.random.default_rng(0).standard_normal((CLASSES + 1, TOKENS, width)).astype(np.float32)
        schedule = DiscreteSchedule(
            num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        tables = {"encoder_hidden_states": table}
        return _source("stable-diffusion", network, (4, side, side), schedule, Parameterization("epsilon"), tables)

    return make


def _source(
    family: str,
    network: Any,
    shape: tuple[int, int, int],
    schedule: AbstractSchedule,
    parameterization: Parameterization,
    tables: dict[str, npt.NDArray[np.float32]] | None = None,
) -> Any:
    from fastdc.sources import Source

    latent = shape[0] == 4
    model = Model(
        name=family,
        image_shape=(3, *shape[1:]),
        latent_shape=shape if latent else None,
        class_names=tuple(f"class {k}" for k in range(CLASSES)),
        schedule=schedule,
        parameterization=parameterization,
        null_class=CLASSES,
        defaults=Defaults(levels=None if latent else (0.2, 2.0)),
    )
    denoiser = network.eval().requires_grad_(False)
    encoder = _encoder() if latent else None
    return Source(family=family, model=model, denoiser=denoiser, tables=tables or {}, encoder=encoder)


def _encoder() -> Any:
    """:class:`RepeatedChannels` as a module, which an export needs."""
    torch = require("torch", extra="export")

    class Module(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, pixels: Any) -> Any:
            return torch.cat([pixels, pixels[:, :1]], dim=1)

    return Module()


NETWORKS: dict[str, tuple[Callable[[], Any], Work]] = {
    "edm": (
        _song(
            img_resolution=32,
            augment_dim=9,
            model_channels=128,
            channel_mult=[2, 2, 2],
            num_blocks=4,
            attn_resolutions=[16],
        ),
        Work(batch=512, draws=128, full=4, raced=128, plain=2, latency=50, copies=200, limit=0.04, check=2),
    ),
    "sd": (
        _text_unet(),
        Work(batch=16, draws=32, full=1, raced=8, plain=1, latency=20, copies=0, limit=0.003, check=1),
    ),
    "tiny": (
        _song(img_resolution=8, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4]),
        Work(batch=32, draws=8, full=4, raced=8, plain=2, latency=5, copies=40, limit=0.05, check=2),
    ),
    "tiny-text": (
        _text_unet(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        Work(batch=16, draws=4, full=2, raced=4, plain=1, latency=5, copies=0, limit=0.05, check=1),
    ),
}
"""For each network, a function that makes its source, and its work."""
