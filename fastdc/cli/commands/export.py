"""The options and the help of ``fastdc export``; :mod:`fastdc.cli.export` does it."""

from typing import Any

import click

from fastdc.cli.completing import files
from fastdc.cli.grouped import LevelsCommand
from fastdc.cli.images import image_options
from fastdc.cli.level_options import first_option, levels_option
from fastdc.cli.names import EXPORT_PRECISIONS, LOSSES, WEIGHTINGS
from fastdc.cli.options import QUIET

_EPILOG = """\b
Examples:
  a run of fastdc train:
    fastdc export run my-model --calibrate run/val.npz
  a diffusers folder:
    fastdc export ./ddpm-pipeline cats --calibrate val-photos/
  an NVlabs EDM pickle:
    fastdc export edm-cifar10-32x32-cond-vp.pkl cifar10 --classes names.txt
  a UNet without a pipeline:
    fastdc export ./unet cats --scheduler ./scheduler_config.json
  a model of the Hugging Face hub, with prompts as classes:
    fastdc export hf://org/stable-diffusion pets --prompts pets.csv
    fastdc export ./sd pets --classes pets.txt --template "a photo of a {}."
  and then:
    fastdc classify --model my-model some-image.png

The noise levels matter most for accuracy. With --calibrate, they are chosen
on one half of the images, with what belongs to them: the weighting, the loss,
the first draw and the number of draws. The probabilities and the race are
fitted to the other half, whose accuracy is reported. Options that are given
stay as they are. Without --calibrate, the bundle of a run has a first guess,
the band of its model and size of images that --levels names.
"""


@click.command(name="export", cls=LevelsCommand, epilog=_EPILOG)
@click.argument("source", metavar="SOURCE", shell_complete=files)
@click.argument("out", metavar="BUNDLE", shell_complete=files)
@click.option("--name", help="Name of the model.  [default: name of the BUNDLE folder, or of the source]")
@click.option("--description", help="One line about the model.")
@click.option(
    "--prompts",
    metavar="CSV",
    shell_complete=files,
    help="Prompts of a text-conditional model: a CSV file with the columns prompt, classname and classidx.",
)
@click.option(
    "--classes",
    metavar="LIST",
    shell_complete=files,
    help="Class names: a,b,c, or a file with one name per line. For a text-conditional model they fill the templates.",
)
@click.option(
    "--template",
    multiple=True,
    metavar="TEXT",
    help='Prompt with {} for the class; repeat it for several prompts per class.  [default: "a photo of a {}."]',
)
@click.option("--image-size", type=int, help="Side of the images in pixels.  [default: the model's]")
@click.option(
    "--null-class/--no-null-class",
    default=None,
    help='Whether a UNet\'s last class means "no class".  [default: inferred from the classes]',
)
@click.option(
    "--lora",
    multiple=True,
    metavar="FILE[=SCALE]",
    shell_complete=files,
    help="LoRA weights to merge; repeat it for more files.",
)
@click.option(
    "--variant",
    metavar="NAME",
    help="Variant of the weights to read, such as fp16 or non_ema, where there are several.  [default: files without a "
    "variant, otherwise fp32, fp16, bf16, or the only one]",
)
@click.option(
    "--scheduler",
    metavar="FILE|DIR",
    shell_complete=files,
    help="The scheduler_config.json that describes the training, or a folder with it; a UNet without a pipeline needs "
    "it.  [default: the model's]",
)
@click.option(
    "--precision",
    type=click.Choice(EXPORT_PRECISIONS),
    help="Precision of the network. int8 is for CPUs and takes its ranges from --calibrate.  [default: float32]",
)
@click.option("--opset", type=int, help="Version of the ONNX operator set.  [default: 22]")
@click.option(
    "--split/--no-split",
    default=True,
    help="Also write the network in parts, which share computation between classes and images.",
)
@click.option(
    "--text-encoder/--no-text-encoder",
    "text",
    default=True,
    help="Include the text encoder, so that classify --prompts can ask about other classes.",
)
@click.option(
    "--decoder",
    is_flag=True,
    help="Also write the decoder of a latent model, so that explain can draw its counterfactuals as pictures.",
)
@click.option(
    "--scored", is_flag=True, help="Also write one graph from images and noise to errors, for other runtimes."
)
@click.option(
    "--engine",
    metavar="DIR",
    shell_complete=files,
    help="Also build a TensorRT engine for this machine's GPU in DIR; set FASTDC_CACHE=DIR to use it.",
)
@click.option(
    "--verify", is_flag=True, help="Classify a few images with torch and with the bundle, and compare the errors."
)
@click.option(
    "--calibrate",
    metavar="DATA",
    shell_complete=files,
    help="Labelled images on which to choose the noise levels, to fit the temperature of the probabilities and to "
    "calibrate the race; use neither training nor test images.",
)
@click.option(
    "--choose/--no-choose",
    default=None,
    help="With --calibrate: whether the defaults below that are not given are chosen by the accuracy on half of the "
    "images.  [default: if --levels is not given, with 99 images or more]",
)
@click.option(
    "--delta",
    type=float,
    help="With --calibrate: share of answers that the race may change.  [default: 0.01, or more if there are few "
    "images]",
)
@click.option(
    "--checkpoint",
    type=click.Choice(("best", "last")),
    help="Weights of a run: the best by accuracy on half of its validation images, or the last.  [default: best, if "
    "there are validation images]",
)
@click.option(
    "--draws",
    type=int,
    help="Default noise draws per image and class.  [default: chosen; without, 16 for a run, otherwise 100]",
)
@levels_option(
    "Default band of noise levels (sigma / alpha) of the draws; all: the whole schedule.  [default: chosen; without "
    "--calibrate, for a run by its smaller side: unet 0.2 2, 0.4 4 above 8 pixels, 0.7 7 above 16 pixels; mlp 0.2 2, "
    "0.5 5 above 16 pixels; unet-cross 0.7 7; dit 0.7 7; otherwise the model's, or all]"
)
@first_option("chosen; without, none")
@click.option(
    "--weighting",
    type=click.Choice(("auto", *WEIGHTINGS)),
    help="Default weighting of the noise levels, such as velocity; auto: chosen, even if --levels is given.  [default: "
    "chosen; without, edm for a run, velocity for Stable Diffusion 3, otherwise uniform]",
)
@click.option(
    "--loss",
    type=click.Choice(LOSSES),
    help="Default loss between predicted and true image.  [default: chosen; without, l2]",
)
@image_options("val", "calibrate-")
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@QUIET
def command(**options: Any) -> None:
    """Turn SOURCE, a model as it was trained, into the folder BUNDLE, which --model of the other commands takes.

    SOURCE is a run of fastdc train, a diffusers folder (class-conditional UNets, DiT, Stable Diffusion 1, 2, XL and 3),
    the same on the Hugging Face hub as hf://org/name or hf://org/name@revision, or an NVlabs EDM pickle. None of them
    is executed. The bundle holds the network as ONNX, checked against
    torch, and describes how to use it. It needs only ONNX Runtime. The same source gives the same bytes.
    """
    from fastdc.cli.export import run

    run(**options)
