"""A diffusion model from another tool: its denoiser as a torch module, and the facts that fastdc needs besides.

Every family is brought to this one form, so that running a model in torch and exporting it are written once. The
denoiser is called as

    F = denoiser(sample, timestep, class_labels, *tables)

with sample (b, c, h, w), timestep float32 (b,) and class_labels int64 (b,). A label is the index of a condition: a
class or a prompt. The index after the last condition stands for "no class", or the empty prompt, if the model knows
one. If a condition is more than an index, as the embedding of a text is, *tables* hold one row per condition, and the
denoiser gathers the rows of its labels itself.
"""

from dataclasses import dataclass, field

import numpy as np

from fastdc.bundle import Model, SeenImages
from fastdc.support import Float32, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from fastdc.sources.text import TextSource  # noqa: E402

Tables = dict[str, Float32]
"""Condition tables by name, float32 (rows, ...), in the order in which the denoiser takes them."""


@dataclass(frozen=True, eq=False)
class Source:
    """A diffusion model, ready to run in torch or to be exported.

    Attributes:
        family: The kind of model: "unet2d", "dit", "stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3",
            "edm", or "module" for a torch module of your own.
        model: Shapes, conditions, schedule and parameterisation.
        denoiser: The network ``F(sample, timestep, class_labels, *tables)``, float32, on the CPU, in evaluation mode
            and without gradients. Sample and F have shape (b, c, h, w); timestep is float32 (b,) and
            class_labels int64 (b,).
        tables: Condition tables, with the row of ``model.null_class`` last; empty if a condition is an index alone.
        encoder: Module that turns images (b, c, H, W) in the model's value range into latents (b, c, h, w); None if the
            network works on images.
        text: The text encoders that turn prompts into tables; None if the conditions are not texts.
        provenance: Where the model comes from, as plain values; it holds no paths of this machine.
        class_counts: Number of training images of each class; empty if it is not known.
        seen: The images that the model was trained on, or chosen on, as far as they are known.
    """

    family: str
    model: Model
    denoiser: nn.Module = field(repr=False)
    tables: Tables = field(default_factory=dict, repr=False)
    encoder: nn.Module | None = field(default=None, repr=False)
    text: TextSource | None = field(default=None, repr=False)
    provenance: dict[str, str | int | float] = field(default_factory=dict)
    class_counts: tuple[int, ...] = ()
    seen: SeenImages = field(default_factory=SeenImages, repr=False)


class WithTables(nn.Module):
    """A denoiser bound to its condition tables, called as (sample, timestep, class_labels).

    Args:
        denoiser: The denoiser of a :class:`Source`.
        tables: The condition tables, kept as buffers, so that they move to a device with the module.
    """

    def __init__(self, denoiser: nn.Module, tables: Tables) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._names = tuple(f"table_{i}" for i in range(len(tables)))
        for name, table in zip(self._names, tables.values(), strict=True):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)), persistent=False)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The network's output F (b, c, h, w) for sample (b, c, h, w), timestep (b,) and class_labels int64 (b,)."""
        bound = (getattr(self, name) for name in self._names)
        out: Tensor = self.denoiser(sample, timestep, class_labels, *bound)
        return out
