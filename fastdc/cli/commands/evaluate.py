"""The options and the help of ``fastdc evaluate``; :mod:`fastdc.cli.evaluate` does it."""

from typing import Any

import click

from fastdc.cli.completing import files
from fastdc.cli.options import QUIET
from fastdc.cli.sources import check_sources

_EPILOG = """\b
Examples:
  fastdc evaluate run.tsv                     a table at round radii
  fastdc evaluate a.tsv b.tsv --radii 0,0.25,0.5 --plot curves.svg
  fastdc evaluate new.tsv old.tsv --compare   new minus old, image by image
  fastdc evaluate run.tsv --json              for scripts

Certified accuracy at radius R is the share of images whose true class is predicted with a radius of
at least R (L2, pixels in [0, 1]). At 0 it is the clean accuracy of the smoothed classifier. An image
that is wrong or abstained from counts as 0 in the average radius. Below each number stands its 95 %
confidence interval (Wilson's for shares): where the number on more images like these would lie. NFE
and copies are network evaluations and noisy copies per image, selection included.

--compare is for files on the same images: their difference is known far better than two separate
errors suggest. p is the probability of a difference at least as large between equally good
classifiers (McNemar's exact test).

A file may be unfinished, or written by another program with the columns of Cohen et al.: idx, label,
predict, radius, correct, time (h:mm:ss or seconds), between tabs, commas or spaces.
"""


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 0,0.25,0.5, got {value!r:.80}", ctx, param) from None


@click.command(name="evaluate", epilog=_EPILOG)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", callback=check_sources, shell_complete=files)
@click.option("--radii", callback=_numbers, metavar="R,R,...", help="Radii of the table.  [default: round steps]")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="OUT.png",
    help="Draw certified accuracy over the radius, one line per file; .png, .svg or .pdf (needs matplotlib).",
)
@click.option("--compare", "paired", is_flag=True, help="Compare the first file with each other one, image by image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@QUIET
def command(**options: Any) -> None:
    """Tabulate and plot certified accuracy from FILES that `fastdc certify` has written."""
    from fastdc.cli.evaluate import run

    run(**options)
