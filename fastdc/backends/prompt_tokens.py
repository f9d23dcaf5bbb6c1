"""Prompts as the tokens that a text encoder reads, and what is lost on the way.

A tokenizer cuts a prompt at its encoder's length. It also reads words that differ in case or in spaces as the same
tokens. Two classes whose prompts become the same tokens get the same errors, so every image ties between them;
:func:`check_prompts` refuses them, and warns of prompts that lose their end.

A placeholder of textual inversion (Gal et al., arXiv 2208.01618) that has n vectors has n tokens: its name, and the
name followed by _1, _2 and so on. Pipelines of diffusers write all of them into the prompt in place of the name
(``maybe_convert_prompt``), and so does :class:`PromptTokenizer`.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdc.bundle import Prompts
from fastdc.support import InputError, Int64, PromptWarning

_NAMED = 3  # prompts that one warning names


class PromptTokenizer:
    """A tokenizer that truncates and pads, with the placeholders of textual inversion written out.

    Args:
        parsed: A ``tokenizers.Tokenizer`` with truncation and padding.

    Attributes:
        vectors: For each placeholder with several vectors, the text that replaces it.
    """

    def __init__(self, parsed: Any) -> None:
        self._parsed = parsed
        added = {token.content for token in parsed.get_added_tokens_decoder().values()}
        self.vectors: dict[str, str] = {}
        for token in sorted(added):
            words = [token]
            while f"{token}_{len(words)}" in added:
                words.append(f"{token}_{len(words)}")
            if len(words) > 1:
                self.vectors[token] = " ".join(words)

    def expand(self, text: str) -> str:
        """A prompt in which each placeholder is followed by those of its further vectors.

        Raises:
            InputError: One of the prompt's placeholders is a part of another, so that they cannot be told apart.
        """
        if not self.vectors:
            return text
        encoding = self._parsed.encode(text)
        tokens = {token for part in (encoding, *encoding.overflowing) for token in part.tokens}
        found = sorted(tokens & self.vectors.keys())
        for one in found:
            within = next((two for two in found if one != two and one in self.vectors[two]), None)
            if within is not None:
                raise InputError(f"the placeholder {one!r} is a part of {within!r}: a prompt can have only one of them")
            text = text.replace(one, self.vectors[one])
        return text

    def encode(self, texts: Sequence[str]) -> tuple[Int64, list[int]]:
        """The token ids of n texts, int64 (n, length), and the number of tokens that each lost.

        Raises:
            InputError: Placeholders cannot be told apart.
        """
        encodings = self._parsed.encode_batch([self.expand(text) for text in texts])
        lost = [
            sum(mask.count(0) for mask in (part.special_tokens_mask for part in encoding.overflowing))
            for encoding in encodings
        ]
        return np.array([encoding.ids for encoding in encodings], dtype=np.int64), lost


def check_prompts(prompts: Prompts, tokenizers: Sequence[PromptTokenizer]) -> None:
    """Refuses prompts of different classes that all text encoders read as the same tokens; warns of what else is lost.

    Args:
        prompts: The prompts.
        tokenizers: The tokenizer of each text encoder.

    Raises:
        InputError: Prompts of two classes become the same tokens.

    Example:
        >>> from fastdc.backends import PromptTokenizer, check_prompts
        >>> from tokenizers import Tokenizer
        >>> shapes = Tokenizer.from_file(str(fastdc.bundle.find_model("shapes") / "tokenizer.json"))
        >>> check_prompts(fastdc.bundle.prompts_of(["red cube", "red cone"]), [PromptTokenizer(shapes)])
    """
    encoded = [tokenizer.encode(prompts.texts) for tokenizer in tokenizers]
    lost = [max(counts) for counts in zip(*(counts for _, counts in encoded), strict=True)]
    first: dict[tuple[bytes, ...], int] = {}
    twice: list[str] = []
    for p in range(len(prompts)):
        q = first.setdefault(tuple(ids[p].tobytes() for ids, _ in encoded), p)
        both = f"prompts {q} ({_short(prompts.texts[q])}) and {p} ({_short(prompts.texts[p])})"
        if prompts.class_of[q] != prompts.class_of[p]:
            names = " and ".join(_short(prompts.class_names[prompts.class_of[one]]) for one in (q, p))
            cut = f", cut to {encoded[0][0].shape[1]} tokens" if lost[p] else ""
            raise InputError(
                f"{both} of the classes {names} are the same to the text encoder{cut}: expected prompts that it can "
                "tell apart"
            )
        if p != q:
            twice.append(f"{both} of class {_short(prompts.class_names[prompts.class_of[p]])}")
    reads = "text encoder reads" if len(encoded) == 1 else "text encoders read"
    lengths = ", ".join(str(ids.shape[1]) for ids, _ in encoded)
    cuts = [f"prompt {p} ({_short(prompts.texts[p])}) loses {n} token{'s'[: n != 1]}" for p, n in enumerate(lost) if n]
    for found, what in (
        (cuts, f"the {reads} at most {lengths} tokens"),
        (twice, f"the {reads} these prompts as the same"),
    ):
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            warnings.warn(f"{what}: {', '.join(found[:_NAMED])}{more}", PromptWarning, stacklevel=3)


def _short(text: str) -> str:
    """A text in quotes, its middle left out if it is long: prompts often differ at the end."""
    return repr(text if len(text) <= 60 else f"{text[:25]} ... {text[-30:]}")
