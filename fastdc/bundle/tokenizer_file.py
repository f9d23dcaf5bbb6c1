"""The tokenizers of a bundle: JSON of the package ``tokenizers``, checked before the package sees it.

The package trusts its files. A padding of 2^40 tokens ends the process, a regular expression can run for years,
normalizers can multiply a text without end, and numbers that do not fit together end in a panic. What is used of the
format is little: BPE (CLIP), Unigram (T5) and whole words, with a fixed length. So every part must be of a type that is
listed here, every number in a range, and a regular expression of a form that takes linear time. Growth, parts and the
length of tokens are limited so that a prompt of 10,000 characters takes about a second at most. Decoders are dropped:
nothing is decoded.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.support import BundleError, checks, shown, strict_json

MAX_TOKENIZER_BYTES = 64_000_000
"""Largest file; CLIP's has 2 MB, T5's 2.4."""

MAX_TOKENS = 4096
"""Largest length of a prompt in tokens; published text encoders take up to 512."""

_MAX_VOCABULARY = 2_000_000
_MAX_ADDED = 10_000
_MAX_CHARACTERS = 1000  # in a token
_MAX_PARTS = 16  # in a sequence of normalizers or of others
_MAX_SPLITTERS = 4  # parts of the pre_tokenizer, each of which takes 0.3 s for 400,000 pieces; CLIP and T5 have 3
_MAX_GROWTH = 40  # of a text by all normalizers together; CLIP's make 18, T5's 36
_MAX_LOOKS = 2048  # growth times bytes of the longest token: what Unigram reads per character; T5 makes 36 * 20
_MAX_TRIE_BYTES = 2**24  # of a character map; T5's has 177 152
_MAX_ID = 2**31 - 1

# The fields that each object may have.
_FIELDS = {
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"),
    "model",
}

_TOKEN_FIELDS = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}
_PADDING = {"strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token"}
_BPE = {
    *("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback"),
    *("ignore_merges", "vocab", "merges"),
}

# By how much each normalizer can lengthen a text, in characters. Replace and Precompiled state it themselves.
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12}
_GROWTH |= {"Strip": 1, "StripAccents": 1, "Nmt": 1, "Prepend": 1, "Replace": 1, "Precompiled": 1}
_PRE_TOKENIZERS = (
    *("ByteLevel", "WhitespaceSplit", "Whitespace", "Metaspace", "Split", "BertPreTokenizer", "Punctuation", "Digits"),
)

# A regular expression has alternatives of characters, escapes and classes, none inside another. In an alternative, at
# most one is optional, and only the last may be repeated: nothing that could fail follows it, so a search never goes
# back over it.
_ESCAPE = r"\\(?:[sSdDwWnrt]|[pP]\{\^?[A-Za-z_]{1,32}\}|[^A-Za-z0-9])"
_ATOM = rf"{_ESCAPE}|\[\^?(?:{_ESCAPE}|[^\\\[\]&])+\]|[^\\\[\](){{}}*+?|^$]"
_PIECE = re.compile(rf"(?:{_ATOM})(?P<mark>\?|[*+]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}})?|(?P<bar>\|)")


def checked_tokenizer(content: bytes, path: Path) -> str:
    """Checks a tokenizer, and returns it as JSON for the package ``tokenizers``.

    Args:
        content: Bytes of the file.
        path: Name of the file, for the message.

    Returns:
        The JSON of a tokenizer that truncates and pads every text to one length, without a decoder.

    Raises:
        BundleError: The content is no JSON, or a part of it is unknown, out of range, or takes too long to run.

    Example:
        >>> from fastdc.bundle import find_model, checked_tokenizer
        >>> bundle = fastdc.load_bundle(find_model("shapes"))
        >>> checked_tokenizer(bundle.read("tokenizer.json"), folder / "tokenizer.json")[:16]
        '{"version": "1.0'
    """
    if len(content) > MAX_TOKENIZER_BYTES:
        raise BundleError(f"{path} must have at most {MAX_TOKENIZER_BYTES // 10**6} MB, got {len(content)} bytes")
    tokenizer = strict_json(content, path)
    try:
        _check(tokenizer)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    return json.dumps({**tokenizer, "decoder": None})


def _check(tokenizer: Any) -> None:
    entry = _object("the tokenizer", tokenizer, _FIELDS)
    length = _fixed_length(entry)
    for token in _list("added_tokens", entry.get("added_tokens"), _MAX_ADDED):
        fields = _object("an added token", token, _TOKEN_FIELDS)
        _index("id of an added token", fields.get("id"))
        _token("content of an added token", fields.get("content"))
    growth = 1
    for kind, part in _parts("normalizer", entry.get("normalizer"), "normalizers"):
        growth *= _growth(kind, part)
    if growth > _MAX_GROWTH:
        raise BundleError(f"normalizers may lengthen a text by at most {_MAX_GROWTH}, these by up to {growth}")
    splitters = []
    for kind, part in _parts("pre_tokenizer", entry.get("pre_tokenizer"), "pretokenizers", _MAX_SPLITTERS):
        splitters.append(_known("pre_tokenizer", kind, _PRE_TOKENIZERS))
        if kind == "Split":
            _check_pattern(part.get("pattern"))
    if splitters.count("ByteLevel") > 1:  # each one writes a byte as a character of up to two bytes
        raise BundleError("pre_tokenizer must have at most one ByteLevel")
    added = 0
    for kind, part in _parts("post_processor", entry.get("post_processor"), "processors"):
        added += _PROCESSORS[_known("post_processor", kind, _PROCESSORS)](part)
    if added >= length:
        raise BundleError(f"truncation to {length} tokens leaves none beside the {added} that post_processor adds")
    model = _object("model", entry.get("model"), None)
    _MODELS[_known("model", model.get("type"), _MODELS)](model)
    if model["type"] == "Unigram":
        longest = max(len(token.encode(errors="replace")) for token, _ in model["vocab"])
        if growth * longest > _MAX_LOOKS:
            raise BundleError(
                f"a Unigram model's longest token may have at most {_MAX_LOOKS // growth} bytes if normalizers "
                f"lengthen a text by up to {growth}, got {longest}"
            )


def _fixed_length(entry: dict[str, Any]) -> int:
    """The length to which texts are truncated and padded, which must be the same."""
    cut = _object("truncation", entry.get("truncation"), {"direction", "max_length", "strategy", "stride"})
    pad = _object("padding", entry.get("padding"), _PADDING)
    fixed = _object("padding.strategy", pad.get("strategy"), {"Fixed"})
    length, padded = cut.get("max_length"), fixed.get("Fixed")
    if not checks.is_whole(length) or not 2 <= length <= MAX_TOKENS or padded != length:
        raise BundleError(
            f"truncation.max_length and padding.strategy.Fixed must be one number from 2 to {MAX_TOKENS}, "
            f"got {shown(length)} and {shown(padded)}"
        )
    for name, value, allowed in (
        ("truncation.strategy", cut.get("strategy"), ("LongestFirst", "OnlyFirst")),
        ("truncation.stride", cut.get("stride"), (0,)),
        ("padding.pad_to_multiple_of", pad.get("pad_to_multiple_of"), (None,)),
    ):
        if value not in allowed:
            raise BundleError(f"{name} must be {' or '.join(map(str, allowed))}, got {shown(value)}")
    _index("padding.pad_id", pad.get("pad_id"))
    _token("padding.pad_token", pad.get("pad_token"))
    return int(length)


def _parts(name: str, part: Any, listed: str, most: int = _MAX_PARTS) -> Iterator[tuple[str, dict[str, Any]]]:
    """The type and the fields of each part that is not a sequence, in order."""
    waiting = [] if part is None else [part]
    count = 0
    while waiting:
        fields = _object(name, waiting.pop(0), None)
        count += 1
        if count > most:
            raise BundleError(f"{name} must have at most {most} parts, but has more")
        kind = fields.get("type")
        if kind == "Sequence":
            waiting = [*_list(f"{name}.{listed}", fields.get(listed), _MAX_PARTS), *waiting]
        elif isinstance(kind, str):
            yield kind, fields
        else:
            raise BundleError(f"{name} must have a type, got {shown(kind)}")


def _growth(kind: str, part: dict[str, Any]) -> int:
    """The largest factor by which a normalizer lengthens a text."""
    if kind == "Replace":
        _check_pattern(part.get("pattern"))
        return 1 + len(_token("content of a Replace", part.get("content"), low=0))
    if kind == "Prepend":
        return 1 + len(_token("text of a Prepend", part.get("prepend")))
    if kind == "Precompiled":
        return _longest_replacement(part.get("precompiled_charsmap"))
    return _GROWTH[_known("normalizer", kind, _GROWTH)]


def _check_pattern(pattern: Any) -> None:
    """Refuses a regular expression that could take more than linear time."""
    fields = _object("pattern", pattern, {"String", "Regex"})
    if len(fields) != 1:
        raise BundleError(f"pattern must be a String or a Regex, got {shown(fields)}")
    text = _token("pattern", *fields.values())
    if "String" in fields:
        return
    at, optional, ended = 0, 0, False
    while at < len(text):
        found = _PIECE.match(text, at)
        if found is None or (ended and not found["bar"]) or optional > 1:
            raise BundleError(
                "a regular expression must have alternatives of characters and classes, of which the last may be "
                f"repeated, got {shown(text)}"
            )
        at, mark = found.end(), found["mark"]
        ended = mark not in (None, "?")
        optional = 0 if found["bar"] else optional + (mark == "?")


def _longest_replacement(charsmap: Any) -> int:
    """The length of the longest text that a character map makes of one character, after checking the map.

    The map of SentencePiece is the size of a trie in bytes, the trie, and texts that end with NUL. The trie is a double
    array of 32-bit units (Darts-clone): a unit at i has its children at i ^ offset ^ byte, and its value, the place of
    a text, at i ^ offset. The package follows offsets and values without a check.
    """
    if not isinstance(charsmap, str):
        raise BundleError(f"precompiled_charsmap must be text, got {shown(charsmap)}")
    try:
        raw = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError):
        raise BundleError("precompiled_charsmap must be base64") from None
    size = int.from_bytes(raw[:4], "little")
    texts = raw[4 + size :]
    if not 0 < size <= _MAX_TRIE_BYTES or size % 1024 or not texts:
        raise BundleError("precompiled_charsmap must be a trie in blocks of 1024 bytes, and texts")
    units = np.frombuffer(raw[4 : 4 + size], dtype="<u4").astype(np.int64)
    inner = units >> 31 == 0
    if not inner[0]:
        raise BundleError("precompiled_charsmap: the trie must begin with its root")
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    children = np.where(inner, np.arange(len(units)) ^ offsets, 0)
    if children.max() >= len(units):
        raise BundleError("precompiled_charsmap: a child lies outside the trie")
    leaves = units[children[inner & (units & (1 << 8) != 0)]] & (2**31 - 1)
    if len(leaves) and leaves.max() >= len(texts):
        raise BundleError("precompiled_charsmap: a value lies outside the texts")
    try:
        longest = max(map(len, texts.decode().split("\0")))
    except UnicodeDecodeError:
        raise BundleError("precompiled_charsmap: the texts must be UTF-8") from None
    if np.any(np.frombuffer(texts, np.uint8)[leaves] & 0xC0 == 0x80):
        raise BundleError("precompiled_charsmap: a value lies inside a character")
    return max(1, longest)


def _template(part: dict[str, Any]) -> int:
    """The number of tokens that a TemplateProcessing adds to one text."""
    known = _object("special_tokens", part.get("special_tokens"), None)
    if len(known) > _MAX_PARTS:
        raise BundleError(f"special_tokens must be at most {_MAX_PARTS}, got {len(known)}")
    ids = {}
    for name, token in known.items():
        fields = _object("a special token", token, {"id", "ids", "tokens"})
        ids[name] = _list("ids of a special token", fields.get("ids"), _MAX_PARTS)
        tokens = _list("tokens of a special token", fields.get("tokens"), _MAX_PARTS)
        if fields.get("id") != name or len(tokens) != len(ids[name]):
            raise BundleError("a special token must have its name, and as many ids as tokens")
    counts = []
    for name, wanted in (("single", ["A"]), ("pair", ["A", "B"])):
        found, count = [], 0
        for piece in _list(name, part.get(name), _MAX_PARTS):
            for kind, fields in _object(f"a part of {name}", piece, {"Sequence", "SpecialToken"}).items():
                label = _object(kind, fields, {"id", "type_id"}).get("id")
                if kind == "Sequence":
                    found.append(label)
                elif not isinstance(label, str) or label not in ids:
                    raise BundleError(f"{name} names the token {shown(label)}, which special_tokens does not hold")
                else:
                    count += len(ids[label])
        if sorted(map(shown, found)) != sorted(map(shown, wanted)):
            raise BundleError(f"{name} must hold the texts {' and '.join(wanted)} once, got {shown(found)}")
        counts.append(count)
    return counts[0]


_PROCESSORS: dict[str, Callable[[dict[str, Any]], int]] = {
    "RobertaProcessing": lambda _: 2,
    "BertProcessing": lambda _: 2,
    "ByteLevel": lambda _: 0,
    "TemplateProcessing": _template,
}


def _check_bpe(model: dict[str, Any]) -> None:
    _object("model", model, _BPE)
    if model.get("dropout") is not None:
        raise BundleError(f"model.dropout must be null, so that a text has one encoding, got {shown(model['dropout'])}")
    if model.get("continuing_subword_prefix"):
        raise BundleError(
            f"model.continuing_subword_prefix must be empty, got {shown(model['continuing_subword_prefix'])}"
        )
    _check_vocabulary(model)
    for merge in _list("model.merges", model.get("merges"), _MAX_VOCABULARY):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) and one for one in pair):
            raise BundleError(f"model.merges must be pairs of tokens, got {shown(merge)}")
    _token("model.end_of_word_suffix", model.get("end_of_word_suffix") or "", low=0)


def _check_words(model: dict[str, Any]) -> None:
    _object("model", model, {"type", "vocab", "unk_token"})
    _check_vocabulary(model)


def _check_vocabulary(model: dict[str, Any]) -> None:
    vocabulary = _object("model.vocab", model.get("vocab"), None)
    if not 1 <= len(vocabulary) <= _MAX_VOCABULARY:
        raise BundleError(f"model.vocab must hold 1 to {_MAX_VOCABULARY} tokens, got {len(vocabulary)}")
    for token, index in vocabulary.items():
        _token("a token of model.vocab", token)
        _index("an id of model.vocab", index)


def _check_unigram(model: dict[str, Any]) -> None:
    _object("model", model, {"type", "unk_id", "vocab", "byte_fallback"})
    vocabulary = _list("model.vocab", model.get("vocab"), _MAX_VOCABULARY)
    for entry in vocabulary:
        if not isinstance(entry, list) or len(entry) != 2 or not checks.is_finite(entry[1]):
            raise BundleError(f"model.vocab must hold pairs of a token and a number, got {shown(entry)}")
        _token("a token of model.vocab", entry[0])
    unknown = model.get("unk_id")
    if not checks.is_whole(unknown) or not 0 <= unknown < len(vocabulary):
        raise BundleError(f"model.unk_id must be one of the {len(vocabulary)} tokens, got {shown(unknown)}")


_MODELS: dict[str, Callable[[dict[str, Any]], None]] = {
    "BPE": _check_bpe,
    "Unigram": _check_unigram,
    "WordLevel": _check_words,
}


def _object(name: str, value: Any, fields: set[str] | None) -> dict[str, Any]:
    """The value if it is an object with no other than these fields; None: any."""
    if not isinstance(value, dict):
        raise BundleError(f"{name} must be an object, got {shown(value)}")
    unknown = () if fields is None else value.keys() - fields
    if unknown:
        raise BundleError(f"{name} has an unknown field {shown(min(unknown))}")
    return value


def _list(name: str, value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        got = f"{len(value)} entries" if isinstance(value, list) else shown(value)
        raise BundleError(f"{name} must be a list of at most {most}, got {got}")
    return value


def _token(name: str, value: Any, *, low: int = 1) -> str:
    if not isinstance(value, str) or not low <= len(value) <= _MAX_CHARACTERS:
        raise BundleError(f"{name} must be text of {low} to {_MAX_CHARACTERS} characters, got {shown(value)}")
    return value


def _index(name: str, value: Any) -> None:
    if not checks.is_whole(value) or not 0 <= value <= _MAX_ID:
        raise BundleError(f"{name} must be a whole number from 0 to {_MAX_ID}, got {shown(value)}")


def _known(name: str, kind: Any, known: Collection[str]) -> str:
    if not isinstance(kind, str) or kind not in known:
        raise BundleError(f"{name} must be of a type in {', '.join(known)}, got {shown(kind)}")
    return kind
