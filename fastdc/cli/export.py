"""``fastdc export``: a bundle that classifies without torch, from a training run."""

from typing import Any

import click

from fastdc.cli.options import first_option
from fastdc.cli.runner import progress_of, promise

_EPILOG = """\b
Examples:
  fastdc export run my-model --calibrate run/val.npz
  fastdc export run my-model --calibrate val-photos --name cats-and-dogs --draws 32
  fastdc classify --model my-model some-image.png        # then

\b
The noise levels matter most for the accuracy: those at which the class is being decided. 0.2 ... 2
(for images in [-1, 1]) suits 8x8 digits; larger images keep their class under more noise, so try
higher ranges and compare on validation images.
"""


@click.command(name="export", epilog=_EPILOG)
@click.argument("run", metavar="RUN")
@click.argument("out", metavar="BUNDLE")
@click.option("--name", help="Name of the model [the name of the BUNDLE folder].")
@click.option("--description", help="One line about the model.")
@click.option(
    "--calibrate",
    metavar="DATA",
    help="Labelled images to fit the temperature of the probabilities to, and to calibrate the race on: neither "
    "training nor test images.",
)
@click.option(
    "--delta",
    type=float,
    help="With --calibrate: share of answers that the race may change.  [default: 0.01, or what few images allow]",
)
@click.option("--draws", type=int, default=16, show_default=True, help="Default noise draws per image and class.")
@click.option(
    "--levels",
    type=(float, float),
    default=(0.2, 2.0),
    show_default=True,
    metavar="LO HI",
    help="Default band of noise levels (sigma / alpha) of those draws.",
)
@first_option("none")
@click.option("--weighting", default="edm", show_default=True, help="Default weighting of the noise levels.")
@click.option("--loss", default="l2", show_default=True, help="Default distance between denoised and true image.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is already there.")
@click.option("--quiet", is_flag=True, help="Only errors.")
def command(run: str, out: str, quiet: bool, **options: Any) -> None:
    """Turn the training run RUN into the folder BUNDLE, ready to classify and certify.

    The bundle holds the averaged weights as an ONNX network, checked against torch, and a description of how to use
    them. It runs with ONNX Runtime alone, and the same run gives the same bytes.
    """
    from fastdc.export import CALIBRATION_SEEDS, export_run

    options["first"] = options["first"] or ()
    with progress_of(runs=CALIBRATION_SEEDS, quiet=quiet, description="calibrating") as progress:
        notes: list[str] = []
        bundle = export_run(run, out, progress=progress, notify=notes.append, **options)
    if quiet:
        return
    manifest = bundle.manifest
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    difference = manifest["provenance"]["onnx_max_difference"]
    click.echo(
        f"exported {out}: {manifest['name']}, {len(manifest['classes'])} classes, {size / 1e6:.1f} MB, "
        f"within {difference:g} of torch"
    )
    calibration = bundle.model.calibration
    if calibration is not None:
        click.echo(f"calibrated the race on {calibration.images} images: {promise(calibration.delta)}")
    for note in notes:
        click.echo(f"note: {note}")
    if options["calibrate"] is None:
        click.echo(
            "neither probabilities nor race are calibrated: export again with --calibrate DATA --overwrite for that"
        )
    click.echo(f"next: fastdc classify --model {out} IMAGE...")
