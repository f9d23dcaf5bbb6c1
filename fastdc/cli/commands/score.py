"""The options and the help of ``fastdc score``; :mod:`fastdc.cli.score` does it."""

from typing import Any

import click

from fastdc.cli.completing import files, models
from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.images import image_options
from fastdc.cli.options import run_options_of_model
from fastdc.cli.sources import check_sources

_EPILOG = """\b
Examples:
  fastdc score digits                   the test images that come with fastdc
  fastdc score my-model test/           a folder with one sub-folder per class
  fastdc score my-model test.npz --html score.html --plot confusion.png
  fastdc score my-model test.csv --by site --by sex
  fastdc score my-model test/ --positive melanoma --sensitivity 0.95
  fastdc score my-model scans.csv --baseline cnn --train scans.csv
  fastdc score my-model test/ --json | jq .accuracy
  fastdc score my-model test/ --check 0   the race alone

\b
The page, from the top:
  accuracy   share of right answers, with Wilson's 95 % interval
  balanced   mean recall: every class counts the same
  macro F1   mean F1 (harmonic mean of precision and recall) of the classes
  AUROC      how well probabilities rank a class against the rest; mean
  AUPRC      average precision of the same ranking; mean
  ECE        |share right - mean probability| of the answers, averaged over
             15 bins of equal width of the answer's probability
  Brier      mean of the summed squared errors of all probabilities, 0 to 2
  log loss   mean of -log of the true class's probability
  refusal    accuracy of the rest when the answers of least probability are
             refused; area: mean over all numbers of refused images
  full run   how many answers are those of the full run: same plan, seed and
             noise, no class dropped; and what the calibration promises
A measure that is not defined is "-", and a line says why. Intervals are
95 %: Wilson's for shares of images, a stratified bootstrap's for others.

ECE, Brier, log loss and AUROC are about probabilities, so they depend on the
temperature that `fastdc export --calibrate` fits. With --decision vote, probabilities
are shares of votes.

The check of the full run takes classes x draws evaluations per image. By default it takes
100 images, fewer if it would take longer than the run and some minutes; its cost is stated
apart. Time per image is that of the run: without reading images and opening the model.

Ctrl-C keeps what was done: the page says on how many images its numbers are.
"""


@click.command(name="score", cls=GroupedCommand, epilog=_EPILOG)
@click.argument("model", metavar="MODEL", shell_complete=models)
@click.argument("data", nargs=-1, metavar="[DATA]...", callback=check_sources, shell_complete=files)
@click.option(
    "--by",
    multiple=True,
    metavar="COLUMN",
    help="Also score the groups of a manifest's column, such as site or sex, and name the worst; may be repeated.",
)
@click.option(
    "--check",
    type=int,
    metavar="N",
    help="Images, drawn at random, that are also run in full to see whether answers agree; 0: none.  [default: as "
    "many as cost what the run costs, 10 to 100]",
)
@click.option(
    "--positive",
    metavar="CLASS",
    help="The class that a test looks for, by name: also print its sensitivity, specificity, F1, AUROC and AUPRC "
    "against the rest, for every group of --by too.",
)
@click.option(
    "--sensitivity",
    type=float,
    metavar="S",
    help="Share of the positive class that a threshold on its probability must find, for the specificity there.  "
    "[default: 0.95]",
)
@click.option(
    "--threshold",
    type=float,
    metavar="P",
    help="Threshold for the positive class that was found on other images, as this command finds it on validation "
    "images.  [default: found on DATA, which is optimistic]",
)
@click.option(
    "--baseline",
    multiple=True,
    metavar="NAME",
    help="Train a discriminative classifier on --train and score it beside the model: cnn, or timm:NAME for a network "
    "of the package timm; may be repeated (needs torch).",
)
@click.option(
    "--train",
    metavar="DATA",
    shell_complete=files,
    help="Labelled images, or their split train, on which baselines are trained: those that the model was trained on.",
)
@click.option(
    "--val",
    metavar="DATA",
    shell_complete=files,
    help="Images that choose a baseline's epoch and temperature.  [default: the split val of --train, or a fifth of "
    "--train]",
)
@run_options_of_model
@image_options()
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option(
    "--csv", type=click.Path(dir_okay=False), metavar="FILE.csv", help="Write a table of the classes, in every group."
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False),
    metavar="FILE.html",
    help="Write a page with pictures that needs no other file.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Draw the confusion matrix, the reliability diagram and the refusal curve: .png, .svg or .pdf (needs "
    "matplotlib).",
)
@click.option("--save", type=click.Path(dir_okay=False), metavar="FILE.npz", help="Save all errors to this file.")
def command(**options: Any) -> None:
    """Score MODEL, a shipped model or a bundle folder, on the labelled images DATA.

    DATA are folders with one sub-folder per class, .npz files with labels, or manifests. They should be images that
    neither trained nor calibrated the model. Without DATA, digits, digits-mlp, mnist and phantoms are scored on the
    test images that come with fastdc. Needs scikit-learn.
    """
    from fastdc.cli.score import run

    run(**options)
