"""``fastdc evaluate``: statistics of certification files, side by side.

:mod:`fastdc.certification.summary` computes the numbers.
"""

import json
from pathlib import Path

import click

from fastdc.certification import (
    Records,
    compare,
    comparison_table,
    default_radii,
    names_of,
    read_records,
    summarize,
    summary_table,
)
from fastdc.cli.options import check_plot
from fastdc.figures import plot_curves
from fastdc.support import InputError

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
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--radii", callback=_numbers, metavar="R,R,...", help="Radii of the table.  [default: round steps]")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="OUT.png",
    help="Draw certified accuracy over the radius, one line per file; .png, .svg or .pdf.",
)
@click.option("--compare", "paired", is_flag=True, help="Compare the first file with each other one, image by image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    files: tuple[str, ...], radii: tuple[float, ...] | None, plot: str | None, paired: bool, as_json: bool
) -> None:
    """Tabulate and plot certified accuracy from FILES that `fastdc certify` has written."""
    if paired and len(files) < 2:
        raise InputError("--compare needs two files or more, got one")
    if plot is not None:
        check_plot(plot, files)
    several = [read_records(file) for file in files]
    asked = default_radii(several) if radii is None else radii
    names = names_of([Path(file) for file in files])
    summaries = [summarize(records, asked, name=name) for records, name in zip(several, names, strict=True)]
    comparisons = [
        compare(several[0], other, asked, names=(names[0], name))
        for other, name in zip(several[1:] if paired else (), names[1:], strict=False)
    ]
    if plot is not None:
        plot_curves(plot, several, names=names)
    if as_json:
        facts = {
            "files": [{"file": file, **summary.to_dict()} for file, summary in zip(files, summaries, strict=True)],
            "comparisons": [comparison.to_dict() for comparison in comparisons],
        }
        click.echo(json.dumps(facts, indent=2, allow_nan=False))
        return
    click.echo(summary_table(summaries))
    for comparison in comparisons:
        click.echo(f"\n{comparison_table(comparison)}")
    for note in _notes(several, names):
        click.echo(f"note: {note}", err=True)


def _notes(several: list[Records], names: list[str]) -> list[str]:
    """Facts about the files that the tables do not show."""
    notes = []
    for records, name in zip(several, names, strict=True):
        if records.expected is not None and len(records) < records.expected:
            notes.append(f"{name} is unfinished: {len(records)} of {records.expected} images")
        if not records.labelled:
            notes.append(f"{name} has unknown true classes: no accuracy")
    if len({tuple(sorted(records.idx.tolist())) for records in several}) > 1:
        notes.append("the files are not of the same images")
    return notes
