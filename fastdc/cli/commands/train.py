"""The options and the help of ``fastdc train``; :mod:`fastdc.cli.train` does it."""

from typing import Any

import click

from fastdc.cli.completing import files
from fastdc.cli.images import image_options
from fastdc.cli.names import AUGMENTATIONS, LOSS_WEIGHTINGS, MODELS, NAMED_RECIPES, PRECISIONS, SHIFTS
from fastdc.cli.options import QUIET
from fastdc.cli.sources import check_sources

_EPILOG = """\b
Examples:
  fastdc train photos --out run --size 32             photos/cat/, photos/dog/
  fastdc train digits.npz --out run --model mlp       arrays images and labels
  fastdc train scans.csv --out run --size 32          path, label, split
  fastdc train scans --out run --preset medical-unet  a published recipe
  fastdc train --out run --resume                     after Ctrl-C or a crash
  fastdc train --out run --resume --steps 20000       longer than planned
  fastdc train photos --out run --from hf://org/name  fine-tune a public model
  fastdc train photos --out tuned --from clip         or a CLIP to compare
  fastdc train photos --out run --device cuda --processes 2    on two GPUs
  fastdc export run my-model --calibrate run/val.npz  then: a bundle

Time: 8x8 digits take two minutes (unet) or one (mlp) on one CPU core, 28x28 digits
half an hour (unet) on two; photos and larger images need a GPU (--device cuda).

What to change first: --steps (more are better until the accuracy falls), --model
mlp for small images if speed matters, --augment photo or medical if there are few images.
"""


