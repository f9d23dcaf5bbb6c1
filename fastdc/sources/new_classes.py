"""A model for other classes than its own: the embedding of classes is replaced, and everything else is kept.

A class-conditional network adds a row of a table, or of a linear map, to the embedding of the noise level. A class
whose name the model knows keeps its row. Another class starts from the row of "no class", at which the network denoises
images of any class, or from the mean of all rows if there is no such row. A network without classes gets a table of
zeros, which leaves it as it is until it is trained. "No class" becomes the index after the last class.

A text-conditional model needs no new weights: other classes are other prompts.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from fastdc.bundle import Defaults, Prompts
from fastdc.support import InputError, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from fastdc.sources.base import Source  # noqa: E402
from fastdc.sources.class_conditional import UNet2DDenoiser  # noqa: E402
from fastdc.sources.edm_layers import Linear  # noqa: E402
from fastdc.sources.edm_networks import DhariwalUNet, FirstChannels, SongUNet  # noqa: E402

_NO_SCALE = 0.1
"""The scale of rows that nothing is known of. Not measured: networks without classes are read with caution."""


def with_classes(source: Source, class_names: Sequence[str]) -> tuple[Source, dict[str, float]]:
    """A class-conditional model for other classes, to be trained on; the network of `source` is changed.

    Args:
        source: A model whose conditions are classes.
        class_names: Names of the K new classes.

    Returns:
        The model, with K classes and the null class K, and the scale of each parameter that holds classes, by its name
        in the denoiser: the standard deviation of the old rows about their mean, in each coordinate. Defaults and
        calibrations of the model, which were fitted to other classes, and its numbers of training images are gone.

    Raises:
        InputError: The model is text-conditional, or its network is of a kind whose classes cannot be replaced.

    Example:
        >>> from fastdc import sources, testing
        >>> net = sources.open_source(testing.write_edm(folder / "net.pkl", "adm"), class_names=tuple("abcd"))
        >>> new, scales = sources.with_classes(net, ("d", "e"))
        >>> new.model.null_class, list(scales)
        (2, ['map_label.weight'])
    """
    names, model = tuple(class_names), source.model
    if source.text is not None or model.prompts:
        raise InputError(f"{model.name} is text-conditional: its classes are prompts")
    network: Any = source.denoiser
    if isinstance(network, FirstChannels):
        network = network.network
    rows = _Rows(_known_names(source), model.null_class, names)
    if isinstance(network, SongUNet | DhariwalUNet):
        _edm_classes(network, rows)
    elif isinstance(getattr(network, "embed_class", None), nn.Embedding):
        network.embed_class = rows.table(network.embed_class.weight, 0)  # MLP and UNet of fastdc.bundle
    elif isinstance(getattr(network, "unet", None), nn.Module):
        _unet_classes(network, rows)
    elif isinstance(getattr(network, "transformer", None), nn.Module):
        _dit_classes(network.transformer, rows)
    elif isinstance(getattr(network, "dit", None), nn.Module):
        _dit_classes(network.dit, rows)  # that of fastdc.bundle
    else:
        raise InputError(f"the classes of {model.name} cannot be replaced: its network is a {type(network).__name__}")
    plain = dataclasses.replace(
        model,
        class_names=names,
        null_class=len(names),
        defaults=Defaults(weighting=model.defaults.weighting, loss=model.defaults.loss),
        identity="",
        calibration=None,
        noised_calibrations=(),
        level_weights=None,
        class_counts=None,
    )
    scales = {name: rows.scales[id(one)] for name, one in source.denoiser.named_parameters() if id(one) in rows.scales}
    return dataclasses.replace(source, model=plain, class_counts=()), scales


def with_prompts(source: Source, prompts: Prompts) -> Source:
    """A text-conditional model for other prompts.

    Args:
        source: A model with its text encoders.
        prompts: The prompts that describe the classes.

    Raises:
        InputError: The model has no text encoders, or prompts of two classes become the same tokens.

    Warns:
        PromptWarning: A prompt is longer than the text encoder reads, or is the same to it as another of its class.

    Example:
        >>> from fastdc import bundle, sources, testing
        >>> words = [bundle.prompts_of(pair) for pair in (("cat", "dog"), ("cube", "cone"))]
        >>> source = sources.open_source(testing.tiny_sd(folder / "sd"), prompts=words[0])
        >>> sources.with_prompts(source, words[1]).model.class_names
        ('cube', 'cone')
    """
    if source.text is None:
        raise InputError(f"{source.model.name} has no text encoders: its classes are no prompts")
    source.text.check(prompts)
    model = dataclasses.replace(
        source.model,
        class_names=prompts.class_names,
        prompts=prompts.texts,
        class_of=prompts.class_of,
        null_class=len(prompts),
        class_counts=None,
    )
    return dataclasses.replace(source, model=model, tables=source.text.tables(prompts.texts), class_counts=())


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Makes the rows of the new classes from those of the old ones.

    Attributes:
        known: Names of the old classes; empty if the model does not state them.
        null: Index of "no class" among the old rows, or None.
        names: Names of the new classes.
        scales: The standard deviation of the old rows, by the identity of the new parameter.
    """

    known: tuple[str, ...]
    null: int | None
    names: tuple[str, ...]
    scales: dict[int, float] = dataclasses.field(default_factory=dict)

    def table(self, old: Tensor | None, width: int) -> nn.Embedding:
        """A table of the new rows, in place of the old ones or, if there are none, of zeros of a width."""
        new = torch.zeros(len(self.names) + 1, width) if old is None else self(old)
        made = nn.Embedding(new.shape[0], new.shape[1], _weight=new)
        made.requires_grad_(False)
        self.note(made.weight, old)
        return made

    def note(self, parameter: Tensor, old: Tensor | None, factor: float = 1.0) -> None:
        """Notes the scale of a new parameter: that of the old rows, times a factor."""
        scale = 0.0 if old is None else float(old.detach().var(dim=0, correction=0).mean().sqrt())
        self.scales[id(parameter)] = factor * (scale or _NO_SCALE)

    def __call__(self, old: Tensor) -> Tensor:
        """The rows (K + 1, width), that of "no class" last, for the old rows."""
        old = old.detach()
        start = old.mean(dim=0) if self.null is None else old[self.null]
        new = [old[self.known.index(name)] if name in self.known else start for name in self.names]
        return torch.stack([*new, start])


