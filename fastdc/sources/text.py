"""How prompts become condition tables: the tokenizers and text encoders of a pipeline, as one module.

A text-conditional denoiser does not read a prompt but what text encoders made of it, which depends on the prompt alone:
it is computed once a prompt and kept as the row of a table. A :class:`TextSource` computes the rows,

    texts -> tokenizers -> input_ids, ... int64 (b, length) -> module -> tables, float32 (b, ...)

as the pipeline's ``encode_prompt`` does. The tokenizers are kept as the JSON of the ``tokenizers`` package, with
truncation and padding set, so that the same ids come out where transformers is not installed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastdc.support import BundleError, InputError, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

# A tokenizer's JSON has some megabytes; T5's 2.4.
MAX_TOKENIZER_BYTES = 100_000_000

# The longest input that published encoders of prompts take is 512; a tokenizer without a limit says 1e30.
MAX_TOKENS = 4096

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
        tokenizers: One a text encoder: the JSON of a ``tokenizers.Tokenizer`` that truncates and pads to the encoder's
            length.
        module: forward(input_ids, ...) -> the tables, in order; one input int64 (b, length) a tokenizer.
        names: Names of the tables.
        null_is_zero: "No prompt" is a row of zeros; else it is the row of the empty prompt.
    """

    tokenizers: tuple[str, ...] = field(repr=False)
    module: nn.Module = field(repr=False)
    names: tuple[str, ...] = ()
    null_is_zero: bool = False

    @cached_property
    def _parsed(self) -> tuple[object, ...]:
        tokenizers = require("tokenizers", extra="export")
        return tuple(tokenizers.Tokenizer.from_str(text) for text in self.tokenizers)

    def input_ids(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], ...]:
        """Token ids of n texts: int64 (n, length) a tokenizer."""
        found = []
        for tokenizer in self._parsed:
            encodings = tokenizer.encode_batch(list(texts))  # type: ignore[attr-defined]
            found.append(np.array([encoding.ids for encoding in encodings], dtype=np.int64))
        return tuple(found)

    def encode(self, texts: Sequence[str], *, batch: int = 16) -> dict[str, npt.NDArray[np.float32]]:
        """Rows of the tables.

        Args:
            texts: n texts; one that comes several times is encoded once.
            batch: Texts that the encoders see at a time.

        Returns:
            Tables by name, float32 (n, ...).

        Raises:
            InputError: There is no text.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(f"texts must be a list of at least one text, got {texts!r:.80}")
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids = self.input_ids(tuple(row_of))
        parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in self.names]
        with torch.inference_mode():
            for start in range(0, len(row_of), batch):
                rows = self.module(*(torch.from_numpy(part[start : start + batch]) for part in ids))
                for part, values in zip(parts, rows, strict=True):
                    part.append(values.float().numpy())
        unique = {name: np.concatenate(part) for name, part in zip(self.names, parts, strict=True)}
        if len(row_of) == len(texts):
            return unique
        where = [row_of[text] for text in texts]
        return {name: table[where] for name, table in unique.items()}

    def tables(self, prompts: Sequence[str], *, batch: int = 16) -> dict[str, npt.NDArray[np.float32]]:
        """The condition tables of P prompts: their rows, then that of no prompt; float32 (P + 1, ...) by name.

        Raises:
            InputError: There is no prompt.
        """
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts must be a list of at least one text, got {prompts!r:.80}")
        tables = self.encode([*prompts, ""], batch=batch)
        if self.null_is_zero:
            for table in tables.values():
                table[-1] = 0
        return tables


def read_tokenizer(folder: Path, kind: str, *, length: int | None = None) -> str:
    """A tokenizer of transformers as JSON for the ``tokenizers`` package.

    Args:
        folder: What ``save_pretrained`` wrote; only files in it are read, and nothing is executed.
        kind: Class name that the pipeline states for it.
        length: Tokens that a text is cut and filled up to; default the tokenizer's own ``model_max_length``.

    Raises:
        BundleError: The class is none that is known, the files are missing or broken, or the length is not stated.
        MissingDependencyError: transformers is not installed.
    """
    if kind not in _TOKENIZERS:
        raise BundleError(f"{folder.name} must be one of {', '.join(_TOKENIZERS)}, got {kind!r:.80}")
    if not folder.is_dir():
        raise BundleError(f"tokenizer {folder} is missing")
    large = [file.name for file in folder.iterdir() if file.is_file() and file.stat().st_size > MAX_TOKENIZER_BYTES]
    if large:
        raise BundleError(f"{folder / large[0]} must have at most {MAX_TOKENIZER_BYTES // 10**6} MB")
    transformers = require("transformers", extra="export")
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
    except BundleError:
        raise
    except Exception as error:  # json, tokenizers and transformers raise all kinds
        raise BundleError(f"tokenizer {folder} cannot be read: {' '.join(str(error).split()):.120}") from None
    text: str = parsed.to_str()
    return text


def token_count(tokenizer: str) -> int:
    """The length to which the JSON of a tokenizer cuts texts."""
    return int(json.loads(tokenizer)["truncation"]["max_length"])


def check_tokens(tokenizer: str, encoder: nn.Module, name: str) -> None:
    """Raises BundleError where a tokenizer makes ids or lengths that its encoder has no row for."""
    parsed = require("tokenizers", extra="export").Tokenizer.from_str(tokenizer)
    config = encoder.config
    rows = getattr(config, "vocab_size", 0)
    largest = max(parsed.get_vocab(with_added_tokens=True).values(), default=0)
    used = {int(i) for i in parsed.encode("").ids}
    if largest >= rows or max(used, default=0) >= rows:
        raise BundleError(f"{name} knows {rows} tokens, its tokenizer makes ids up to {largest}")
    positions = getattr(config, "max_position_embeddings", MAX_TOKENS)  # T5's are relative: no limit
    if token_count(tokenizer) > positions:
        raise BundleError(f"{name} reads {positions} tokens, its tokenizer makes {token_count(tokenizer)}")


class LastState(nn.Module):
    """The last hidden states of one CLIP: Stable Diffusion 1 and 2.

    Args:
        encoder: transformers' CLIPTextModel.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """(encoder_hidden_states (b, length, width),) of int64 (b, length)."""
        return (self.encoder(input_ids)[0],)


