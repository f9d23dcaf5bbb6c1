"""``fastdc demo``: classify the real test images that come with fastdc."""

from typing import TYPE_CHECKING, Any

import click
import numpy as np

from fastdc.certification import share
from fastdc.cli.options import check_plot, open_model, open_network
from fastdc.cli.refusals import check_run
from fastdc.cli.runner import checked_settings, classify_chunks, rule_text, settings_of
from fastdc.inference import Classification, Settings
from fastdc.support import InputError, Interrupted

if TYPE_CHECKING:
    from fastdc.bundle import Bundle
    from fastdc.data import LabelledImages


def run(plot: str | None, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.demo`."""
    if plot is not None:
        check_plot(plot)
    bundle = open_model(options)
    test = _test_images(bundle)
    check_run(checked_settings(bundle.model, options).job, options)
    classifier = open_network(bundle, options)
    settings = settings_of(classifier, options)
    results: list[Classification] = []
    try:
        for result in classify_chunks(classifier, test.images, options):
            results.append(result)  # one by one, so that an interruption keeps the earlier ones
    except Interrupted:
        if results:
            _report(settings, results, test)
        raise
    _report(settings, results, test)
    if plot is not None:
        _plot(plot, results, test)
        click.echo(f"plot         {plot}")
    if not options["quiet"]:
        click.echo(
            "next         fastdc classify IMAGE...    fastdc demo --plot sheet.png    fastdc train --help", err=True
        )


def _test_images(bundle: "Bundle") -> "LabelledImages":
    """The shipped images of the model's classes, labelled in the order that the model has.

    Raises:
        InputError: There are none.
    """
    from fastdc.data import load_labelled, shipped_test_file

    path = shipped_test_file(bundle.image_shape, bundle.class_names)
    if path is None:
        channels, height, width = bundle.image_shape
        raise InputError(
            f"no test images of {bundle.name}'s classes come with fastdc: expected a model of the digits 0 to 9 in one "
            f"channel of 8x8 or 28x28 pixels, or of phantoms, got {len(bundle.class_names)} classes in {channels} x "
            f"{height}x{width}"
        )
    return load_labelled(path).with_classes(bundle.class_names)


def _report(settings: Settings, results: list[Classification], test: "LabelledImages") -> None:
    job = settings.job
    labels = np.concatenate([result.labels for result in results])
    truth = test.labels[np.concatenate([result.indices for result in results])]
    evaluations = int(sum(result.evaluations.sum() for result in results))
    seconds = results[-1].seconds  # since the start
    correct, n = int(np.count_nonzero(labels == truth)), len(labels)
    full = len(job.model.conditions) * job.plan.draws
    described = job.describe()
    click.echo(f"model        {job.model.name}, {described['backend']} on {described['device']}")
    click.echo(f"rule         {rule_text(settings)}")
    click.echo(f"accuracy     {share(correct, n).percent()}, {correct} of {n} test images")
    click.echo(f"evaluations  {evaluations / n:.1f} per image (full run: {full}), {evaluations:,} in total")
    click.echo(
        f"time         {seconds:.2f} s, {n / seconds:.1f} images/s, {1e3 * seconds / evaluations:.3f} ms/evaluation"
    )


def _plot(path: str, results: list[Classification], test: "LabelledImages") -> None:
    from fastdc.figures import error_sheet

    labels = np.concatenate([result.labels for result in results])
    errors = np.concatenate([result.errors for result in results])
    wrong_first = np.argsort(labels == test.labels, kind="stable")
    error_sheet(
        path,
        test.images[wrong_first],
        errors[wrong_first],
        results[0].class_names,
        labels=labels[wrong_first],
        true_labels=test.labels[wrong_first],
        numbers=wrong_first,
        title=f"{results[0].provenance['model']}: mean denoising error per class, misclassified images first",
    )
