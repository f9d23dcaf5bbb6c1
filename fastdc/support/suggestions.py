"""The word that was probably meant, for errors about words that are not known."""

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that resembles it most, or nothing.

    Args:
        word: What came.
        known: What is known.

    Example:
        >>> from fastdc.support import did_you_mean
        >>> did_you_mean("digit", ["digits", "shapes"]), did_you_mean("cats", ["digits"])
        ("; did you mean 'digits'?", '')
    """
    from difflib import get_close_matches  # takes a while

    spelled = {name.casefold(): name for name in known}
    found = get_close_matches(word[:100].casefold(), spelled, n=1, cutoff=0.7)  # owl is no cow
    return f"; did you mean {spelled[found[0]]!r:.100}?" if found else ""
