"""How prompts become condition tables: the tokenizers and text encoders of a pipeline, as one module."""

from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True, eq=False)
class TextSource:
    """Tokenizers and text encoders of a model.

    Attributes:
        tokenizers: One a text encoder: the JSON of a ``tokenizers.Tokenizer`` that truncates and pads to the encoder's
            length.
        module: forward(input_ids, ...) -> the tables, in order; one input int64 (b, length) a tokenizer.
        names: Names of the tables.
    """

    tokenizers: tuple[str, ...] = field(repr=False)
    module: nn.Module = field(repr=False)
    names: tuple[str, ...] = ()
