"""Messages of other libraries in fastdc's errors."""

_BEGINNING = 0.4  # share of a long message's beginning in what is kept; the cause is usually said at its end


def shorten(text: str, most: int = 200) -> str:
    """A text in one line; of a long one the beginning and, because it names the cause, the end.

    Args:
        text: Text of any length and number of lines.
        most: Largest number of characters.

    Example:
        >>> from fastdc.support import shorten
        >>> shorten("it failed in\\n  a step " + 99 * "x" + " because of y", most=30)
        'it failed ... xx because of y'
    """
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    kept = most - len(" ... ")
    head = int(kept * _BEGINNING)
    return f"{line[:head].rstrip()} ... {line[head - kept :].lstrip()}"


def printable(text: str) -> str:
    """A text of any origin, such as the name of a file, on one line: what does not print becomes a question mark.

    Args:
        text: The text.

    Example:
        >>> from fastdc.support import printable
        >>> printable("a\\x1b[31m.png")
        'a?[31m.png'
    """
    return "".join(char if char.isprintable() else "?" for char in text)


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of another library's exception, in one line.

    Args:
        error: The exception; if it has no message, the name of its type is used.
        most: Largest number of characters; of a longer message the beginning and the end are kept.

    Example:
        >>> from fastdc.support import one_line
        >>> one_line(ValueError("out of\\n  memory"))
        'out of memory'
    """
    return shorten(str(error), most) or type(error).__name__
