"""The options and the help of ``fastdc demo``; :mod:`fastdc.cli.demo` does it."""

from typing import Any

import click

from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.options import run_options

_EPILOG = """\b
Examples:
  fastdc demo                          the shipped UNet, with the race
  fastdc demo --rule full --draws 16   every class at every draw, to compare
  fastdc demo --model digits-mlp       a network some 20 times cheaper
  fastdc demo --model mnist            300 digits of 28x28, not 400 of 8x8
  fastdc demo --draws 4                faster, slightly less accurate
  fastdc demo --plot sheet.png         images and errors (needs matplotlib)

The output: "evaluations" is the number of network calls per image; a full run
needs one per class and draw. The race drops classes that have lost, so it needs
far fewer. "fastdc classify --help" describes every rule.
"""


@click.command(name="demo", cls=GroupedCommand, epilog=_EPILOG)
@run_options
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Plot the images and their errors per class, misclassified ones first, each with its index in "
    "fastdc.data.digits_test(), or mnist_test(): .png, .svg or .pdf.",
)
def command(**options: Any) -> None:
    """Classify the images of handwritten digits that come with fastdc; report accuracy, cost and speed."""
    from fastdc.cli.demo import run

    run(**options)
