"""The word that was probably meant."""

from fastdc.support import did_you_mean


def test_the_closest_word_is_suggested_as_it_is_written() -> None:
    known = ("digits", "digits-mlp", "Shapes")
    assert did_you_mean("digit", known) == "; did you mean 'digits'?"
    assert did_you_mean("digitsmlp", known) == "; did you mean 'digits-mlp'?"
    assert did_you_mean("shape", known) == "; did you mean 'Shapes'?"
    assert did_you_mean("photo.png", known) == ""
    assert did_you_mean("owl", ("cow", "cat")) == ""
    assert did_you_mean("x", ()) == ""
    assert len(did_you_mean("y" * 10**6, ["y" * 10**6])) < 200
