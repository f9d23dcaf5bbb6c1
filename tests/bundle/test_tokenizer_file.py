"""The tokenizers of bundles: those of CLIP and T5 give the ids of the original; hostile ones end in one BundleError."""

import base64
import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from fastdc.bundle import checked_tokenizer, find_model, load_bundle
from fastdc.support import BundleError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["a red circle", "", "The  BLUE ﬁne cône's 12 <|endoftext|>, " * 5]
CLIP = json.loads(load_bundle(find_model("shapes")).read("tokenizer.json"))


def charsmap(replacements: dict[str, str]) -> str:
    """A character map of SentencePiece: a double array of 256 units per node of the trie, and the texts."""
    texts, nodes, values = b"", {b"": 1}, {}
    for key, text in replacements.items():
        raw = key.encode()
        for end in range(1, len(raw) + 1):
            nodes.setdefault(raw[:end], len(nodes) + 1)
        values[raw] = len(texts)
        texts += text.encode() + b"\0"
    units = [0] * (256 * (len(nodes) + 1))
    units[0] = 256 << 10  # the root, whose children are in block 1
    for prefix, block in nodes.items():  # the children of a node fill a block of their own, as byte by byte
        for byte in range(256):
            child = nodes.get(prefix + bytes([byte]))
            if child is not None:
                at = 256 * block + byte
                units[at] = (at ^ 256 * child) << 10 | (prefix + bytes([byte]) in values) << 8 | byte
        if prefix in values:
            units[256 * block] = 1 << 31 | values[prefix]
    raw_units = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(raw_units)) + raw_units + texts).decode()


def t5() -> dict[str, Any]:
    """A tokenizer like that of T5, with the normalizers that conversions of SentencePiece write."""
    pieces = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581", -2.0], ["\u2581fi", -3.0]]
    pieces += [[letter, -6.0] for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": one, "type_id": 0}} for one in "AB")
    normalizers: list[dict[str, Any]] = [
        {"type": "Precompiled", "precompiled_charsmap": charsmap({"ﬁ": "fi", "\uff41": "a", "ô": "o"})},
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"},
    ]
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
        "padding": {**CLIP["padding"], "strategy": {"Fixed": 16}, "pad_id": 0, "pad_token": "<pad>"},
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }


def encoded(text: str) -> Any:
    return [found.ids for found in tokenizers.Tokenizer.from_str(text).encode_batch(TEXTS)]


@pytest.mark.parametrize("tokenizer", [CLIP, t5()], ids=["clip", "t5"])
def test_tokenizers_that_pass_give_the_same_ids(tokenizer: dict[str, Any]) -> None:
    text = json.dumps(tokenizer)
    checked = checked_tokenizer(text.encode(), Path("tokenizer.json"))
    assert encoded(checked) == encoded(text)
    assert json.loads(checked) == {**tokenizer, "decoder": None}


def test_the_character_map_of_the_test_is_one() -> None:
    charsmap_of = tokenizers.normalizers.Precompiled(base64.b64decode(charsmap({"ﬁ": "fi", "\uff41": "a"})))
    assert charsmap_of.normalize_str("ﬁ\uff42\uff41") == "fi\uff42a"


def test_tokenizers_of_transformers_pass() -> None:
    pytest.importorskip("transformers")
    from fastdc.testing import tiny_pipelines

    for made in (tiny_pipelines.clip_tokenizer(), tiny_pipelines.t5_tokenizer()):
        parsed = tokenizers.Tokenizer.from_str(made.backend_tokenizer.to_str())
        parsed.enable_truncation(16)
        parsed.enable_padding(length=16, pad_id=made.pad_token_id, pad_token=made.pad_token)
        assert encoded(checked_tokenizer(parsed.to_str().encode(), Path("t"))) == encoded(parsed.to_str())


