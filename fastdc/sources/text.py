"""Turns prompts into condition tables: the tokenizers and text encoders of a pipeline, as one module.

A text-conditional denoiser does not read a prompt but the output of text encoders. That output depends on the prompt
alone, so it is computed once per prompt and kept as a row of a table. A :class:`TextSource` computes the rows,

    texts -> tokenizers -> input_ids, ... int64 (b, length) -> module -> tables, float32 (b, ...)

as the pipeline's ``encode_prompt`` does. The tokenizers are kept as the JSON of the ``tokenizers`` package, with
truncation and padding set, so that they give the same ids even if transformers is not installed.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from fastdc.backends import PromptTokenizer, check_prompts
from fastdc.bundle import Prompts
from fastdc.support import (
    BundleError,
    Float32,
    InputError,
    Int64,
    MissingDependencyError,
    install_hint,
    one_line,
    require,
    shown,
)

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

MAX_TOKENIZER_BYTES = 100_000_000
"""Size limit of a tokenizer's files. Its JSON has a few megabytes; T5's has 2.4."""

MAX_TOKENS = 4096
"""Limit of a prompt's length. Published text encoders take up to 512 tokens; a tokenizer without a limit says 1e30."""

_BATCH = 16  # texts that the encoders see at a time

_TOKENIZERS = {
    "CLIPTokenizer": "CLIPTokenizer",
    "CLIPTokenizerFast": "CLIPTokenizer",
    "T5Tokenizer": "T5Tokenizer",
    "T5TokenizerFast": "T5Tokenizer",
}


@dataclass(frozen=True, eq=False)
class TextSource:
    """Tokenizers and text encoders of a model.

    Attributes:
        tokenizers: For each text encoder, the JSON of a ``tokenizers.Tokenizer`` that truncates and pads to the
            encoder's length.
        module: Module whose forward(input_ids, ...) returns the tables in order. It takes one input, int64 (b, length),
            per tokenizer.
        names: Names of the tables.
        null_is_zero: Whether "no prompt" is a row of zeros instead of the row of the empty prompt.
    """

    tokenizers: tuple[str, ...] = field(repr=False)
    module: nn.Module = field(repr=False)
    names: tuple[str, ...] = ()
    null_is_zero: bool = False

    @cached_property
    def _parsed(self) -> tuple[PromptTokenizer, ...]:
        return tuple(prompt_tokenizer(text) for text in self.tokenizers)

    def input_ids(self, texts: Sequence[str]) -> tuple[Int64, ...]:
        """The token ids of n texts: for each tokenizer, int64 (n, length)."""
        return tuple(tokenizer.encode(texts)[0] for tokenizer in self._parsed)

    def check(self, prompts: Prompts) -> None:
        """Refuses prompts of different classes that become the same tokens, and warns of what else is lost.

        Raises:
            InputError: Prompts of two classes become the same tokens.
        """
        check_prompts(prompts, self._parsed)

    def encode(self, texts: Sequence[str]) -> dict[str, Float32]:
        """Computes one row of each table per text.

        Args:
            texts: n texts; repeated texts are encoded once.

        Returns:
            Tables by name, float32 (n, ...).

        Raises:
            InputError: There are no texts, or `texts` is a single one.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(f"texts must be a list of at least one text, got {shown(texts)}")
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids = self.input_ids(tuple(row_of))
        parts: list[list[Float32]] = [[] for _ in self.names]
        with _computing(), torch.inference_mode():
            for start in range(0, len(row_of), _BATCH):
                rows = self.module(*(torch.from_numpy(part[start : start + _BATCH]) for part in ids))
                for part, values in zip(parts, rows, strict=True):
                    part.append(values.float().numpy())
        unique = {name: np.concatenate(part) for name, part in zip(self.names, parts, strict=True)}
        if len(row_of) == len(texts):
            return unique
        where = [row_of[text] for text in texts]
        return {name: table[where] for name, table in unique.items()}

    def tables(self, prompts: Sequence[str]) -> dict[str, Float32]:
        """Computes the condition tables of P prompts.

        Returns:
            Tables by name, float32 (P + 1, ...): the rows of the prompts, then that of "no prompt".

        Raises:
            InputError: There are no prompts, or `prompts` is a single one.
        """
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts must be a list of at least one text, got {shown(prompts)}")
        tables = self.encode([*prompts, ""])
        if self.null_is_zero:
            for table in tables.values():
                table[-1] = 0
        return tables


@contextmanager
def _computing() -> Iterator[None]:
    """Turns torch's exceptions on a text encoder whose config and weights disagree into one line."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise BundleError(f"the text encoder cannot be computed: {one_line(error)}") from None