class PenultimateStates(nn.Module):
    """The hidden states of two CLIPs before their last layer, beside each other: Stable Diffusion XL.

    Args:
        encoder: transformers' CLIPTextModel.
        encoder_2: transformers' CLIPTextModelWithProjection, whose projection is the pooled text.
    """

    def __init__(self, encoder: nn.Module, encoder_2: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder_2 = encoder_2

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """(encoder_hidden_states (b, length, both widths), text_embeds (b, projection)) of int64 (b, length) each."""
        first = self.encoder(input_ids, output_hidden_states=True)
        second = self.encoder_2(input_ids_2, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


class JointStates(nn.Module):
    """The states of two CLIPs and, after them, of T5: Stable Diffusion 3.

    The states of the CLIPs stand beside each other, filled up with zeros to the width of T5's, which are more tokens.

    Args:
        encoder: transformers' CLIPTextModelWithProjection.
        encoder_2: Another.
        encoder_3: transformers' T5EncoderModel, or None: the CLIPs' states alone come out, at their own width.
    """

    def __init__(self, encoder: nn.Module, encoder_2: nn.Module, encoder_3: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder_2 = encoder_2
        self.encoder_3 = encoder_3

    def forward(
        self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(encoder_hidden_states (b, all lengths, width), pooled_projections (b, both projections))."""
        first = self.encoder(input_ids, output_hidden_states=True)
        second = self.encoder_2(input_ids_2, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
        if self.encoder_3 is None:
            return states, pooled
        third = self.encoder_3(input_ids_3)[0]
        states = nn.functional.pad(states, (0, third.shape[-1] - states.shape[-1]))
        return torch.cat([states, third], dim=1), pooled
