"""The options and the help of ``fastdc manifest``; :mod:`fastdc.cli.manifest` does it."""

from typing import Any

import click

from fastdc.cli.completing import files
from fastdc.cli.names import LAYOUTS
from fastdc.cli.options import QUIET

_EPILOG = """\b
Examples:
  fastdc manifest train.csv --out effusion.csv
  fastdc manifest train.csv --out c.csv --label-column Cardiomegaly
  fastdc manifest ISIC_2020.csv --out isic.csv --root isic/
  fastdc manifest scans.csv --out split.csv --label-column grade \\
                  --group-column patient --fractions 0.7,0.1,0.2
  fastdc manifest chexpert-test.csv --out test.csv --split test

\b
Then:
  fastdc train effusion.csv --out run --size 64
  fastdc export run my-model --calibrate run/val.npz
  fastdc score my-model effusion.csv --positive "Pleural Effusion" --by Sex

\b
Layouts, found by the names of the columns:
  chexpert  CheXpert-small: the first frontal view of each patient's first
            study; blank is 0; uncertain (-1) rows are dropped, and those with
            both or none of --label-column and --against; as many of each
  isic      ISIC 2020: image_name, target (0 benign, 1 melanoma)
  table     any table with columns for files and labels

Rows are split by patient, so that no patient is in two splits; where the table
names none, by file. What is left out is printed with the reason. Paths are
relative to the manifest.
"""


@click.command(name="manifest", epilog=_EPILOG)
@click.argument("table", metavar="TABLE", shell_complete=files)
@click.option("--out", required=True, type=click.Path(dir_okay=False), metavar="FILE.csv", help="Manifest to write.")
@click.option(
    "--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True, help="Which table it is, see below."
)
@click.option(
    "--label-column",
    metavar="NAME",
    help='Column of the labels.  [default: "Pleural Effusion" of chexpert, "target" of isic, label or class of others]',
)
@click.option(
    "--against",
    metavar="NAME",
    default="No Finding",
    show_default=True,
    help="Column of chexpert that marks the other class.",
)
@click.option("--root", metavar="FOLDER", help="Folder of the image files.  [default: that of TABLE]")
@click.option(
    "--group-column",
    metavar="NAME",
    help="Column of what must not be in two splits.  [default: the patient of chexpert, else patient or patient_id]",
)
@click.option(
    "--balance/--no-balance",
    default=None,
    help="Keep as many rows of each class, drawn at random.  [default: of chexpert]",
)
@click.option(
    "--fractions", metavar="A,B,C", default="0.8,0.1,0.1", show_default=True, help="Shares of train, val and test."
)
@click.option(
    "--split", metavar="NAME", help="Take all rows as this split, as for tables that are published split by split."
)
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of the choice and of the splits.")
@QUIET
def command(**options: Any) -> None:
    """Make a manifest of TABLE, a table of images as others publish it.

    Every command that reads images takes the manifest: path, label, split, patient and the table's other columns.
    """
    from fastdc.cli.manifest import run

    run(**options)
