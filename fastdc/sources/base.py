"""A diffusion model as its own tools hold it: a torch module for the denoiser, and what fastdc must know beside it.

Every family is brought to one form, so that running it in torch and exporting it are written once. The denoiser is
called as

    F = denoiser(sample, timestep, class_labels, *tables)

with sample (b, c, h, w), timestep float32 (b,) and class_labels int64 (b,), the index of a condition: a class or a
prompt, and after the last one "no class" or the empty prompt where the model knows that. Where conditions are more than
an index, as the embeddings of texts are, *tables* hold them, one row a condition; the denoiser gathers the rows of its
labels itself.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.support import require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from fastdc.sources.text import TextSource  # noqa: E402

Tables = dict[str, npt.NDArray[np.float32]]
"""Condition tables by name, float32 (rows, ...), in the order in which the denoiser takes them."""


@dataclass(frozen=True, eq=False)
class Source:
    """A diffusion model, ready to run in torch or to be exported.

    Attributes:
        family: One of :data:`FAMILIES`.
        model: Shapes, conditions, schedule, parameterisation.
        denoiser: See the module's docstring; float32, on the CPU, in evaluation mode, without gradients.
        tables: Condition tables, with the row of ``model.null_class`` last; empty where an index is all.
        encoder: Images (b, c, H, W) in the model's value range -> latents (b, c, h, w); None: the network works on
            images.
        text: How prompts become tables; None where conditions are no texts.
        provenance: Where the model comes from, as plain values; no paths of the machine.
    """

    family: str
    model: Model
    denoiser: nn.Module = field(repr=False)
    tables: Tables = field(default_factory=dict, repr=False)
    encoder: nn.Module | None = field(default=None, repr=False)
    text: TextSource | None = field(default=None, repr=False)
    provenance: dict[str, str | int | float] = field(default_factory=dict)


FAMILIES = (
    "run",
    "unet2d",
    "dit",
    "stable-diffusion",
    "stable-diffusion-xl",
    "stable-diffusion-3",
    "edm",
    "module",
)


class WithTables(nn.Module):
    """A denoiser with its condition tables bound: called as (sample, timestep, class_labels), as backends do.

    Args:
        denoiser: See the module's docstring.
        tables: Its tables; kept as buffers, so that they move to a device with the module.
    """

    def __init__(self, denoiser: nn.Module, tables: Tables) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._names = tuple(f"table_{i}" for i in range(len(tables)))
        for name, table in zip(self._names, tables.values(), strict=True):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)), persistent=False)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """F; shapes as in the module's docstring."""
        bound = (getattr(self, name) for name in self._names)
        out: Tensor = self.denoiser(sample, timestep, class_labels, *bound)
        return out
