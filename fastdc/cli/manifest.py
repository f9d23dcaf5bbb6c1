"""``fastdc manifest``: a manifest of a table that others publish.

:func:`fastdc.data.make_manifest` makes it.
"""

from typing import Any

import click

from fastdc.cli.images import print_notes
from fastdc.cli.options import check_output
from fastdc.data import make_manifest
from fastdc.support import InputError, aligned, printable, shown


def run(table: str, out: str, fractions: str, quiet: bool, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.manifest`."""
    check_output(out, [table])
    try:
        shares = [float(part) for part in fractions.split(",")]
    except ValueError:
        raise InputError(f"--fractions must be numbers such as 0.8,0.1,0.1, got {shown(fractions)}") from None
    made = make_manifest(table, out, fractions=shares, **options)
    print_notes(made.notes, quiet=quiet)
    classes = sorted({label for counts in made.counts.values() for label in counts})
    head = [f"{made.layout} table", "images", *map(printable, classes)]
    rows = [
        [printable(split), str(sum(counts.values())), *(str(counts.get(label, 0)) for label in classes)]
        for split, counts in made.counts.items()
    ]
    click.echo(aligned([head, *rows]))
    if not quiet:
        click.echo(f"saved        {out}", err=True)
