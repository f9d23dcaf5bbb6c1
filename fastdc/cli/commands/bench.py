"""The options and the help of ``fastdc bench``; :mod:`fastdc.cli.bench` does it."""

from typing import Any

import click

from fastdc.cli.completing import files, models
from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.images import image_options
from fastdc.cli.options import QUIET

_EPILOG = """\b
Examples:
  fastdc bench digits                     about a minute
  fastdc bench digits --quick             a quarter of it, with fewer rows
  fastdc bench my-model --data photos/    with images like yours
  fastdc bench my-model --data photos/ --write
  fastdc bench my-model --forget          removes what --write kept

\b
Each configuration runs in a process of its own:
  ms/evaluation  a network evaluation in full steps; median and half the
                 distance of the quartiles over repeats, after a warm-up
  images/s       the race over all images, everything included
  session        p50 and p95 of single images, through fastdc.Session in
                 latency mode, as a service would send them
  classify       the same by clf.classify
  memory         peak of resident memory above the start (GPU: device memory)
  start          from the start of the process to the first answer
  error          largest relative difference of an error from the reference
  agree          images whose answer is that of the reference, float32

Only configurations whose answers are all those of float32 are recommended (in
half precision or int8: of 60 images or more), and another one than the
defaults only if it is 5 % better, with quartiles apart (for latency: and a p95
no larger). The race's cost depends on the images: measure with yours. Other
programs on the machine change every number.

--write keeps the throughput's choice for this model, machine and versions; then
commands without --backend, --precision and --batch, and fastdc.load, use it and
say so. Ctrl-C prints what is known.
"""


@click.command(name="bench", cls=GroupedCommand, epilog=_EPILOG)
@click.argument("model", metavar="MODEL", shell_complete=models)
@click.option(
    "--data",
    metavar="SOURCE",
    shell_complete=files,
    help="Images to classify: a file, a folder, or an .npy or .npz array.  [default: the shipped digits for models of "
    "digits of 8x8 or 28x28, else images made up in the model's shape]",
)
@click.option(
    "--quick", is_flag=True, help="Take about 15 seconds: only default batches, float32 on the CPU, and 100 images."
)
@click.option("--write", is_flag=True, help="Keep the recommendation for throughput, for commands and fastdc.load.")
@click.option("--forget", is_flag=True, help="Remove what --write kept for MODEL on this machine, and do nothing else.")
@click.option("--threads", type=int, help="Number of CPU threads.  [default: all usable]")
@image_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Plot images/s and latencies: .png, .svg or .pdf (needs matplotlib).",
)
@QUIET
def command(**options: Any) -> None:
    """Measure what this machine does with MODEL: speed, latency, memory, start-up and agreement by configuration."""
    from fastdc.cli.bench import run

    run(**options)
