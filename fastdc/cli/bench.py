"""``fastdc bench``: what this machine does with a model, by backend, precision and batch."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from fastdc.backends import (
    Choice,
    backend_versions,
    find_choice,
    forget_choices,
    keep_choice,
    machine_facts,
    usable_cpus,
)
from fastdc.bundle import Bundle, find_model, load_bundle
from fastdc.cli.images import read_images, seen_through, take_limits
from fastdc.cli.options import check_folder, check_plot
from fastdc.cli.stop_signals import held_back
from fastdc.support import InputError, cache_folder, checks, one_line

if TYPE_CHECKING:
    from fastdc.benchmark import Advice, Benchmark, Configuration, Row, Samples

_SECONDS, _QUICK_SECONDS = 60.0, 15.0
_QUICK_IMAGES = 100


def run(model: str, data: str | None, quick: bool, write: bool, forget: bool, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.bench`."""
    limits = take_limits(options)
    given_limits = [f"--{name.replace('_', '-')}" for name, value in limits.items() if value not in (None, False)]
    if data is None and given_limits:
        raise InputError(f"{given_limits[0]} is for --data: expected images to use it on")
    if options["threads"] is not None:
        checks.whole("threads", options["threads"], high=1024)
    bundle = load_bundle(find_model(model))
    if forget:
        others = {"--write": write, "--quick": quick, "--data": data, "--plot": options["plot"]}
        others["--json"] = options["as_json"]
        _forget(bundle, [name for name, value in others.items() if value])
        return
    if write:
        _check_kept()
    if options["plot"] is not None:
        check_plot(options["plot"], [data] if data else [])
    from fastdc.benchmark import Benchmark, sample_images

    given = None
    if data is not None:
        shape, classes, limits = bundle.image_shape, bundle.class_names, seen_through(limits, bundle.model)
        given = read_images([data], shape, limits, quiet=options["quiet"], classes=classes, strict=False).images
    most = {"most": _QUICK_IMAGES} if quick else {}
    samples = sample_images(bundle.model, given, data or "", **most)
    seconds = _QUICK_SECONDS if quick else _SECONDS
    bench = Benchmark(bundle, samples, seconds=seconds, threads=options["threads"], quick=quick)
    _notes(samples, bench, options["quiet"])
    facts = _machine(options["threads"])
    complete = False
    try:
        with _progress(quiet=options["quiet"]) as starting:
            for _ in bench.rows(starting):
                pass
        complete = True
    finally:  # also after an interruption
        if bench.known:
            with held_back():
                _report(bench, facts, options, complete=complete)
    if write:
        _write(bundle, bench.advice, model, options)


def _forget(bundle: Bundle, others: list[str]) -> None:
    if others:
        raise InputError(f"--forget does nothing else: expected no {others[0]} beside it")
    removed = forget_choices(bundle)
    click.echo(f"removed {', '.join(map(str, removed))}" if removed else f"there was no choice for {bundle.name}")


def _check_kept() -> None:
    """Refuses --write before the work where no choice can be kept.

    Raises:
        InputError: The user has no home, or the folder cannot be written to.
    """
    try:
        folder = cache_folder("choices")
        while not folder.exists():
            folder = folder.parent
    except (OSError, RuntimeError) as error:
        raise InputError(f"--write has no folder for the choice: {one_line(error)}") from None
    check_folder(folder)


def _notes(samples: "Samples", bench: "Benchmark", quiet: bool) -> None:
    """What a reader of the numbers should know."""
    if quiet:
        return
    if samples.made_up:
        click.echo(
            f"note: no images of {bench.bundle.name}'s classes come with fastdc: images/s, latencies and agreement are "
            "of made-up images, and the cost of a race depends on its images; --data measures yours",
            err=True,
        )
    load, cpus = os.getloadavg()[0], usable_cpus()
    if load > cpus / 2:
        click.echo(
            f"note: other programs are running (load {load:.1f} on {cpus} CPUs), which changes every number", err=True
        )
    first = bench.reference
    if (first.kind or first.precision) != "float32":
        click.echo(f"note: no backend here runs {bench.bundle.name} in float32: the reference is {first}", err=True)


