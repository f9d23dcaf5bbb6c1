"""``fastdc export``: a bundle that classifies without torch, from a training run."""

from typing import Any

import click

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
    help="Labelled images to fit the temperature of the probabilities to: neither training nor test images.",
)
@click.option("--draws", type=int, default=16, show_default=True, help="Default noise draws per image and class.")
@click.option(
    "--levels",
    type=(float, float),
    default=(0.2, 2.0),
    show_default=True,
    metavar="LO HI",
    help="Default range of noise levels of those draws.",
)
@click.option("--weighting", default="edm", show_default=True, help="Default weighting of the noise levels.")
@click.option("--loss", default="l2", show_default=True, help="Default distance between denoised and true image.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is already there.")
@click.option("--quiet", is_flag=True, help="Only errors.")
def command(run: str, out: str, quiet: bool, **options: Any) -> None:
    """Turn the training run RUN into the folder BUNDLE, ready to classify and certify.

    The bundle holds the averaged weights as an ONNX network, checked against torch, and a description of how to use
    them. It runs with ONNX Runtime alone, and the same run gives the same bytes.
    """
    from fastdc.export import export_run

    bundle = export_run(run, out, **options)
    if quiet:
        return
    manifest = bundle.manifest
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    difference = manifest["provenance"]["onnx_max_difference"]
    click.echo(
        f"exported {out}: {manifest['name']}, {len(manifest['classes'])} classes, {size / 1e6:.1f} MB, "
        f"within {difference:g} of torch"
    )
    if options["calibrate"] is None:
        click.echo("its probabilities are not calibrated: export again with --calibrate DATA --overwrite for that")
    click.echo(f"next: fastdc classify --model {out} IMAGE...")
