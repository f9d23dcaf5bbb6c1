"""The options and the help of ``fastdc calibrate``; :mod:`fastdc.cli.calibrate` does it."""

from typing import Any

import click

from fastdc.cli.completing import files, models
from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.images import image_options
from fastdc.cli.level_options import FIRST, LEVELS
from fastdc.cli.names import CALIBRATION_DRAWS
from fastdc.cli.options import (
    DENOISER,
    LOSS,
    METHOD,
    PROMPTS,
    QUIET,
    SIGMA,
    WEIGHTING,
    network_options,
)
from fastdc.cli.sources import check_sources

_EPILOG = """\b
Examples:
  the model then races by default:
    fastdc calibrate my-model val.npz --write
  the model stays unchanged:
    fastdc calibrate my-model val-photos/ --out cal.json
    fastdc classify test.npz --model my-model --calibration cal.json
  choose noise levels and all that belongs to them, too:
    fastdc calibrate my-model val.npz --choose --write
  begin at an informative noise level:
    fastdc calibrate my-model val.npz --first 0.8 --write
  for fastdc certify --sigma 0.25:
    fastdc calibrate my-model val.npz --sigma 0.25 --delta 0.02 --write

Every image is run in full under several noise seeds, which takes classes x draws x seeds evaluations
per image: seconds with the shipped MLP and 197 images, but a job for a GPU with a large model. The
images must be like those to be classified, and used for neither training nor testing: a race that is
calibrated on training images does not keep its promise. A model made by fastdc train knows the hash of its
training set and refuses the whole set; a part of it, and images without labels, it cannot tell from others,
and models of other tools know nothing. Labels are not needed.

Number of images: DELTA is at least 1 / (images + 1), so 99 images allow 0.01. More images make the
race faster at the same DELTA. The promise holds for the levels and weights that were calibrated; a
run with other --levels, --first, --order, --weighting or --loss uses paired tests instead.

--choose compares bands of noise levels, then weightings and losses, by the accuracy on labelled
images, all from one full run over a wide band. The model's own plan stays unless another one is better beyond
doubt. Strictly, the race's promise needs images by which nothing was chosen, so every second image
chooses and the others calibrate; if these would be too few for DELTA, fewer images choose. Without
labels only the first draw is chosen. Without --choose, the command names the most informative level
for --first, and says if another band would be better beyond doubt.
"""


@click.command(name="calibrate", cls=GroupedCommand, epilog=_EPILOG)
@click.argument("bundle", metavar="BUNDLE", shell_complete=models)
@click.argument("data", nargs=-1, required=True, metavar="DATA...", callback=check_sources, shell_complete=files)
@click.option("--out", type=click.Path(dir_okay=False), metavar="FILE.json", help="Write the calibration to a file.")
@click.option(
    "--write",
    is_flag=True,
    help="Write the calibration into BUNDLE, with --first, or all that --choose chose, as its defaults.",
)
@click.option(
    "--choose",
    is_flag=True,
    help="First choose the band of noise levels, the weighting, the loss, the first draw and the default number of "
    "draws on half of the images, by their labels; the race is calibrated on the other half, at --draws. Options that "
    "are given stay.",
)
@click.option(
    "--delta",
    type=float,
    help="Share of answers that may differ from the full run's; a smaller share makes the race slower.  [default: "
    "0.01, or more if there are few images]",
)
@click.option(
    "--draws",
    type=int,
    help="Draws of the full run, and so of the race; --choose leaves them as they are.  "
    f"[default: {CALIBRATION_DRAWS}, or fewer, from 16, if evaluations take long]",
)
@click.option(
    "--seeds", type=int, help="Number of noise seeds per image.  [default: 8, or fewer if evaluations take long]"
)
@PROMPTS
@FIRST
@LEVELS
@WEIGHTING
@LOSS
@SIGMA
@METHOD
@DENOISER
@click.option("--level-weights", is_flag=True, help="Also fit a curve of level weights (needs labels).")
@image_options("val")
@network_options
@QUIET
def command(**options: Any) -> None:
    """Calibrate the race of BUNDLE, the folder of a model, on the validation images DATA.

    The race is the default rule of `fastdc classify`: it stops evaluating a class once its error lags too far behind
    the best one. DATA are images as `fastdc classify` takes them. The command finds the smallest lead at which a class
    may be dropped, such that a new image like these loses the answer of the full run with probability at most DELTA.
    """
    from fastdc.cli.calibrate import run

    run(**options)