def _at(tokenizer: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path such as "model.vocab.0"."""
    made = copy.deepcopy(tokenizer)
    *inside, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place: Any = made
    for key in inside:
        place = place[key]
    place[last] = value
    return made


def _units(*units: int, texts: bytes = b"a\0") -> str:
    raw = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(raw)) + raw + texts).decode()


def _deep(levels: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(levels):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": "  "}
_MAP = "normalizer.normalizers.0.precompiled_charsmap"
_PATTERN = "pre_tokenizer.pretokenizers.0.pattern"
_ENDLESS = [
    ("C", _PATTERN, {"Regex": regex}, "the last may be repeated")
    for regex in (
        *(
            "(a+)+b",
            "(a|a)*b",
            "a+a+b",
            "(?:a+)",
            r"\s+(?!\S)",
            "a{1,99}a{1,99}b",
            "a++",
            "a{2}{3}",
            "a?a?b",
            "a?b|a?a?b",
            "a+b",
            "x|.{2,}[bc]",
            "[a&&b]",
        ),
        *(r"(a)\1", "[[:alpha:]]", "a{", "a|*", r"\k", "^a", "a" * 900 + "*+"),
    )
]
REFUSED: list[tuple[str, str, Any, str]] = [
    ("C", "padding.strategy", {"Fixed": 2**40}, "must be one number from 2 to 4096, got 16 and 1099511627776"),
    ("C", "padding.strategy", "BatchLongest", "padding.strategy must be an object"),
    ("C", "padding.pad_to_multiple_of", 2**40, "pad_to_multiple_of must be None"),
    ("C", "padding.pad_id", -1, "padding.pad_id must be"),
    ("C", "padding", None, "padding must be an object, got None"),
    ("C", "truncation", None, "truncation must be an object, got None"),
    ("C", "truncation.max_length", 2, "must be one number"),
    ("C", "truncation.stride", 50, "truncation.stride must be 0, got 50"),
    ("C", "truncation.strategy", "OnlySecond", "truncation.strategy must be"),
    ("C", "added_tokens", [{"id": 1, "content": "x" * 1001}], "content of an added token"),
    ("C", "added_tokens", [{}] * 10_001, "added_tokens must be a list of at most 10000"),
    ("C", "normalizer", {"type": "Lua"}, "normalizer must be of a type in"),
    ("C", "normalizer", _deep(100), "normalizer must have at most 16 parts"),
    ("C", "normalizer", _deep(10_000), "is not valid JSON"),
    ("C", "normalizer", {"type": "Sequence", "normalizers": [_REPLACED] * 9}, "at most 40, these by up to 19683"),
    ("C", "pre_tokenizer", {"type": "UnicodeScripts"}, "pre_tokenizer must be of a type in"),
    ("C", "pre_tokenizer", {"type": ["Split"]}, "pre_tokenizer must have a type"),
    ("C", "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 4}, "at most 4 parts"),
    ("C", "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 2}, "at most one ByteLevel"),
    ("T", "model.vocab.3", ["\u2581" * 171, 0.0], "longest token may have at most 512 bytes if normalizers"),
    *_ENDLESS,
    ("C", _PATTERN, {}, "pattern must be a String or a Regex"),
    ("C", _PATTERN, {"Regex": "a", "String": "a"}, "pattern must be a String or a Regex"),
    ("C", _PATTERN, {"Regex": ""}, "pattern must be text"),
    ("C", "post_processor", {"type": "Nothing"}, "post_processor must be of a type in"),
    ("C", "post_processor", {"type": "Sequence", "processors": [{"type": "BertProcessing"}] * 8}, "leaves none"),
    ("C", "model", {"type": "WordPiece", "vocab": {}}, "model must be of a type in BPE, Unigram, WordLevel"),
    ("C", "model.type", {}, "model must be of a type in"),
    ("C", "model.dropout", 0.5, "model.dropout must be null"),
    ("C", "model.continuing_subword_prefix", "##", "continuing_subword_prefix must be empty"),
    ("C", "model", {"type": "WordLevel", "vocab": {"a": -1}}, "an id of model.vocab must be a whole number from 0"),
    ("C", "model.vocab", {}, "model.vocab must hold 1 to"),
    ("C", "model.merges", [["a", ""]], "model.merges must be pairs"),
    ("C", "model.merges.0", "a b c", "model.merges must be pairs"),
    ("C", "more", 1, "unknown field 'more'"),
    ("T", "model.unk_id", 10**6, "model.unk_id must be one of the"),
    ("T", "model.vocab", [["a", "b"]], "pairs of a token and a number"),
    ("T", "post_processor.single", [{"SpecialToken": {"id": "x", "type_id": 0}}], "names the token 'x'"),
    ("T", "post_processor.single", [], "single must hold the texts A once"),
    ("T", "post_processor.special_tokens", {"</s>": {"id": "</s>", "ids": [1] * 33, "tokens": []}}, "at most 16"),
    ("T", _MAP, "not base64!", "must be base64"),
    ("T", _MAP, "", "a trie in blocks"),
    ("T", _MAP, _units(0), "a trie in blocks"),
    ("T", _MAP, _units(256 << 10, *[0] * 255), "a child lies outside"),
    ("T", _MAP, _units(1 << 31, *[0] * 255), "begin with its root"),
    ("T", _MAP, _units(1 << 10 | 1 << 8, 1 << 31 | 2, *[0] * 254), "a value lies outside"),
    ("T", _MAP, _units(1 << 10 | 1 << 8, 1 << 31 | 1, *[0] * 254, texts="é".encode()), "inside a character"),
    ("T", _MAP, _units(*[0] * 256, texts=b"\xff"), "UTF-8"),
    ("T", _MAP, _units(*[0] * 256, texts=b"a" * 1000), "at most 40, these by up to 2000"),
]


@pytest.mark.parametrize(("which", "path", "value", "message"), REFUSED)
def test_hostile_tokenizers_are_refused(which: str, path: str, value: Any, message: str) -> None:
    made = _at(CLIP if which == "C" else t5(), path, value)
    try:
        content = json.dumps(made).encode()
    except RecursionError:
        content = b"[" * 100_000
    with pytest.raises(BundleError) as caught:
        checked_tokenizer(content, Path("tokenizer.json"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"version": NaN}', b"[" * 100_000])
def test_what_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        checked_tokenizer(content, Path("tokenizer.json"))
    assert "\n" not in str(caught.value)
