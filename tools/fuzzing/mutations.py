"""Changes to valid inputs: of bytes, and of the structure of JSON, text tables, zip archives, protobuf and pickles.

A change of bytes is mostly refused by the outermost check. A change of structure keeps the outside valid, and so
reaches the code behind it. Every function takes the input and a random generator, which determines the result.
"""

import copy
import io
import itertools
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (0, -1, 1, 2, 3, 7, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "x",
    "\u0000",
    "\ud800",
    "a\nb",
    "é" * 300,
    "../../etc/passwd",
    [],
    {},
    [[]],
    [0] * 1000,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("nan"),
    *NUMBERS,
)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four edits of single bytes, words or blocks."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        length = min(len(out) - at, rng.choice((1, 2, 4, 8, 16, 64, 1024)))
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            word = struct.pack(rng.choice("<>") + "Q", rng.choice(NUMBERS) & (2**64 - 1))
            width = rng.choice((2, 4, 8))
            out[at : at + width] = word[:width]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length] * rng.choice((1, 2, 16))
        elif kind == 5:
            start = rng.randrange(len(out) + 1)
            out[at : at + length] = out[start : start + length]
        else:
            del out[at:]
    return bytes(out)


def change_json(data: bytes, rng: random.Random) -> bytes:
    """One to three edits of a JSON document: values replaced, keys removed, renamed or repeated, nesting."""
    if rng.random() < 0.15:
        return change_bytes(data, rng)
    try:
        holder = [json.loads(data)]
    except (ValueError, RecursionError):
        return change_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_node(holder, rng)
    text = json.dumps(holder[0])
    if rng.random() < 0.02:
        depth = rng.choice((50, 2_000, 100_000))
        text = text[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"
    return text.encode()


def _change_node(holder: list[Any], rng: random.Random) -> None:
    """Changes a random entry of a random container."""
    containers: list[Any] = [holder]
    for container in containers:  # grows while it is walked
        entries = container.values() if isinstance(container, dict) else container
        containers += [entry for entry in entries if isinstance(entry, dict | list) and entry]
    container = rng.choice(containers)
    key = rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))
    old = container[key]
    kind = rng.randrange(8)
    if kind == 0 and container is not holder:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice(("", "x", str(key).upper(), str(key) + " "))] = container.pop(key)
    elif kind == 2 and isinstance(old, list):
        container[key] = old * rng.choice((0, 2, 3))
    elif kind == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        container[key] = rng.choice((old + 1, old - 1, -old, old * 2, old / 3, old * 10**6, str(old)))
    elif kind == 4:
        container[key] = [old]
    elif kind == 5:
        other = rng.choice(containers)
        values = list(other.values()) if isinstance(other, dict) else other
        container[key] = json.loads(json.dumps(rng.choice(values)))
    else:
        container[key] = copy.deepcopy(rng.choice(VALUES))  # later edits may change it


def change_table(data: bytes, rng: random.Random) -> bytes:
    """One to three edits of a text table: fields, lines, separators."""
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        separator = b"\t" if b"\t" in lines[at] else b","
        fields = lines[at].split(separator)
        kind = rng.randrange(6)
        if kind == 0:
            lines.insert(at, rng.choice((b"", b"#", lines[rng.randrange(len(lines))], b"\xff\xfe", b'"', b"\r")))
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        elif kind == 2:
            fields.insert(rng.randrange(len(fields) + 1), b"1")
        elif kind == 3:
            del fields[rng.randrange(len(fields))]
        else:
            value = rng.choice((*VALUES, "nan", "-inf", "1e5", "0x10", "1_0", '"', "'", "\u0661", "0:00:01", " 1 "))
            fields[rng.randrange(len(fields))] = str(value).encode(errors="surrogatepass")
        if kind > 1:
            lines[at] = separator.join(fields)
    return b"\n".join(lines)


def change_npy(data: bytes, rng: random.Random) -> bytes:
    """Edits of the header of a .npy file, or of its bytes."""
    head, brace, rest = data.partition(b"{")
    header, end, body = rest.partition(b"}")
    if rng.random() < 0.3 or not end:
        return change_bytes(data, rng)
    text = header.decode("latin1")
    shapes = (
        "()",
        "(0,)",
        "(8, 8)",
        f"({2**40},)",
        "(-1, 8, 8)",
        f"({2**31}, {2**31}, 4)",
        "(1, 1, 8, 8)",
        "(True,)",
        "8",
    )
    kinds = ("|O", "<f2", "<f4", ">f4", "<f8", "<c8", "|b1", "<i8", "<u2", "<U9", "|S4", "<M8[s]", "V4", "<f16")
    if rng.random() < 0.5:
        start, _, tail = text.partition("'shape': ")
        text = start + "'shape': " + rng.choice(shapes) + tail[tail.find(")") + 1 :]
    if rng.random() < 0.6:
        start, _, tail = text.partition("'descr': '")
        text = start + "'descr': '" + rng.choice(kinds) + tail[tail.find("'") :]
    if rng.random() < 0.2:
        text = text.replace("False", "True")
    changed = head + brace + text.encode("latin1") + end + body
    if rng.random() < 0.7:  # keep the declared length of the header right
        found = changed.find(b"\n", 10)
        changed = changed[:8] + struct.pack("<H", max(0, found + 1 - 10) & 0xFFFF) + changed[10:]
    return changed


