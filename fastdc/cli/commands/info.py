"""The options and the help of ``fastdc info``; :mod:`fastdc.cli.info` does it."""

from typing import Any

import click

from fastdc.cli.completing import models
from fastdc.cli.options import QUIET

_EPILOG = """\b
Examples:
  fastdc info                this installation
  fastdc info digits         a shipped model
  fastdc info my-model       a folder of your own; every file is verified
  fastdc info --json         the same facts, for scripts

"models" lists the shipped ones. An extra that is missing is shown with the command that installs it.
"""


@click.command(name="info", epilog=_EPILOG)
@click.argument("model", required=False, metavar="[MODEL]", shell_complete=models)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@QUIET
def command(**options: Any) -> None:
    """Describe this installation, or MODEL after verifying its files."""
    from fastdc.cli.info import run

    run(**options)
