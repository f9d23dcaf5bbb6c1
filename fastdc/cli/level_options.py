"""The options of the noise levels: --first and --levels."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def _ratios(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Noise-to-signal ratios from "0.8" or "0.8,1.2"; none from "". Making the plan checks them against the model."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(",")) if value.strip() else ()
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 0.8 or 0.8,1.2, got {value!r:.80}", ctx, param) from None


def first_option(default: str) -> Callable[[Command], Command]:
    """The option --first, with the text that describes the command's default."""
    text = (
        "Noise levels of the first draws, as ratios of noise to signal (sigma / alpha); choose those that separate the "
        "classes best."
    )
    return click.option("--first", callback=_ratios, metavar="R[,R...]", help=f"{text}  [default: {default}]")


FIRST = first_option("the model's")


def _end(text: str) -> float | str:
    """An end of a band: a number, or the word "all"."""
    try:
        return "all" if text == "all" else float(text)
    except ValueError:
        raise click.BadParameter(f"expected two numbers, or all, got {text!r:.80}") from None


def _levels(
    ctx: click.Context, param: click.Parameter, value: tuple[Any, Any] | None
) -> tuple[float, float] | str | None:
    """The band; "all" for the whole schedule."""
    if value is not None and "all" in value:
        if value != ("all", "all"):
            raise click.BadParameter("expected two numbers, or all", ctx, param)
        return "all"
    return value


def levels_option(text: str) -> Callable[[Command], Command]:
    """The option --levels of a command that is a :class:`~fastdc.cli.grouped.LevelsCommand`.

    Args:
        text: What the band is for, and the default.
    """
    return click.option("--levels", type=(_end, _end), callback=_levels, metavar="LO HI|all", help=text)


LEVELS = levels_option(
    "Band of noise levels that the draws cover, as ratios of noise to signal (sigma / alpha); all: the whole schedule. "
    " [default: the model's]"
)
