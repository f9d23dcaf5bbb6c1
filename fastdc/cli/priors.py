"""The option --prior: a word, weights on the command line or a text file of weights, as the library takes them."""

from pathlib import Path

import click

Prior = str | dict[str, float] | tuple[float, ...]

_EXPECTED = "expected uniform, data, NAME=WEIGHT,..., numbers in the order of the classes, or a file of these"
_MOST_BYTES = 2**26


def read_prior(ctx: click.Context, param: click.Parameter, value: str | None) -> Prior | None:
    """What --prior stands for; the library compares it with the model's classes."""
    if value is None or value in ("uniform", "data"):
        return value
    try:
        path = Path(value)
        entries = _lines(path) if path.is_file() else value.split(",")
        return _weights([entry.strip() for entry in entries])
    except OSError as error:
        raise click.BadParameter(f"{value!r:.80} cannot be read: {error.strerror or error}", ctx, param) from None
    except ValueError:
        raise click.BadParameter(f"{_EXPECTED}, got {value!r:.80}", ctx, param) from None


def _lines(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES).decode()
    return [line for line in text.splitlines() if line.strip()]


def _weights(entries: list[str]) -> Prior:
    """Weights by name or in order; all entries have the same form."""
    if not any("=" in entry for entry in entries):
        return tuple(float(entry) for entry in entries)
    named = [entry.rpartition("=") for entry in entries]
    weights = {name.strip(): float(weight) for name, _, weight in named}
    if len(weights) < len(entries) or "" in weights:
        raise ValueError
    return weights
