"""How alike texts are to CLIP that differ in one word, or in the order of their words alone.

Pearson et al. (arXiv 2508.20783) find that CLIP's embeddings of texts which differ in left and right are nearly the
same, so that no image can tell them apart, while texts that differ in a colour or a shape are further apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fastdc.matching.clip_matcher import ClipMatcher
from fastdc.support import InputError

WORDS: Mapping[str, frozenset[str]] = {
    "relation": frozenset({"left", "right"}),
    "colour": frozenset({"blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow"}),
    "shape": frozenset({"cone", "cube", "cylinder", "sphere"}),
    "number": frozenset({"one", "two", "three"}),
}
"""Kinds of words: texts that differ in one word of a kind are a pair of it."""

ORDER = "order"
"""The kind of pairs with the same words in another order."""


@dataclass(frozen=True)
class CaptionSimilarity:
    """Cosine similarities of the embeddings of pairs of texts.

    Attributes:
        mean: Their mean.
        low: The smallest.
        high: The largest.
        pairs: Number of pairs.
    """

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f}, {self.pairs} pair{'s'[: self.pairs != 1]})"


def caption_pairs(
    texts: Sequence[str], words: Mapping[str, frozenset[str]] = WORDS
) -> dict[str, list[tuple[int, int]]]:
    """The pairs of texts that differ in a single word of a kind, or in their order.

    Args:
        texts: n texts.
        words: The words of each kind.

    Returns:
        For each kind that has pairs, positions i < j in `texts`.

    Example:
        >>> from fastdc.matching import caption_pairs
        >>> caption_pairs(["a cone left of a cube", "a cone right of a cube", "a cube left of a cone"])
        {'relation': [(0, 1)], 'order': [(0, 2)]}
    """
    found: dict[str, list[tuple[int, int]]] = {kind: [] for kind in (*words, ORDER)}
    split = [text.lower().split() for text in texts]
    for i, j in combinations(range(len(split)), 2):
        if len(split[i]) != len(split[j]):
            continue
        differ = [{a, b} for a, b in zip(split[i], split[j], strict=True) if a != b]
        if len(differ) == 1:
            for kind, known in words.items():
                found[kind] += [(i, j)] * (differ[0] <= known)
        elif differ and sorted(split[i]) == sorted(split[j]):
            found[ORDER].append((i, j))
    return {kind: pairs for kind, pairs in found.items() if pairs}


def caption_similarity(
    matcher: ClipMatcher, texts: Sequence[str], words: Mapping[str, frozenset[str]] = WORDS
) -> dict[str, CaptionSimilarity]:
    """Cosine similarity of the embeddings of texts that differ in one word, for each kind of word.

    Args:
        matcher: CLIP or SigLIP.
        texts: Two texts or more, such as all statements of a task.
        words: The words of each kind.

    Returns:
        For each kind of :func:`caption_pairs` that has pairs, their mean and range.

    Raises:
        InputError: No two texts are such a pair.

    Example:
        >>> from fastdc.matching import ClipMatcher, caption_similarity
        >>> from fastdc.testing import tiny_image_text
        >>> clip = ClipMatcher(tiny_image_text(folder / "clip", "clip"), threads=1)
        >>> caption_similarity(clip, ["a red cube", "a blue cube", "a red cone"])["colour"].pairs
        1
    """
    pairs = caption_pairs(texts, words)
    if not pairs:
        raise InputError(f"expected texts of which two differ in one word ({', '.join(words)}) or in order, got none")
    embedded = matcher.embed(texts)
    out = {}
    for kind, places in pairs.items():
        first, second = np.array(places).T
        cosines = (embedded[first] * embedded[second]).sum(axis=1)
        out[kind] = CaptionSimilarity(float(cosines.mean()), float(cosines.min()), float(cosines.max()), len(places))
    return out
