"""The options and the help of ``fastdc classify``; :mod:`fastdc.cli.classify` does it."""

from typing import Any

import click

from fastdc.cli.completing import files
from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.images import image_options
from fastdc.cli.options import run_options
from fastdc.cli.sources import check_sources

_EPILOG = """\b
Examples:
  fastdc classify three.png                      a digit, shipped model
  fastdc classify --model my-model photos/       every image below a folder
  fastdc classify --model my-model 'in/*.png'    files that match a pattern
  fastdc classify --model my-model scans.csv     files that a table lists
  fastdc classify --model my-model - < cat.png   standard input
  fastdc classify batch.npz --json --provenance run.json > out.jsonl
  fastdc classify batch.npz --rule full          every class at every draw
  fastdc classify photos/ --model my-model --self-calibrate 99   see below
  fastdc classify photos/ --model my-model --prior cat=9,dog=1   mostly cats
  fastdc classify batch.npz --rule paired -o alpha=0.001   a stricter test

\b
How it works: the network denoises each image under each class at several
noise levels, the draws. The class with the smallest mean error wins. A rule
drops classes that have lost before their last draw:
  race        the model's calibrated race; without a calibration, paired
  calibrated  drop a class once its lead in error exceeds a calibrated limit
  paired      paired t-tests, corrected for looks and rivals
  betting     like paired, without assuming a normal distribution
  ttest       uncorrected t-tests (Clark & Jaini)
  staged      keep the best to_keep[i] after n_samples[i] draws (Li et al.)
  sift        drop many classes early by a threshold (Chen et al.)
  full        never drop a class
A wrong -o NAME=VALUE is answered with the options that the rule has.

To change the result: --draws 256 makes it surer and slower, --rule full shows
what the race saves, and --seed 1 shows how much the noise matters. --weighting and
--loss change what an error is; a race that was calibrated for others then gives way
to paired tests. With labels, the last line shows which choice is more accurate.

Each line has an image, its class, and the three most probable classes, between tabs.
With --json, each is an object with the same fields, for jq and pandas.read_json(...,
lines=True): image, label, class, probabilities, errors (null: never evaluated),
evaluations, and run, a name for the model and the options. --provenance writes
what the name stands for, once: all that reproduces the run.

IMAGES may be patterns in quotes, and - for standard input: one image file, .npy or
.npz. The default model knows handwritten digits only, white strokes on black: pictures
that could be none, or have a bright background, need --model. Images of any size and
mode are accepted: fastdc resizes the shorter side, crops the centre and converts to the
model's channels. Arrays hold uint8, or floats in [0, 1]; other numbers need --window.
With the labels of an .npz file or of a table (.csv, .tsv, .jsonl, .parquet; columns path,
label, split), or in folders named after the classes, the accuracy is counted: classes are
matched by name, or else by number.

A model without a calibration can get one from the run itself: with --self-calibrate N,
N random images are run in full and find the limit with which the others race. A line
then says with --json what is promised about it: full, or race with its delta.

--prior says how often each class occurs where the images come from. It weighs the
probabilities (Bayes' rule), so that unsure images go to frequent classes; sure ones
stay. Without it, all classes are equally likely, however rare one was in training.

Lines appear in the order of the images, as soon as they are known. Ctrl-C prints
and saves the finished images. Printed lines are final: a second run repeats them.
"""


@click.command(name="classify", cls=GroupedCommand, epilog=_EPILOG)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...", callback=check_sources, shell_complete=files)
@run_options
@image_options()
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object per image: label, class, probabilities, errors, evaluations, run.",
)
@click.option(
    "--provenance",
    type=click.Path(dir_okay=False),
    metavar="FILE.json",
    help="Write to this file what reproduces the run: the model and its hash, the options, the versions.",
)
@click.option("--save", type=click.Path(dir_okay=False), metavar="FILE.npz", help="Save all errors to this file.")
def command(**options: Any) -> None:
    """Classify IMAGES: image files, folders, patterns, tables of files, .npy, .npz, or - for standard input."""
    from fastdc.cli.classify import run

    run(**options)
