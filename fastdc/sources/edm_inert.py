"""Reads a pickle without executing any of it: every object of the file becomes an inert record.

A pickle is a program for a stack machine. Its danger lies in the calls that the instructions REDUCE, NEWOBJ and BUILD
ask for. The machine here is our own. It knows the instructions of protocols 2 to 5 as the standard library's
``pickletools`` documents them, imports nothing, and answers a call with a :class:`Made`, a record of the called name
and its arguments. It refuses every unexpected name at once, even though the name could do no harm. One call has a
result: ``_codecs.encode(text, "latin1")`` is how protocol 2 writes bytes, and becomes these bytes.

A hostile file must not cost memory or time either. Lengths are checked against the file before any bytes are taken.
Long byte strings are views of the file, not copies; so are long texts, which are not decoded. There is no recursion.
The number of instructions, the bytes of short texts, and the bytes that protocol 2 wrote as text are bounded, and with
them everything that the machine can build. The result may be nested without end or contain itself, so code that walks
it must count its steps, and may not compare, hash or format it.
"""

import codecs
import pickle
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fastdc.support import BundleError, shown

Bytes = memoryview

MAX_OPCODES = 1_000_000
MAX_TEXT_BYTES = 64 * 2**20
_LONG_TEXT = 4096  # bytes from which a text stays as it is in the file
_CHUNK = 2**20
_ENCODE = "_codecs.encode"
_MAX_LINE = 512  # bytes in the name of a module or an object
_MAX_INTEGER_BYTES = 16
_MAX_KEY = 2**32  # smaller integers are their own hash, so no file can make keys collide


@dataclass(frozen=True)
class Global:
    """The name "module.name" of an object that the file wanted to import."""

    name: str


@dataclass(frozen=True, eq=False)
class LongText:
    """A text of more than 4096 bytes, as it is in the file; sources and bytes are so long, but no name is."""

    utf8: Bytes = field(repr=False)


class Made:
    """An object that the file wanted to create, as data.

    Attributes:
        name: Name "module.name" of the called object; :data:`PERSISTENT_ID` for a persistent id.
        args: Arguments of the call.
        state: State that the file wanted to set, or None.
        entries: Entries of the object if it is a kind of dictionary.
        members: Members of the object if it is a kind of list or set.
    """

    __slots__ = ("args", "entries", "members", "name", "state")

    def __init__(self, name: str, args: tuple[object, ...]) -> None:
        self.name = name
        self.args = args
        self.state: object = None
        self.entries: dict[object, object] = {}
        self.members: list[object] = []

    def __repr__(self) -> str:
        return f"<{self.name}>"


PERSISTENT_ID = "persistent id"


def read_inert(data: Bytes, allowed: Collection[str], *, max_opcodes: int = MAX_OPCODES) -> tuple[object, int]:
    """Reads one pickle from the start of `data`.

    Args:
        data: Bytes of the file, which may continue after the pickle.
        allowed: Names "module.name" that the file may use.
        max_opcodes: Largest number of instructions in the pickle.

    Returns:
        The object, and the number of bytes read. The object is None, a bool, int, float, str, :class:`LongText`,
        memoryview (for bytes), tuple, list, dict, :class:`Global` or :class:`Made`.

    Raises:
        BundleError: The pickle is truncated, corrupt or over a limit, or uses another name or instruction.
    """
    machine = _Machine(data, frozenset(allowed))
    for _ in range(max_opcodes):
        start = machine.position
        (code,) = machine.take(1)
        if code == pickle.STOP[0]:
            return machine.pop(), machine.position
        step = _STEPS.get(code)
        if step is None:
            raise BundleError(f"pickle: instruction {bytes([code])!r} at byte {start} is not expected in such a file")
        step(machine)
    raise BundleError(f"pickle: must have at most {max_opcodes} instructions, but continues after them")


