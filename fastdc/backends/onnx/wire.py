"""Protobuf messages read from their bytes, without a protobuf library and without recursion.

A message is a list of fields: a tag, which is 8 * number + kind, and a value. Readers accept several spellings of one
message (padded numbers, fields of other kinds, one part given in pieces that they merge), so that a check that knows
one spelling can be passed by another. Writers emit one spelling only, and only that one is read here: the shortest
form of every number, known fields of their own kind, and single fields once. Whatever passes means the same to every
reader.
"""

from collections.abc import Iterator, Mapping

Field = tuple[int, int, "int | memoryview"]
"""Number, kind (0 varint, 1 eight bytes, 2 counted bytes, 5 four bytes) and value."""

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5

_MOST_BYTES = 10  # of a varint of 64 bits
_LARGEST_NUMBER = 2**29 - 1


def fields(content: memoryview) -> Iterator[Field]:
    """The fields of a message in their order.

    Raises:
        ValueError: The bytes are not a message in its shortest form.
    """
    at, end = 0, len(content)
    while at < end:
        tag, at = varint(content, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= _LARGEST_NUMBER:
            raise ValueError(f"a field has the number {number}")
        if kind == VARINT:
            value, at = varint(content, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, at = varint(content, at)
        elif kind in (EIGHT, FOUR):
            length = 8 if kind == EIGHT else 4
        else:
            raise ValueError(f"field {number} is of the unknown kind {kind}")
        if length > end - at:
            raise ValueError("it ends early")
        yield number, kind, content[at : at + length]
        at += length


def varint(content: memoryview, at: int) -> tuple[int, int]:
    """The number of up to 64 bits at a position, and the position after it.

    Raises:
        ValueError: The bytes end early, or are not the shortest form of a number.
    """
    if at < len(content) and content[at] < 0x80:  # mostly
        return content[at], at + 1
    value = shift = 0
    for byte in content[at : at + _MOST_BYTES]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise ValueError("a number is not in its shortest form")
            if value >= 2**64:
                raise ValueError("a number is too large")
            return value, at
        shift += 7
    raise ValueError("a number is too long" if shift >= 7 * _MOST_BYTES else "it ends early")


def varints(packed: memoryview) -> list[int]:
    """The numbers that stand one after the other in counted bytes."""
    values, at = [], 0
    while at < len(packed):
        value, at = varint(packed, at)
        values.append(value)
    return values


def message(value: "int | memoryview") -> memoryview:
    """The bytes of a field that holds a message.

    Raises:
        ValueError: The field holds a number.
    """
    if isinstance(value, int):
        raise ValueError("a number stands where a message is due")
    return value


Known = Mapping[int, tuple[str, tuple[int, ...], bool]]
"""By number: name, kinds and whether a field may be repeated."""


class Reader:
    """Reads messages of known fields, up to a number of fields in all.

    Args:
        budget: The number of fields.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget

    def read(self, content: memoryview, name: str, known: Known) -> dict[str, list["int | memoryview"]]:
        """The values of a message's fields by name, each in its order; absent fields have no entry.

        Args:
            content: The message.
            name: Name of its type, for messages.
            known: The fields that it may have.

        Raises:
            ValueError: The bytes are not such a message in its shortest form, or the budget is used up.
        """
        found: dict[str, list[int | memoryview]] = {}
        for number, kind, value in fields(content):
            self._left -= 1
            if self._left < 0:
                raise ValueError("it has too many parts")
            if number not in known:
                raise ValueError(f"{name} has the field {number}, which no denoiser needs")
            field, kinds, repeated = known[number]
            if kind not in kinds:
                raise ValueError(f"{name}.{field} is of the kind {kind}")
            if field in found and not repeated:
                raise ValueError(f"{name}.{field} is given twice")
            found.setdefault(field, []).append(value)
        return found