def _machine(threads: int | None) -> dict[str, Any]:
    return {
        **machine_facts(threads),
        "load_at_start": round(os.getloadavg()[0], 2),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    """A bar over configurations on stderr, on a terminal only."""
    from tqdm import tqdm

    with tqdm(unit="configuration", disable=True if quiet else None, leave=False, dynamic_ncols=True) as bar:

        def starting(one: "Configuration", done: int, known: int) -> None:
            bar.total = known
            bar.set_postfix_str(f"{one}{'' if one.batch is None else f', batch {one.batch}'}", refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        yield starting


def _report(bench: "Benchmark", facts: dict[str, Any], options: dict[str, Any], *, complete: bool) -> None:
    from fastdc.benchmark import CRITERION, advice_facts, advice_lines, table_text

    samples, threads = bench.samples, options["threads"]
    if options["as_json"]:
        content = {
            "model": bench.bundle.name,
            "sha256": bench.bundle.model.identity,
            "machine": facts,
            "versions": {one.backend: backend_versions(one.backend)[one.backend] for one in bench.wanted},
            "fastdc": backend_versions("onnx")["fastdc"],
            "images": {"source": samples.source, "count": len(samples.images), "made_up": samples.made_up},
            "complete": complete,
            "reference": str(bench.reference),
            "criterion": CRITERION,
            "rows": [row.to_dict() for row in bench.known],
            "left_out": bench.left_out,
            "advice": advice_facts(bench.advice, threads),
        }
        click.echo(json.dumps(content, indent=2, allow_nan=False))
    else:
        click.echo(f"model        {bench.bundle.name}, {_size(bench.bundle)}")
        threads_used = f"{facts['threads']} thread{'s'[: facts['threads'] != 1]}"
        click.echo(f"machine      {', '.join((facts['cpu'], threads_used, *facts['gpus']))}")
        click.echo(f"images       {_images(bench)}")
        click.echo(f"reference    {bench.reference}\n")
        click.echo(f"{table_text(bench.known)}\n")
        for line in (*bench.left_out, *advice_lines(bench.advice, threads)):
            click.echo(line)
    if options["plot"] is not None:
        from fastdc.figures import bench_bars

        bench_bars(options["plot"], bench.known, bench.advice, title=f"{bench.bundle.name} on {facts['cpu']}")
        if not options["quiet"]:
            click.echo(f"plot written to {options['plot']}", err=True)


def _size(bundle: Bundle) -> str:
    model = bundle.model
    return f"{len(model.prompts)} prompts" if model.prompts else f"{len(model.class_names)} classes"


def _images(bench: "Benchmark") -> str:
    compared = max((row.compared or 0 for row in bench.known), default=0)
    cost = next((row.evaluations_per_image for row in bench.known if row.evaluations_per_image is not None), None)
    took = "" if cost is None else f", {cost:.1f} evaluations each in the race"
    return f"{compared} of {bench.samples.source}{took}"


def _write(bundle: Bundle, advice: "Advice", model: str, options: dict[str, Any]) -> None:
    """Keeps the recommendation for throughput.

    Raises:
        InputError: There is none, or it cannot be kept.
    """
    row: Row | None = advice.throughput
    if row is None or row.batch is None or row.images_per_second is None or not row.compared:
        raise InputError("--write has nothing to keep: no configuration is complete with answers that all agree")
    one = row.configuration
    choice = Choice(
        one.backend,
        one.device,
        one.precision,
        row.batch,
        datetime.now(UTC).date().isoformat(),
        row.images_per_second.median,
        row.compared,
    )
    path = keep_choice(bundle, choice, threads=options["threads"])
    found, why = find_choice(bundle, threads=options["threads"])
    if found != choice:
        raise InputError(f"the choice was written and cannot be read back: {why}")
    if not options["quiet"]:
        remove = f"fastdc bench {shlex.quote(model)} --forget removes it"
        click.echo(f"choice kept in {path}: {choice}; {remove}", err=True)
