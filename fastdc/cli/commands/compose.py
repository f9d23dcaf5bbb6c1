"""The options and the help of ``fastdc compose``; :mod:`fastdc.cli.compose` does it."""

from typing import TYPE_CHECKING, Any

import click

from fastdc.cli.completing import files, models
from fastdc.cli.grouped import GroupedCommand
from fastdc.cli.names import SPLITS
from fastdc.cli.options import text_options

_EPILOG = """\b
Examples:
  fastdc compose data --model my-model --clip clip/ --vilt vilt/ --out run
  fastdc compose data --model my-model --task single --images 100
  fastdc compose data --model my-model --calibrate 99 --out run
  fastdc compose data --clip clip/ --split test --html table.html
  fastdc compose data --model my-model --zsl --json | jq .tests
  fastdc compose data --model sd21 --compat otmive --loss l1 --rule staged
      -o n_samples=75,200 -o to_keep=5,1 -o compat=li   as was released

\b
What DATA holds (SPLIT: ID_val, ID_test, ood_val, ood_test, or train):
  single_object/SPLIT/"blue cube"/*.png         single_prompts.csv
  two_object/SPLIT/c1_s1_c2_s2/"c1 s1"/*.png
      two_object_prompts/two_obj_{train,val,test}[_gen]/c1_s1_c2_s2.csv
  relational/SPLIT/s1_rel_s2/"s1 rel s2"/*.png
      rel_prompts/rel_{train,val,test}[_gen]/s1_rel_s2.csv
  TASK/SPLIT/GROUP/NAME/*.png
      TASK_prompts/TASK_{train,val,test}[_gen]/GROUP.csv
A table has the columns prompt, class_name and classidx; in those of pairs
and other tasks, the first row is the right text. A column kind, in other
tasks, names the kinds of errors. Other names of folders: --prompts.

\b
The tables: accuracy with Wilson's 95 % interval, and errors by kind, in
percent of all images; candidates and network evaluations per image; and all
pairs of models on the same images: McNemar's exact test, corrected for all
comparisons of the table (Holm).

Each image competes among candidates of its own; all images of a task run together, and a text
is encoded once. Candidates of single objects are the classes of the split's folders (ZSL) or
all rows of the table (GZSL).

With --out, answers are kept as they are known: after Ctrl-C the same command goes on where it
was. Another model, option, text or picture is asked about anew.

--calibrate runs images of ID_val in full, for each task and setting, and finds the limit
with which the others race. The promise is about images of seen classes (ID_test).

--compat otmive scores --model as the code released with the paper does: each pair's texts on
all images of the split, and one class under another's name. That code scores CLIP on each
pair's own images, so --clip and others stay as they are, and are compared with --model only
where both were asked the same.
"""


if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:
    _Choice = click.Choice  # no generic class before click 8.2


class _Split(_Choice):
    """A split by its name, or by that of its folder, such as ID_test or ood_val."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        plain = str(value).casefold().replace("_", "-").removeprefix("ood-")
        return super().convert(plain if plain in self.choices else value, param, ctx)


@click.command(name="compose", cls=GroupedCommand, epilog=_EPILOG)
@click.argument("data", metavar="DATA", shell_complete=files)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|FOLDER",
    shell_complete=models,
    help="A diffusion model: a shipped one, or a folder from fastdc export, that knows the texts; may be repeated.",
)
@click.option(
    "--clip",
    multiple=True,
    metavar="FOLDER",
    shell_complete=files,
    help="CLIP, a folder of transformers; may be repeated (needs torch and transformers).",
)
@click.option(
    "--siglip",
    multiple=True,
    metavar="FOLDER",
    shell_complete=files,
    help="SigLIP, a folder of transformers; may be repeated.",
)
@click.option(
    "--vilt",
    multiple=True,
    metavar="FOLDER",
    shell_complete=files,
    help="ViLT for image-text retrieval, a folder of transformers; may be repeated.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="TASK",
    help="single, two_object, relational, or a task's folder; may be repeated.  [default: all]",
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    type=_Split(SPLITS),
    help="Split, or its folder's name; may be repeated.  [default: all but train]",
)
@click.option("--zsl", is_flag=True, help="Only the plain setting: candidates of the image's own side.")
@click.option("--gzsl", is_flag=True, help="Only the generalised setting: candidates of seen and unseen classes.")
@click.option(
    "--images", type=int, metavar="N", help="Most images of a split of a task, taken evenly from its folders."
)
@click.option(
    "--prompts",
    multiple=True,
    metavar="WHAT=PATH",
    shell_complete=files,
    help="Prompts under another name: TASK=FOLDER, TASK/val=FOLDER, TASK/val_gen=FOLDER (or train, test), or "
    "single=TABLE.csv; may be repeated.",
)
@click.option(
    "--calibrate",
    type=int,
    metavar="N",
    help="Calibrate the race of --model for each task and setting on N images of ID_val, which are run in full.",
)
@click.option(
    "--delta",
    type=float,
    metavar="D",
    help="Probability with which a race of --calibrate may lose the full run's answer.  [default: 0.01, or the least "
    "up to 0.05 that N images support: 99 images, or 19 at least]",
)
@click.option("--compat", type=click.Choice(("otmive",)), help="Score --model as the released code does.")
@text_options
@click.option("--json", "as_json", is_flag=True, help="Print everything but single answers as one JSON object.")
@click.option("--csv", type=click.Path(dir_okay=False), metavar="FILE.csv", help="Write a row per model and cell.")
@click.option("--latex", type=click.Path(dir_okay=False), metavar="FILE.tex", help="Write the tables for LaTeX.")
@click.option("--html", type=click.Path(dir_okay=False), metavar="FILE.html", help="Write a page with the tables.")
@click.option(
    "--answers",
    type=click.Path(dir_okay=False),
    metavar="FILE.csv",
    help="Write a row per image, with each model's answer and its kind.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Keep answers in this folder, to go on from there, and write all of the above to it.",
)
def command(**options: Any) -> None:
    """Ask which text describes each image of DATA, and compare models.

    DATA is a folder in the layout of the compositional evaluation of Pearson et al. (arXiv 2508.20783): single objects,
    two objects, relations, or tasks of your own, in splits of seen and unseen classes. At least one of --model, --clip,
    --siglip and --vilt is needed.
    """
    from fastdc.cli.compose import run

    run(**options)
