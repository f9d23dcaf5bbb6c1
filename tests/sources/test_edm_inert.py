"""The machine that reads pickles as data: it agrees with the standard library on plain data, and executes nothing."""

import collections
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from fastdc.support.exceptions import BundleError

pytest.importorskip("torch")

from fastdc.sources.edm_inert import MAX_TEXT_BYTES, Global, LongText, Made, read_inert


def _read(data: bytes, allowed: tuple[str, ...] = (), **more: Any) -> object:
    return read_inert(memoryview(data), allowed, **more)[0]


def _plain(value: Any) -> Any:
    """An object that was read, with views as bytes and records of sets as sets."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, Made):
        members = value.members or (value.args[0] if value.args else [])
        return {_plain(item) for item in members}  # type: ignore[attr-defined]
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _random_value(rng: random.Random, depth: int) -> Any:
    leaves: list[Any] = [
        None,
        True,
        False,
        rng.choice([0, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63, -(2**100)]),
        rng.gauss(0, 1e10),
        rng.choice(["", "text", "\N{GREEK SMALL LETTER SIGMA}", "x" * 300, "\ud800"]),
        rng.choice([b"", b"raw", b"y" * 300]),
        bytearray(b"mutable"),
        {1, 2, 3},
        frozenset({"a", "b"}),
    ]
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(leaves)
    inner = [_random_value(rng, depth - 1) for _ in range(rng.randrange(6))]
    return rng.choice([inner, tuple(inner), {f"key {i}": item for i, item in enumerate(inner)}, [inner, inner]])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_the_standard_library_does(protocol: int) -> None:
    rng = random.Random(protocol)
    allowed = ("builtins.set", "builtins.frozenset", "builtins.bytearray", "builtins.bytes", "_codecs.encode")
    for _ in range(200):
        value = _random_value(rng, 4)
        data = pickle.dumps(value, protocol=protocol)
        if (protocol < 5 and b"bytearray" in data) or (protocol <= 3 and (b"set" in data or b"__builtin__" in data)):
            continue  # these protocols write calls, which become records; tested below
        got, used = read_inert(memoryview(data + b"more"), allowed)
        assert _plain(got) == pickle.loads(data)
        assert used == len(data)


def test_shared_objects_stay_shared_and_cycles_stay_cycles() -> None:
    shared: list[Any] = [1]
    cyclic: list[Any] = [shared, shared]
    cyclic.append(cyclic)
    got = _read(pickle.dumps(cyclic))
    assert isinstance(got, list)
    assert got[0] is got[1]
    assert got[2] is got


def test_calls_are_records() -> None:
    data = pickle.dumps(collections.OrderedDict(a=1, b=[2]), protocol=4)
    got = _read(data, ("collections.OrderedDict",))
    assert isinstance(got, Made)
    assert (got.name, got.args, got.entries) == ("collections.OrderedDict", (), {"a": 1, "b": [2]})
    named = _read(pickle.dumps(collections.OrderedDict, protocol=2), ("collections.OrderedDict",))
    assert named == Global("collections.OrderedDict")


class _Runs:
    """Pickles as a call, which would leave a file behind if it were executed."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_executed(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "executed"
    touch = f"open({str(target)!r}, 'w').close()"
    for function, args, name in (
        (os.system, (f"touch {target}",), f"{os.system.__module__}.system"),
        (eval, (touch,), "builtins.eval"),
        (exec, (touch,), "builtins.exec"),
        (getattr, ("x", "y"), "builtins.getattr"),
    ):
        data = pickle.dumps({"ema": _Runs(function, *args)}, protocol=protocol)
        with pytest.raises(BundleError, match=name) as caught:
            _read(data, ("builtins.set",))
        assert "\n" not in str(caught.value)
        # Not even an allowed name is called.
        got = _read(data, (name,))
        assert isinstance(got, dict)
        assert isinstance(got["ema"], Made)
        assert not target.exists()
    pickle.loads(pickle.dumps(_Runs(exec, touch)))  # the standard library would have run it
    assert target.exists()


def test_every_truncation_is_refused() -> None:
    data = pickle.dumps({"a": [1.5, "text", b"bytes", (1, 2, 3, 4)], "b": {"c": 2**40}}, protocol=4)
    for length in range(len(data)):
        with pytest.raises(BundleError):
            _read(data[:length])