def _known_names(source: Source) -> tuple[str, ...]:
    """The names of the classes, unless they are mere numbers that the reader of a foreign model made up."""
    names = source.model.class_names
    made_up = (tuple(map(str, range(len(names)))), tuple(f"class {k}" for k in range(len(names))))
    return () if source.family in ("unet2d", "dit", "edm") and names in made_up else names


def _unet_classes(denoiser: nn.Module, rows: _Rows) -> None:
    """Replaces the classes of a UNet2DModel, which is inside a denoiser."""
    unet: Any = denoiser.get_submodule("unet")
    embedding = unet.class_embedding
    if embedding is not None and not isinstance(embedding, nn.Embedding):
        raise InputError(f"classes cannot be replaced in a UNet that embeds them by a {type(embedding).__name__}")
    old = None if embedding is None else embedding.weight
    unet.class_embedding = rows.table(old, unet.time_embedding.linear_2.out_features)
    unet.register_to_config(num_class_embeds=len(rows.names) + 1, class_embed_type=None)
    if isinstance(denoiser, UNet2DDenoiser):
        denoiser.conditional = True


def _dit_classes(transformer: Any, rows: _Rows) -> None:
    """Replaces the classes of a DiTTransformer2DModel, each block of which has a table of its own."""
    from diffusers.models.embeddings import LabelEmbedding

    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            module.embedding_table = rows.table(module.embedding_table.weight, 0)
            module.num_classes = len(rows.names)
            module.dropout_prob = 0.0  # in training, the batch decides whose class is dropped, not every block
    transformer.register_to_config(num_embeds_ada_norm=len(rows.names))


def _edm_classes(network: SongUNet | DhariwalUNet, rows: _Rows) -> None:
    """Replaces the classes of an EDM network: columns of a linear map, of which "no class" takes none."""
    song, count = isinstance(network, SongUNet), len(rows.names)
    # SongUNet multiplies the label vector by the root of its length.
    before, after = (math.sqrt(length) if song else 1.0 for length in (network.options.label_dim, count))
    if network.map_label is None:
        width = network.noise_channels if isinstance(network, SongUNet) else network.map_layer1.weight.shape[0]
        network.map_label = Linear(count, width, bias=song)
        for parameter in network.map_label.parameters():
            nn.init.zeros_(parameter)
        old = None
    else:
        old = before * network.map_label.weight.detach().T
        if rows.null is not None:
            old = torch.cat([old, torch.zeros_like(old[:1])])
        network.map_label.weight = nn.Parameter((rows(old)[:-1] / after).T.contiguous())
    network.map_label.requires_grad_(False)
    rows.note(network.map_label.weight, old, 1 / after)
    network.options = dataclasses.replace(network.options, label_dim=count)
