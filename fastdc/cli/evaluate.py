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
from fastdc.cli.images import print_notes
from fastdc.cli.options import check_plot
from fastdc.figures import plot_curves
from fastdc.support import InputError


def run(
    files: tuple[str, ...],
    radii: tuple[float, ...] | None,
    plot: str | None,
    paired: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.evaluate`."""
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
    print_notes(_notes(several, names), quiet=quiet)


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