def read_tokenizer(folder: Path, kind: str, *, length: int | None = None) -> str:
    """Reads a tokenizer of transformers as JSON for the ``tokenizers`` package.

    Args:
        folder: The folder that ``save_pretrained`` wrote; only its files are read, and nothing is executed.
        kind: Name of the tokenizer's class in the pipeline's index.
        length: Number of tokens to truncate and pad texts to; default: the tokenizer's own ``model_max_length``.

    Raises:
        BundleError: The class is unknown, the files are missing or broken, or the length is not stated.
        MissingDependencyError: transformers is not installed, or is too old.
    """
    if kind not in _TOKENIZERS:
        raise BundleError(f"{folder.name} must be one of {', '.join(_TOKENIZERS)}, got {shown(kind)}")
    if not folder.is_dir():
        raise BundleError(f"tokenizer {folder} is missing")
    large = [file.name for file in folder.iterdir() if file.is_file() and file.stat().st_size > MAX_TOKENIZER_BYTES]
    if large:
        raise BundleError(f"{folder / large[0]} must have at most {MAX_TOKENIZER_BYTES // 10**6} MB")
    transformers = require("transformers", extra="export")
    if int(transformers.__version__.partition(".")[0]) < 5:  # its CLIPTokenizer has no backend_tokenizer
        raise MissingDependencyError(
            f"transformers 5 or newer is needed here, got {transformers.__version__}: {install_hint('export')}"
        )
    tokenizers = require("tokenizers", extra="export")
    try:
        loaded = getattr(transformers, _TOKENIZERS[kind]).from_pretrained(folder, local_files_only=True)
        wanted = loaded.model_max_length if length is None else length
        if not 1 < wanted <= MAX_TOKENS:
            raise BundleError(f"{folder.name} must state model_max_length, from 2 to {MAX_TOKENS}, got {wanted:.3g}")
        parsed = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
        parsed.enable_truncation(wanted, direction=loaded.truncation_side)
        parsed.enable_padding(
            length=wanted,
            direction=loaded.padding_side,
            pad_id=loaded.pad_token_id,
            pad_token=loaded.pad_token,
            pad_type_id=loaded.pad_token_type_id,
        )
    except (BundleError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # json, tokenizers and transformers raise all kinds; a panic of Rust is no Exception
        raise BundleError(f"tokenizer {folder} cannot be read: {one_line(error)}") from None
    text: str = parsed.to_str()
    return text


def prompt_tokenizer(text: str) -> PromptTokenizer:
    """A tokenizer, given as JSON, as an object."""
    return PromptTokenizer(require("tokenizers", extra="export").Tokenizer.from_str(text))


def token_count(tokenizer: str) -> int:
    """The number of tokens to which a tokenizer, given as JSON, truncates texts."""
    return int(json.loads(tokenizer)["truncation"]["max_length"])


def check_tokens(tokenizer: str, encoder: nn.Module, name: str) -> None:
    """Refuses a tokenizer whose ids or lengths its text encoder has no rows for.

    Args:
        tokenizer: JSON of the tokenizer.
        encoder: Text encoder of transformers.
        name: Name of the encoder, for the message.

    Raises:
        BundleError: The tokenizer does not fit.
    """
    parsed = require("tokenizers", extra="export").Tokenizer.from_str(tokenizer)
    config = encoder.config
    rows = getattr(config, "vocab_size", 0)
    largest = max(parsed.get_vocab(with_added_tokens=True).values(), default=0)
    used = {int(i) for i in parsed.encode("").ids}
    if largest >= rows or max(used, default=0) >= rows:
        raise BundleError(f"{name} knows {rows} tokens, but its tokenizer makes ids up to {largest}")
    positions = getattr(config, "max_position_embeddings", MAX_TOKENS)  # T5 has relative positions and no limit
    if token_count(tokenizer) > positions:
        raise BundleError(f"{name} reads {positions} tokens, but its tokenizer makes {token_count(tokenizer)}")


class LastState(nn.Module):
    """The last hidden states of one CLIP, for Stable Diffusion 1 and 2.

    Args:
        encoder: transformers' CLIPTextModel.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """The tuple (encoder_hidden_states (b, length, width),) for ids int64 (b, length)."""
        return (self.encoder(input_ids)[0],)


class PenultimateStates(nn.Module):
    """The hidden states of two CLIPs before their last layers, side by side, for Stable Diffusion XL.

    Args:
        encoder: transformers' CLIPTextModel.
        encoder_2: transformers' CLIPTextModelWithProjection, whose projection is the pooled text.
    """

    def __init__(self, encoder: nn.Module, encoder_2: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder_2 = encoder_2

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """The pair encoder_hidden_states (b, length, both widths), text_embeds (b, projection) for ids (b, length)."""
        first = self.encoder(input_ids, output_hidden_states=True)
        second = self.encoder_2(input_ids_2, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


class JointStates(nn.Module):
    """The states of two CLIPs and, after them, those of T5, for Stable Diffusion 3.

    The states of the CLIPs stand side by side, padded with zeros to the width of T5's. T5's states are further tokens.

    Args:
        encoder: transformers' CLIPTextModelWithProjection.
        encoder_2: A second one.
        encoder_3: transformers' T5EncoderModel. If it is None, the output is the CLIPs' states at their own width.
    """

    def __init__(self, encoder: nn.Module, encoder_2: nn.Module, encoder_3: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder_2 = encoder_2
        self.encoder_3 = encoder_3

    def forward(
        self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The pair encoder_hidden_states (b, all lengths, width), pooled_projections (b, both projections)."""
        first = self.encoder(input_ids, output_hidden_states=True)
        second = self.encoder_2(input_ids_2, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
        if self.encoder_3 is None:
            return states, pooled
        third = self.encoder_3(input_ids_3)[0]
        states = nn.functional.pad(states, (0, third.shape[-1] - states.shape[-1]))
        return torch.cat([states, third], dim=1), pooled
