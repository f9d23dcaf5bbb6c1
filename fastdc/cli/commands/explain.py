"""The options and the help of ``fastdc explain``; :mod:`fastdc.cli.explain` does it."""

from typing import Any

import click

from fastdc.cli.completing import files
from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.images import image_options
from fastdc.cli.options import run_options
from fastdc.cli.sources import check_sources

_EPILOG = """\b
Examples:
  fastdc explain three.png                        a digit, shipped model
  fastdc explain three.png --against 8            why no 8?
  fastdc explain three.png --html three.html      a page for people
  fastdc explain --model my-model scans/ --against healthy --html out.html
  fastdc explain three.png --against 8 --counterfactual --html three.html
  fastdc explain batch.npz --plot maps.png --save maps.npz
  fastdc explain three.png --against 8 --counterfactual-plot eight.png
  fastdc explain three.png --map-draws 512        surer, and takes longer

\b
What a map is: the network denoises the image under two classes, with the same
noise. At each pixel, the map is the error under the class against, minus the
error under the class that is explained, averaged over the draws. Its mean
over all pixels is the difference of errors that decides between the two.
  for        pixels that speak for the class that is explained
  against    pixels that speak for the other class
Only significant pixels count. With --control fdr, at most --alpha of an
image's significant pixels are expected to be noise; with fwer, any such pixel
appears with at most that probability. (This is about classes that the noise
did not choose, see docs/explain.md.) More draws make more significant.

Each line has an image, its answer with the probability, the classes that are
compared, the regions for and against, and the cost, between tabs. "undecided":
the difference of their errors is within its noise. Rows and columns count
from 0, in the image as the model gets it. With --json, each is an object.

The cost is that of `fastdc classify`, and two evaluations for each draw of a map. For a
model that works on latents, maps are those of latents, enlarged to the image.

--counterfactual edits each image towards the class against, with the same
network, and as a check towards its own; lines, page and sheet tell whether the
answer followed. It takes some hundred evaluations per image more.

IMAGES and all options of images and draws are those of `fastdc classify`.
"""


@click.command(name="explain", cls=GroupedCommand, epilog=_EPILOG)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...", callback=check_sources, shell_complete=files)
@click.option(
    "--against",
    metavar="CLASS",
    help="Class to compare with; images that are answered this class take their runner-up, and a note says how many.  "
    "[default: the most probable other class]",
)
@click.option("--class", "explained", metavar="CLASS", help="Class to explain.  [default: the answer]")
@click.option(
    "--map-draws",
    type=int,
    metavar="N",
    help="Draws of a map; beyond the plan's own, they go on in its order.  [default: those of the plan]",
)
@click.option(
    "--alpha", type=float, default=0.05, show_default=True, help="Level of the significant pixels, up to 0.083."
)
@click.option(
    "--control",
    type=click.Choice(("fdr", "fwer")),
    default="fdr",
    show_default=True,
    help="What --alpha bounds: the share of noise among the significant pixels, or the probability of any.",
)
@click.option(
    "--smooth",
    type=float,
    default=0.0,
    show_default=True,
    metavar="PIXELS",
    help="Standard deviation of a Gaussian that smooths maps; 0: none.",
)
@click.option(
    "--counterfactual",
    is_flag=True,
    help="Also edit each image towards the class against, and towards its own as a check. A model of latents needs its "
    "decoder (fastdc export --decoder).",
)
@click.option(
    "--edit",
    type=click.Choice(("sdedit", "ddim", "heun", "flowedit")),
    help="How --counterfactual edits, see docs/counterfactuals.md; asks for it.  [default: flowedit for flow models, "
    "otherwise sdedit]",
)
@run_options
@image_options()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False),
    metavar="FILE.html",
    help="Write a page with the answer, the race, the errors and the maps; it needs no other file.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Draw images, maps and errors: .png, .svg or .pdf (needs matplotlib).",
)
@click.option(
    "--counterfactual-plot",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Draw the edited images: .png, .svg or .pdf (needs matplotlib); asks for --counterfactual.",
)
@click.option("--save", type=click.Path(dir_okay=False), metavar="FILE.npz", help="Save all maps as arrays.")
def command(**options: Any) -> None:
    """Explain the answers to IMAGES: where one class denoises better than another.

    IMAGES are image files, folders, patterns, tables of files, .npy, .npz, or - for standard input.
    """
    from fastdc.cli.explain import run

    run(**options)
