"""Values in error messages: a short form, made in bounded time whatever a file put in the value's place.

``f"{value!r:.80}"`` formats all of a value before it cuts the text. That takes ages if tuples are shared (n tuples with
2^n entries) and ends in a RecursionError if they are deep.
"""

from collections.abc import Iterator

_DEPTH = 8  # levels of containers that are shown
_INTEGER_BITS = 256


def shown(value: object, limit: int = 80) -> str:
    """Writes a value for a message: its repr, cut to a number of characters.

    Containers are read only as far as the text goes. Large integers and deep levels are shown as "...". If the repr of
    another object fails, its type is shown.

    Args:
        value: Any value.
        limit: Largest number of characters.

    Returns:
        One line of text.

    Example:
        >>> from fastdc.support import shown
        >>> shown([1, "two", {"three": 3.0}]), shown(["x" * 100], 10)
        ("[1, 'two', {'three': 3.0}]", "['xxxxxxxx")
    """
    text = ""
    for piece in _pieces(value, limit, _DEPTH):
        text += piece
        if len(text) >= limit:
            break
    return text[:limit]


def _pieces(value: object, limit: int, depth: int) -> Iterator[str]:
    """The parts of a value's repr, none of them empty, so that `limit` of them suffice."""
    if isinstance(value, (str, bytes, bytearray)):
        yield repr(value[:limit])
    elif isinstance(value, memoryview):
        yield repr(bytes(value[:limit]))
    elif isinstance(value, int) and value.bit_length() > _INTEGER_BITS:  # Python refuses to write 4301 digits
        yield "..."
    elif type(value) in (list, tuple, dict):
        yield from _container(value, limit, depth)
    else:
        try:
            text = repr(value)
        except Exception:  # a foreign type may raise anything
            text = ""
        yield " ".join(text.split())[:limit] or f"<{type(value).__name__}>"


def _container(value: object, limit: int, depth: int) -> Iterator[str]:
    brackets = "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
    yield brackets[0]
    if depth == 0 and value:
        yield "..."
    elif isinstance(value, dict):
        for index, (key, item) in enumerate(value.items()):
            if index:
                yield ", "
            yield from _pieces(key, limit, depth - 1)
            yield ": "
            yield from _pieces(item, limit, depth - 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if index:
                yield ", "
            yield from _pieces(item, limit, depth - 1)
        if isinstance(value, tuple) and len(value) == 1:
            yield ","
    yield brackets[1]
