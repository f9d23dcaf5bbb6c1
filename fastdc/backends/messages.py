"""Messages of other libraries in fastdc's errors."""


def one_line(error: BaseException) -> str:
    """The message of another library's exception, in one line of at most 200 characters.

    Args:
        error: The exception; if it has no message, the name of its type is used.

    Example:
        >>> from fastdc.backends import one_line
        >>> one_line(ValueError("out of\\n  memory"))
        'out of memory'
    """
    return " ".join(str(error).split())[:200] or type(error).__name__