@pytest.mark.parametrize(
    "body",
    [
        b"\x8e" + struct.pack("<Q", 100 * 2**30),  # BINBYTES8
        b"\x96" + struct.pack("<Q", 100 * 2**30),  # BYTEARRAY8
        b"\x8d" + struct.pack("<Q", 2**63),  # BINUNICODE8
        b"B" + struct.pack("<I", 2**32 - 1),  # BINBYTES
        b"\x8b" + struct.pack("<I", 2**31 - 1),  # LONG4
        b"\x95" + struct.pack("<Q", 2**62),  # FRAME
        b"\x8a\xff" + b"\xff" * 255,  # an integer of 255 bytes
        b"l" * 4,  # LIST without a mark
        b"0",  # POP of nothing
        b"(K\x01K\x02K\x03d",  # DICT of three
        b"}]K\x01s",  # a list as a key
        b"}(K\x01K\x02K\x03tK\x01s",  # a tuple as a key
        b"}\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01K\x01s",  # a huge number as a key
        b"K\x01K\x02a",  # append to a number
        b"K\x01}b",  # a state for a number
        b"K\x01)R",  # a call of a number
        b"h\x05",  # an object that was never stored
        b"\x82\x01",  # EXT1
        b"\x97",  # NEXT_BUFFER
        b"I1 number\n",  # protocol 0
        b"cos\nsystem\n",
        b"c" + b"a" * 10_000,
        b"X\x02\x00\x00\x00\xff\xff",  # not UTF-8
        b"\x80\x00",  # protocol 0
        b"\x80\x09",
    ],
)
def test_hostile_instructions_are_refused(body: bytes) -> None:
    for head in (b"", b"\x80\x04"):
        with pytest.raises(BundleError) as caught:
            _read(head + body + b".")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_instructions_and_text_are_bounded() -> None:
    bomb = b"\x80\x04]\x94" + b"(h\x00h\x00h\x00h\x00l\x94" * 100_000 + b"."
    with pytest.raises(BundleError, match="at most 1000 instructions"):
        _read(bomb, max_opcodes=1000)
    text = b"\x80\x04" + (b"X" + struct.pack("<I", 4096) + b"a" * 4096 + b"0") * (MAX_TEXT_BYTES // 4096 + 1)
    with pytest.raises(BundleError, match="bytes of short texts"):
        _read(text + b"N.")


def test_the_bytes_of_protocol_2_are_read_in_bounded_memory() -> None:
    allowed = ("_codecs.encode",)
    value = bytes(range(256)) * 10_000  # longer than a part that is decoded at once
    assert _read(pickle.dumps(value, protocol=2), allowed) == value
    assert isinstance(_read(pickle.dumps("a" * 5000, protocol=2)), LongText)

    def call(text: bytes, encoding: bytes = b"latin1") -> bytes:
        named = b"".join(b"X" + struct.pack("<I", len(part)) + part for part in (text, encoding))
        return b"\x80\x02c_codecs\nencode\n" + named + b"\x86R."

    for data, match in (
        (call("\u0100".encode() * 5000), "not of bytes"),
        (call("\u0100".encode()), "not of bytes"),
        (call(b"\xff" * 5000), "not of bytes"),
        (call(b"\xc3" * 4095), "not UTF-8"),
        (call(b"\xc3" * 5000), "not of bytes"),
        (call(b"a", b"rot13"), "latin1"),
        (b"\x80\x02c_codecs\nencode\nNN\x86R.", "only text"),
    ):
        with pytest.raises(BundleError, match=match) as caught:
            _read(data, allowed)
        assert "\n" not in str(caught.value)
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x000"  # one text, encoded a thousand times
    again = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R0"
    with pytest.raises(BundleError, match="larger than the file"):
        _read(b"\x80\x02" + text + again * 1000 + b"N.", allowed)


def test_a_memo_bomb_costs_no_more_than_its_instructions() -> None:
    # Each list holds the previous one ten times: 10^60 entries for a walk, but 60 lists in memory.
    body = b"]" + b"".join(b"\x94(" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"l" for i in range(60))
    got = _read(b"\x80\x04" + body + b".")
    assert isinstance(got, list)
    assert len(got) == 10


def test_random_bytes_raise_nothing_else() -> None:
    rng = random.Random(0)
    data = pickle.dumps([{"a": (1, 2.5, "t", b"b", None)}, collections.OrderedDict(x=1), {1, 2}] * 3, protocol=4)
    for _ in range(3000):
        hurt = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            hurt[rng.randrange(len(hurt))] = rng.randrange(256)
        try:
            _read(bytes(hurt), ("collections.OrderedDict",))
        except BundleError:
            continue