@click.command(name="train", epilog=_EPILOG)
@click.argument("data", required=False, metavar="DATA", callback=check_sources, shell_complete=files)
@click.option(
    "--out",
    required=True,
    metavar="RUN",
    shell_complete=files,
    help="Run folder to make, or with --resume to continue.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run in RUN. Omitted options keep the run's values; --steps may be "
    "another number, which the learning rate then follows.",
)
@click.option(
    "--from",
    "from_",
    metavar="MODEL",
    shell_complete=files,
    help="Fine-tune a model for the classes of DATA: a diffusers folder, hf://org/name of the Hugging Face hub, an EDM "
    ".pkl, a run, a bundle with torch weights, or digits. All weights are trained; if its classes are texts, a LoRA. "
    "Or a folder of a CLIP or SigLIP, which learns to match images with texts; RUN then is such a folder.",
)
@click.option(
    "--template",
    metavar="TEXT",
    help="With --from a model of texts: the text that describes a class, with {} for its name.  [default: a photo of "
    "a {}., for a CLIP without the full stop]",
)
@click.option(
    "--prompts",
    metavar="FILE",
    shell_complete=files,
    help="With --from a model of texts: in place of --template, a CSV with the columns prompt, classname, classidx: "
    "one text for each class of DATA, such as those of several data sets in one table.",
)
@click.option("--rank", type=int, help="With --from a model of texts: rank of the LoRA.  [default: 8]")
@click.option(
    "--vae",
    metavar="MODEL",
    shell_complete=files,
    help="Train on the latents of this image encoder: a folder or hf://org/name with an AutoencoderKL. Needs --size.",
)
@click.option(
    "--preset",
    type=click.Choice(NAMED_RECIPES),
    help="A published recipe, over which other options win: the medical UNet or DiT-B/4 of Favero et al., on wavelets "
    "of 256 x 256. --size, --width and --layers make it small.",
)
@click.option(
    "--model",
    type=click.Choice(MODELS),
    help="unet: accurate. mlp: many times cheaper. unet-cross: a UNet that attends to its class. dit: a transformer.  "
    "[default: unet]",
)
@click.option(
    "--width",
    type=int,
    help="Channels of the first UNet level, or width of the MLP or DiT.  [default: unet 32, 64 above 32 pixels; mlp "
    "256; unet-cross 128; dit 768]",
)
@click.option(
    "--layers", type=int, help="Residual blocks per UNet level, or blocks of the DiT.  [default: 1 or 2; dit 12]"
)
@click.option(
    "--prediction",
    type=click.Choice(["edm", "v_prediction"]),
    help="What the network predicts: edm, or v_prediction: v on the cosine schedule in continuous time.  "
    "[default: edm]",
)
@click.option(
    "--shift",
    type=click.Choice(SHIFTS),
    help="With v_prediction: more noise for larger images of side d. size: 2 ln(64 / d) added to ln SNR. medical: its "
    "limits moved by half of that, too.  [default: none]",
)
@click.option(
    "--loss-weighting",
    type=click.Choice(LOSS_WEIGHTINGS),
    help="With v_prediction: weights of noise levels. min_snr: those of Hang et al. medical: those of Favero et al.  "
    "[default: none]",
)
@click.option(
    "--transform",
    type=click.Choice(["haar"]),
    help="Train on Haar wavelets of the images: four channels of half the side.",
)
@click.option("--size", type=int, metavar="PIXELS", help="Resize and crop all images to a square of this side.")
@click.option(
    "--channels", type=click.Choice(["1", "3"]), help="With --size: convert all images to grey (1) or RGB (3)."
)
@click.option(
    "--steps",
    type=int,
    help="Optimizer steps; the defaults suit digits.  [default: unet 1340, 5000 above 16 pixels; mlp 4640; "
    "unet-cross 5000; dit 5000; with --from 1000]",
)
@click.option(
    "--epochs",
    type=int,
    metavar="N",
    help="With --from a CLIP, instead of --steps: passes over the images.  [default: 30]",
)
@click.option(
    "--minutes",
    type=float,
    metavar="M",
    help="Instead of --steps: as many steps as take about M minutes on this machine.",
)
@click.option(
    "--batch",
    type=int,
    help="Images per step; of a CLIP 8.  [default: unet 64; mlp 256; unet-cross 64; dit 64; with --from 32]",
)
@click.option(
    "--accumulate",
    type=int,
    metavar="N",
    help="If memory is short: evaluate the batch in N parts, one after the other, and add up their gradients. --batch "
    "stays the number of images per step, and the result is the same up to rounding.  [default: 1]",
)
@click.option(
    "--lr",
    type=float,
    help="Peak learning rate of AdamW, before a cosine decay.  [default: 0.001; with --from a model of another tool "
    "0.0001, a CLIP 0.00001]",
)
@click.option("--warmup", type=int, help="Steps in which the learning rate rises linearly.  [default: 100, a CLIP 0]")
@click.option(
    "--ema", type=float, help="Decay of the moving average of the weights; the average is exported.  [default: 0.999]"
)
@click.option("--ema-every", type=int, metavar="STEPS", help="Steps between updates of the average.  [default: 1]")
@click.option("--label-dropout", type=float, help="Fraction of images trained without their class.  [default: 0.1]")
@click.option(
    "--p-mean",
    type=float,
    help="Mean of ln sigma during training.  [default: unet -0.6, 0 above 8 pixels, 0.4 above 16 pixels; mlp -0.4; "
    "unet-cross 0.4; dit 0.4; with --from as that model was trained]",
)
@click.option(
    "--p-std",
    type=float,
    help="Standard deviation of ln sigma during training.  [default: unet 1.2; mlp 1; unet-cross 1.2; dit 1.2; with "
    "--from as that model was trained]",
)
@click.option("--sigma-data", type=float, help="Standard deviation of the images in [-1, 1].  [default: measured]")
@click.option(
    "--dropout", type=float, help="Dropout inside the network.  [default: unet 0; mlp 0.1; unet-cross 0; dit 0]"
)
@click.option(
    "--augment",
    type=click.Choice(AUGMENTATIONS),
    help="Change training images at random, if that keeps their class. flip: mirror them. shift: by a tenth. photo: "
    "mirror, crop, change colours a little. medical: rotate, shift, change contrast a little.  [default: none]",
)
@click.option(
    "--flip/--no-flip",
    default=None,
    help="Mirror images left to right at random, in addition to --augment.  [default: no]",
)
@click.option(
    "--balance/--no-balance",
    default=None,
    help="Train all classes equally often, however many images they have.  [default: no]",
)
@click.option(
    "--val",
    metavar="FILE|FRACTION",
    shell_complete=files,
    help="Validation images, which measure the accuracy, choose the best checkpoint and can calibrate: a folder or "
    "file like DATA, or a fraction of DATA; 0 for none.  [default: the split val of DATA, or 0.1 if every class has 10 "
    "images]",
)
@click.option(
    "--patience",
    type=int,
    metavar="N",
    help="End the training when N measured checkpoints in a row are no better; 0 to end it never.  [default: 0]",
)
@image_options("train")
@click.option(
    "--seed",
    type=int,
    help="Seed; on a CPU, the same seed, data and threads give the same weights to the bit.  [default: 0]",
)
@click.option("--threads", type=int, help="Number of CPU threads.  [default: torch's choice]")
@click.option("--device", metavar="DEVICE", help="cpu or cuda.  [default: cpu]")
@click.option(
    "--processes",
    type=click.IntRange(1, 1024),
    default=1,
    metavar="N",
    help="Train in N processes on this machine: with --device cuda on N GPUs. Each evaluates a share of --batch, the "
    "number of images of a step on all together; the result is the same up to rounding. Not kept by the run.  "
    "[default: 1]",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Precision of the network's evaluations in training; bfloat16 and float16 are faster on a GPU that has them. "
    "Weights stay in float32.  [default: float32]",
)
@click.option("--checkpoint-every", type=int, metavar="STEPS", help="Steps between checkpoints.  [default: 500]")
@click.option("--clip", type=float, hidden=True)  # hidden options repeat the command in a bundle's provenance exactly
@click.option("--weight-decay", type=float, hidden=True)
@click.option("--timestep-scale", type=float, hidden=True)
@QUIET
def command(**options: Any) -> None:
    """Train a class-conditional diffusion model from labelled images.

    DATA is a folder with one sub-folder per class; a table of image files with the columns path and label (.csv, .tsv,
    .jsonl, .parquet); or an .npz file with the arrays `images` (uint8: n,h,w or n,c,h,w or n,h,w,c), `labels` (integers
    from 0) and optionally `class_names`. Of data with splits, `train` is trained on and `val` validates.

    The folder RUN receives the configuration, a log and a checkpoint. Ctrl-C saves the state and stops; --resume
    continues from there and ends with the same weights as an uninterrupted run.
    """
    from fastdc.cli.train import run

    run(**options)
