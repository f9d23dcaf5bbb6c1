"""Messages of other libraries: one line, and of a long one the end, which names the cause."""

import pytest

from fastdc.support import one_line, shorten


@pytest.mark.parametrize("most", [20, 33, 200])
def test_the_end_of_a_long_message_is_kept(most: int) -> None:
    text = "while doing this\n" + "and that \n" * 100 + "CAUSE"
    short = shorten(text, most)
    assert len(short) <= most
    assert short.startswith("while")
    assert short.endswith("CAUSE")
    assert " ... " in short
    assert "\n" not in short


def test_a_short_message_is_whole() -> None:
    assert shorten("a\n b", 5) == "a b"
    assert shorten("x" * 200) == "x" * 200
    assert one_line(ValueError("x" * 500 + "CAUSE")).endswith("xCAUSE")
    assert one_line(ValueError()) == "ValueError"