class _Machine:
    """The state of the stack machine: the bytes, the stack with its marks, and the memo."""

    def __init__(self, data: Bytes, allowed: frozenset[str]) -> None:
        self.data = data
        self.allowed = allowed
        self.position = 0
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.text_bytes = 0
        self.encoded_bytes = 0

    def take(self, count: int) -> Bytes:
        left = len(self.data) - self.position
        if count > left:
            raise BundleError(f"pickle: truncated at byte {self.position}: expected {count} more bytes, got {left}")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, count: int) -> str | LongText:
        if count > _LONG_TEXT:
            return LongText(self.take(count))
        self.text_bytes += count
        if self.text_bytes > MAX_TEXT_BYTES:
            raise BundleError(f"pickle: must hold at most {MAX_TEXT_BYTES} bytes of short texts, but holds more")
        return self.decoded(self.take(count))

    def decoded(self, raw: Bytes) -> str:
        try:
            return str(raw, "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise BundleError(f"pickle: text before byte {self.position} is not UTF-8") from None

    def latin1(self, text: object, encoding: object) -> Bytes:
        """The bytes that protocol 2 wrote as a text of the first 256 characters."""
        if not isinstance(text, (str, LongText)) or encoding != "latin1":
            raise BundleError(f"pickle: corrupt before byte {self.position}: only text can be encoded, and as latin1")
        utf8 = memoryview(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else text.utf8
        self.encoded_bytes += len(utf8)
        if self.encoded_bytes > len(self.data):  # a text of the file was encoded again and again
            raise BundleError("pickle: the bytes that are written as text are larger than the file")
        decoder = codecs.getincrementaldecoder("utf-8")()
        made = bytearray()
        try:
            for start in range(0, len(utf8), _CHUNK):  # in parts: text in memory can be four times as large
                last = start + _CHUNK >= len(utf8)
                made += decoder.decode(utf8[start : start + _CHUNK], final=last).encode("latin-1")
        except UnicodeError:
            raise BundleError(f"pickle: text before byte {self.position} is not of bytes") from None
        return memoryview(made)

    def line(self) -> str:
        head = bytes(self.data[self.position : self.position + _MAX_LINE])
        length = head.find(b"\n")
        if length < 0:
            raise BundleError(f"pickle: expected a name of at most {_MAX_LINE} bytes at byte {self.position}")
        text = self.decoded(self.take(length))
        self.position += 1
        return text

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise BundleError(f"pickle: corrupt before byte {self.position}: an object is missing")
        return self.stack.pop()

    def pop_mark(self) -> list[object]:
        if not self.marks:
            raise BundleError(f"pickle: corrupt before byte {self.position}: a mark is missing")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def top(self) -> object:
        found = self.pop()
        self.stack.append(found)
        return found


def _name(module: str, name: str) -> str:
    """The full name of an object; modules that Python 2 and 3 name differently get the name of Python 3."""
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    return f"{module}.{name}"


def _push_global(machine: _Machine, module: object, name: object) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise BundleError("pickle: a global must be named by text")
    full = _name(module, name)
    if full not in machine.allowed:
        raise BundleError(f"pickle: expected tensors and plain options only, got the global {shown(full, 120)}")
    machine.stack.append(Global(full))


def _global(machine: _Machine) -> None:
    module = machine.line()
    _push_global(machine, module, machine.line())


def _stack_global(machine: _Machine) -> None:
    name = machine.pop()
    _push_global(machine, machine.pop(), name)


def _call(machine: _Machine) -> None:
    args, function = machine.pop(), machine.pop()
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise BundleError(f"pickle: corrupt before byte {machine.position}: a call must name a global and a tuple")
    if function.name == _ENCODE and len(args) == 2:
        machine.stack.append(machine.latin1(*args))
    else:
        machine.stack.append(Made(function.name, args))


def _build(machine: _Machine) -> None:
    state, target = machine.pop(), machine.top()
    if not isinstance(target, Made):
        raise BundleError(f"pickle: corrupt before byte {machine.position}: only an object can be given a state")
    target.state = state


def _set_entries(machine: _Machine, items: list[object], target: object) -> None:
    entries = target.entries if isinstance(target, Made) else target
    if not isinstance(entries, dict) or len(items) % 2:
        raise BundleError(f"pickle: corrupt before byte {machine.position}: entries need a dictionary, key by value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # No other keys occur, and hashing an object that a file made up (nested tuples, chosen numbers) can take ages.
        if not isinstance(key, str) and not (isinstance(key, int) and 0 <= key < _MAX_KEY):
            raise BundleError(f"pickle: keys must be text or small numbers, got a {type(key).__name__}")
        entries[key] = value


def _add_members(machine: _Machine, items: list[object], target: object) -> None:
    members = target.members if isinstance(target, Made) else target
    if not isinstance(members, list):
        raise BundleError(f"pickle: corrupt before byte {machine.position}: members need a list or a set")
    members.extend(items)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _set_entries(machine, [key, value], machine.top())


def _set_items(machine: _Machine) -> None:
    items = machine.pop_mark()
    _set_entries(machine, items, machine.top())


def _append(machine: _Machine) -> None:
    item = machine.pop()
    _add_members(machine, [item], machine.top())


def _append_many(machine: _Machine) -> None:
    items = machine.pop_mark()
    _add_members(machine, items, machine.top())


def _dict(machine: _Machine) -> None:
    made: dict[object, object] = {}
    _set_entries(machine, machine.pop_mark(), made)
    machine.stack.append(made)


def _frozenset(machine: _Machine) -> None:
    machine.stack.append(Made("builtins.frozenset", (machine.pop_mark(),)))


def _pop(machine: _Machine) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.pop()


def _tuple(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return step


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _put(width: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.memo[machine.number(width)] = machine.top()

    return step


def _get(width: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        index = machine.number(width)
        if index not in machine.memo:
            raise BundleError(f"pickle: corrupt before byte {machine.position}: there is no object {index}")
        machine.stack.append(machine.memo[index])

    return step


def _unpacked(layout: str) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.stack.append(struct.unpack(layout, machine.take(struct.calcsize(layout)))[0])

    return step


def _long(width: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        count = machine.number(width)
        if count > _MAX_INTEGER_BYTES:
            raise BundleError(f"pickle: integers must have at most {_MAX_INTEGER_BYTES} bytes, got {count}")
        machine.stack.append(int.from_bytes(machine.take(count), "little", signed=True))

    return step


def _text(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.text(machine.number(width)))


def _bytes(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(width)))


def _proto(machine: _Machine) -> None:
    protocol = machine.number(1)
    if not 2 <= protocol <= 5:
        raise BundleError(f"pickle: expected protocol 2 to 5, got {protocol}")


def _frame(machine: _Machine) -> None:
    count = machine.number(8)
    left = len(machine.data) - machine.position
    if count > left:
        raise BundleError(f"pickle: truncated at byte {machine.position}: expected {count} more bytes, got {left}")


_STEPS: dict[int, Callable[[_Machine], None]] = {
    code[0]: step
    for code, step in (
        (pickle.PROTO, _proto),
        (pickle.FRAME, _frame),
        (pickle.POP, _pop),
        (pickle.POP_MARK, lambda machine: machine.pop_mark() and None),
        (pickle.DUP, lambda machine: machine.stack.append(machine.top())),
        (pickle.MARK, lambda machine: machine.marks.append(len(machine.stack))),
        (pickle.NONE, lambda machine: machine.stack.append(None)),
        (pickle.NEWTRUE, lambda machine: machine.stack.append(True)),
        (pickle.NEWFALSE, lambda machine: machine.stack.append(False)),
        (pickle.BININT, _unpacked("<i")),
        (pickle.BININT1, _unpacked("<B")),
        (pickle.BININT2, _unpacked("<H")),
        (pickle.BINFLOAT, _unpacked(">d")),
        (pickle.LONG1, _long(1)),
        (pickle.LONG4, _long(4)),
        (pickle.SHORT_BINUNICODE, _text(1)),
        (pickle.BINUNICODE, _text(4)),
        (pickle.BINUNICODE8, _text(8)),
        (pickle.SHORT_BINBYTES, _bytes(1)),
        (pickle.BINBYTES, _bytes(4)),
        (pickle.BINBYTES8, _bytes(8)),
        (pickle.BYTEARRAY8, _bytes(8)),
        (pickle.EMPTY_TUPLE, lambda machine: machine.stack.append(())),
        (pickle.TUPLE1, _tuple(1)),
        (pickle.TUPLE2, _tuple(2)),
        (pickle.TUPLE3, _tuple(3)),
        (pickle.TUPLE, lambda machine: machine.stack.append(tuple(machine.pop_mark()))),
        (pickle.EMPTY_LIST, lambda machine: machine.stack.append([])),
        (pickle.LIST, lambda machine: machine.stack.append(machine.pop_mark())),
        (pickle.APPEND, _append),
        (pickle.APPENDS, _append_many),
        (pickle.EMPTY_DICT, lambda machine: machine.stack.append({})),
        (pickle.DICT, _dict),
        (pickle.SETITEM, _set_item),
        (pickle.SETITEMS, _set_items),
        (pickle.EMPTY_SET, lambda machine: machine.stack.append(Made("builtins.set", ()))),
        (pickle.ADDITEMS, _append_many),
        (pickle.FROZENSET, _frozenset),
        (pickle.BINPUT, _put(1)),
        (pickle.LONG_BINPUT, _put(4)),
        (pickle.MEMOIZE, _memoize),
        (pickle.BINGET, _get(1)),
        (pickle.LONG_BINGET, _get(4)),
        (pickle.GLOBAL, _global),
        (pickle.STACK_GLOBAL, _stack_global),
        (pickle.REDUCE, _call),
        (pickle.NEWOBJ, _call),
        (pickle.BUILD, _build),
        (pickle.BINPERSID, lambda machine: machine.stack.append(Made(PERSISTENT_ID, (machine.pop(),)))),
    )
}
