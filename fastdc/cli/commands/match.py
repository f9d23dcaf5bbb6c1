"""The options and the help of ``fastdc match``; :mod:`fastdc.cli.match` does it."""

from typing import Any

import click

from fastdc.cli.completing import files, models
from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.options import text_options
from fastdc.support import InputError

_EPILOG = """\b
Examples:
  fastdc match cube.png -p "a red cube" -p "a blue cube" --model shapes
  fastdc match asked.csv --model my-model          candidates of each image
  fastdc match asked.csv --model my-model --calibrate validation.csv
  fastdc match asked.csv --clip clip/              CLIP on the same table
  fastdc match winoground/examples.jsonl --model my-model     pairs
  fastdc match known.csv --rank --model my-model   retrieval
  fastdc match asked.csv --model my-model --level-plot levels.png

\b
Tables (.csv, .tsv, .jsonl, .parquet; images relative to the table):
  image, prompt            a row per candidate text of an image
    and truth, kind        1 for the right text; the kind of a wrong one
  image_0, image_1, caption_0, caption_1
    and id, tag            a row per pair; caption_0 describes image_0

Images and texts: a line per image has its name, the best text, and it and the two
next best with their scores, between tabs; with --json, an object with all scores. A diffusion model's
score is its negative mean error. All images run together, each among its own texts, and
a text is encoded once. With truth, the last line has the accuracy.

Pairs (Winoground): the text score asks of each image for its caption, the image score
of each caption for its image, the group score both; a tie is no success. Images compare
by the error without a text less the error under it, of the same levels and noise, which
takes a model with "no class". Every draw is evaluated, so there is no --rule.

--rank ranks all images for each text, by the same difference: recall at 1, 5 and 10, and
the mean reciprocal rank. It takes images x texts x draws evaluations.

--calibrate finds the limit with which --rule race drops texts on a table of validation
images with candidates like those to come: answers then differ from the full run's with
probability at most --delta.

--level-plot evaluates every draw and shows which noise levels tell the right text from each
kind of wrong one: a table, and a plot.
"""


def _one(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> str | None:
    """The folder; of --clip and --siglip, the second one would silently replace the first."""
    if len(given) > 1:
        raise InputError(f"expected one model to ask, got --clip or --siglip {len(given)} times")
    return given[0] if given else None


@click.command(name="match", cls=GroupedCommand, epilog=_EPILOG)
@click.argument("sources", nargs=-1, required=True, metavar="TABLE|IMAGES...", shell_complete=files)
@click.option(
    "--prompt",
    "-p",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="A candidate text of all IMAGES; repeat it for each.",
)
@click.option(
    "--model",
    metavar="NAME|FOLDER",
    shell_complete=models,
    help="A diffusion model: a shipped one, or a folder from fastdc export. Without a text encoder, texts are the "
    "names of its classes.",
)
@click.option(
    "--clip",
    "--siglip",
    multiple=True,
    callback=_one,
    metavar="FOLDER",
    shell_complete=files,
    help="CLIP or SigLIP, a folder of transformers.",
)
@click.option("--vilt", metavar="FOLDER", shell_complete=files, help="ViLT for retrieval, a folder of transformers.")
@click.option("--rank", is_flag=True, help="Rank all images of the table for each text.")
@click.option(
    "--calibrate",
    metavar="TABLE",
    shell_complete=files,
    help="Calibrate the race on this table of validation images with candidates of their own.",
)
@click.option(
    "--delta",
    type=float,
    metavar="D",
    help="Probability with which the race of --calibrate may lose the full run's answer.  [default: 0.01, or the least "
    "up to 0.05 that the images support: 99 images, or 19 at least]",
)
@click.option(
    "--level-plot",
    "plot",
    type=click.Path(dir_okay=False),
    metavar="FILE.png",
    help="Evaluate every draw, and plot which noise levels tell the right text from each kind of wrong one.",
)
@text_options
@click.option("--json", "as_json", is_flag=True, help="Print an object per image; of pairs and rankings, one object.")
@click.option(
    "--csv",
    type=click.Path(dir_okay=False),
    metavar="FILE.csv",
    help="Write a row per image and text; per pair; or per text.",
)
def command(**options: Any) -> None:
    """Ask which text describes each image: of a TABLE of images and texts, or IMAGES with --prompt."""
    from fastdc.cli.match import run

    run(**options)
