"""What shells offer on TAB for files and models; click itself offers commands, options and choices."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

import fastdc


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Lets the shell offer files and folders."""
    return [CompletionItem(incomplete, type="file")]


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offers the shipped models, and lets the shell offer folders."""
    # Folders come first: click's script for bash forgets what precedes them.
    shipped = Path(str(fastdc.__file__)).parent.joinpath("models").glob("*/fastdc.json")
    names = sorted(path.parent.name for path in shipped if path.parent.name.startswith(incomplete))
    return [CompletionItem(incomplete, type="dir"), *map(CompletionItem, names)]