def change_zip(data: bytes, rng: random.Random, *, member: Mutation = change_npy) -> bytes:
    """Edits of the members of a zip archive: their content, names, number, and compression."""
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):
        return change_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(members))
        name, content = members[at]
        kind = rng.randrange(8)
        if kind == 0:
            del members[at]
        elif kind == 1:
            members.append((name, content))
        elif kind == 2:
            members[at] = (rng.choice(("../x.npy", "", "images.npy", "labels.npy", "class_names.npy", "x")), content)
        elif kind == 3:
            members[at] = (name, content + bytes(rng.choice((1, 10_000, 10_000_000))))
        elif kind == 4:
            members[at] = (name, rng.choice(members)[1])
        else:
            members[at] = (name, member(content, rng))
        if not members:
            break
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members:
            archive._didModify = True  # type: ignore[attr-defined]
            info = zipfile.ZipInfo(name or "x")
            info.compress_type = archive.compression
            archive.writestr(info, content)
    return change_bytes(out.getvalue(), rng) if rng.random() < 0.1 else out.getvalue()


def change_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Edits of the JSON header of a safetensors file with its length kept right, or of its bytes."""
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = change_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _varint(value: int, extra: int = 0) -> bytes:
    """A varint, with `extra` bytes more than it needs."""
    out = bytearray()
    while value >= 0x80 or extra > 0:
        out.append(0x80 | value & 0x7F)
        extra -= value < 0x80
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> list[tuple[int, int, bytes | int]]:
    """The fields (number, wire type, content) of a protobuf message.

    Raises:
        ValueError: The bytes are no message.
    """
    at, found = 0, []
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        content: bytes | int
        if wire == 0:
            content, at = _read_varint(data, at)
        elif wire == 2:
            size, at = _read_varint(data, at)
            content = data[at : at + size]
            at += size
        elif wire in (1, 5):
            content = data[at : at + (8 if wire == 1 else 4)]
            at += len(content)
        else:
            raise ValueError
        if number == 0 or at > len(data):
            raise ValueError
        found.append((number, wire, content))
    return found


def _packed(fields: list[tuple[int, int, bytes | int]], rng: random.Random) -> bytes:
    out = []
    for number, wire, content in fields:
        out.append(_varint(number << 3 | wire, 1 if rng.random() < 0.02 else 0))
        if isinstance(content, int):
            out.append(_varint(content & (2**64 - 1)))
        else:
            out.append((_varint(len(content)) if wire == 2 else b"") + content)
    return b"".join(out)


def change_protobuf(data: bytes, rng: random.Random, depth: int = 0) -> bytes:
    """One edit of a protobuf message, in a field or in a message inside it; lengths are kept right."""
    if depth == 0 and rng.random() < 0.1:
        return change_bytes(data, rng)
    try:
        fields = _fields(data)
    except ValueError:
        return change_bytes(data, rng) if data else b"x"
    if not fields:
        return rng.choice((b"", b"\x08\x01", b"\x0a\x00"))
    at = rng.randrange(len(fields))
    number, wire, content = fields[at]
    kind = rng.randrange(10)
    if isinstance(content, bytes) and wire == 2 and kind < 6 and depth < 8 and len(content) < 100_000:
        fields[at] = (number, wire, change_protobuf(content, rng, depth + 1))
    elif kind == 6:
        del fields[at]
    elif kind == 7:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif kind == 8:
        fields[at] = (rng.choice((1, 2, 5, 7, 8, 13, 14, 20, 25, number + 1, 2**20)), wire, content)
    elif isinstance(content, int):
        fields[at] = (number, wire, rng.choice((*NUMBERS, content + 1, content ^ 1)))
    else:
        fields[at] = (number, wire, change_bytes(content, rng))
    return _packed(fields, rng)


def change_pickle(data: bytes, rng: random.Random) -> bytes:
    """One to three edits of the opcodes of a pickle: removed, repeated, moved, or their arguments changed."""
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    try:
        starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    except Exception:  # whatever is no pickle
        return change_bytes(data, rng)
    bounds = [*starts, len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(bounds)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(pieces))
        kind = rng.randrange(6)
        if kind == 0:
            del pieces[at]
        elif kind == 1:
            pieces.insert(rng.randrange(len(pieces) + 1), pieces[at])
        elif kind == 2:
            pieces[at] = rng.choice(
                (b"N", b"0", b")", b"}", b"]", b"2", b"\x85", b"\x86", b"R", b"b", b"h\x00", b"K\x00", b"(")
            )
        elif kind == 3:
            pieces[at : at + 1] = [b")", b"2\x86" * rng.choice((3, 40, 5000))]
        else:
            pieces[at] = change_bytes(pieces[at], rng)
        if not pieces:
            break
    return b"".join(pieces)


def mixed(*choices: Mutation) -> Mutation:
    """One of several mutations, by chance."""
    return lambda data, rng: rng.choice(choices)(data, rng)
