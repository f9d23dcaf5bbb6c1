"""``fastdc demo``: the main job on the embedded model and its 400 real test images."""

from typing import Any

import click
import numpy as np

from fastdc.cli.options import check_plot, open_classifier, run_options
from fastdc.cli.runner import classify_groups

_EPILOG = """\b
Examples:
  fastdc demo                          the shipped UNet, 16 draws
  fastdc demo --model digits-mlp       a network some twenty times cheaper
  fastdc demo --draws 4                fewer draws: faster, a little less accurate
  fastdc demo --plot sheet.png         images with their per-class errors (needs matplotlib)
"""


@click.command(name="demo", epilog=_EPILOG)
@run_options
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE", help="Draw a sheet: .png, .svg or .pdf.")
def command(plot: str | None, **options: Any) -> None:
    """Classify the 400 test images of handwritten digits that come with fastdc, and say how well and how fast."""
    from fastdc.data import digits_test

    test = digits_test()
    if plot is not None:
        check_plot(plot)
    classifier = open_classifier(options)
    results = [result for _, result in classify_groups(classifier, test.images, options)]
    labels = np.concatenate([result.labels for result in results])
    evaluations = int(sum(result.evaluations.sum() for result in results))
    seconds = sum(result.seconds for result in results)
    correct = int(np.count_nonzero(labels == test.labels))
    n = len(test)
    network = classifier.network
    click.echo(f"model        {classifier.model.name}, {network.backend} on {network.device}")
    click.echo(f"accuracy     {100 * correct / n:.2f} %  ({correct} of {n} test images)")
    click.echo(f"evaluations  {evaluations / n:.0f} an image  ({evaluations:,} in all)")
    click.echo(
        f"time         {seconds:.2f} s, {n / seconds:.1f} images/s, {1e3 * seconds / evaluations:.3f} ms/evaluation"
    )
    if plot is not None:
        from fastdc.report import error_sheet

        wrong_first = np.argsort(labels == test.labels, kind="stable")
        errors = np.concatenate([result.errors for result in results])
        error_sheet(
            plot,
            test.images[wrong_first],
            errors[wrong_first],
            classifier.class_names,
            labels=labels[wrong_first],
            true_labels=test.labels[wrong_first],
            title=f"{classifier.model.name}: mean denoising error by class, wrong ones first",
        )
        click.echo(f"plot         {plot}")
    if not options["quiet"]:
        click.echo(
            "next         fastdc classify IMAGE...    fastdc demo --plot sheet.png    fastdc train --help", err=True
        )
