"""The options and the help of ``fastdc certify``; :mod:`fastdc.cli.certify` does it."""

from typing import Any

import click

from fastdc.cli.completing import files
from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.images import image_options
from fastdc.cli.names import ALPHA, COPIES, ESTIMATIONS, METHODS, SELECTION_COPIES, TARGET_COPIES, TOLERANCE
from fastdc.cli.options import DENOISER, base_options, model_option
from fastdc.cli.sources import check_sources

_EPILOG = """\b
Examples:
  fastdc certify --data digits --max 20 --sigma 0.25 --out run.tsv
  fastdc certify --data val/ --model my-model --sigma 0.5 --out run.tsv
  one radius, which is much cheaper:
    fastdc certify --data val.npz --sigma 0.25 --radius 0.5 --out half.tsv
  the numbers again:
    fastdc evaluate run.tsv

The smoothed classifier answers the class that the model names most often when Gaussian noise of standard
deviation SIGMA is added to the image. If that class wins with probability p > 1/2, it wins for every
image within the L2 distance sigma * Phi^-1(p). A larger sigma reaches farther and costs accuracy.
N0 noisy copies choose the class, N fresh ones bound p, and each certificate holds with probability
1 - alpha. An image whose bound stays below 1/2 is abstained from (-1). If all N copies are won, the
radius is 2.5 sigma for N = 1000 and 3.2 sigma for N = 10000. SIGMA and radii are in pixels in [0, 1].

--radius R asks only whether R can be certified, with as few copies as possible, at most N.
--estimation pilot chooses the number of copies from the N0 copies; anytime stops when more copies
would gain little. Both may lose about --tolerance of radius against all N copies.

DATA is a folder with one sub-folder per class, a table of image files (.csv with columns path and label),
an .npz with images and labels, "digits" for the test digits that come with fastdc, or images without
labels: then, in place of a table of accuracies, each image is a line with its name, class ("abstains": none)
and radius between tabs.
--skip and --max choose the images 0, SKIP, 2 SKIP, ... below MAX, as the programs of other papers do.

FILE gets one line per image as soon as the image is certified; FILE.json holds everything that
reproduces the command. After Ctrl-C or a crash, the same command goes on where it stopped and ends
in the same file.
"""


@click.command(name="certify", cls=GroupedCommand, epilog=_EPILOG)
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    callback=check_sources,
    shell_complete=files,
    help="Images: a folder, a file, a pattern, a table of files, .npz, .npy, - (standard input), or digits.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="File of the records, one line per image.",
)
@model_option
@click.option("--sigma", required=True, type=float, help="Standard deviation of the noise, in pixels in [0, 1].")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="epndc",
    show_default=True,
    help="How the model classifies a noisy copy.",
)
@DENOISER
@click.option(
    "--compat",
    type=click.Choice(("ndc",)),
    help="Use the released grid and weights of --method epndc or apndc, with every class at every level unless --rule "
    "is given.",
)
@click.option(
    "--n0", type=int, default=SELECTION_COPIES, show_default=True, help="Number of copies that choose the class."
)
@click.option(
    "--n",
    type=int,
    help=f"Number of copies that bound its probability.  [default: {COPIES}; with --radius {TARGET_COPIES}]",
)
@click.option("--alpha", type=float, default=ALPHA, show_default=True, help="Probability of a false certificate.")
@click.option("--radius", type=float, metavar="R", help="Ask only whether this radius can be certified.")
@click.option(
    "--estimation",
    type=click.Choice(ESTIMATIONS),
    default="fixed",
    show_default=True,
    help="Number of copies: N, as many as the N0 copies suggest, or until more would gain little.",
)
@click.option(
    "--tolerance", type=float, metavar="R", help=f"Radius that pilot and anytime may lose.  [default: {TOLERANCE}]"
)
@click.option("--skip", type=int, default=1, show_default=True, help="Certify every SKIP-th image.")
@click.option("--max", "stop", type=int, metavar="MAX", help="Only images before this one.  [default: all]")
@click.option("--overwrite", is_flag=True, help="Start FILE again.")
@image_options()
@base_options
def command(**options: Any) -> None:
    """Give each image of DATA a class and a radius: no change of the image within this L2 distance changes the class.

    The method is randomized smoothing, described below. The records go to FILE, a summary to the terminal; of images
    without labels, a line per image.
    """
    from fastdc.cli.certify import run

    run(**options)
