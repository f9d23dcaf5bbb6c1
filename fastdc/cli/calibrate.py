"""``fastdc calibrate``: finds from validation images how early the race may drop a class.

:mod:`fastdc.calibration.race` has the mathematics and the promise.
"""

from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from fastdc.bundle import Bundle, bundle_place, shipped_models, with_calibration, write_calibration_file
from fastdc.calibration import calibrate_errors, check_level, supported_delta
from fastdc.cli.calibrate_choice import better_levels, check_choose, chosen_plan, parts_of, show, stored, typed
from fastdc.cli.images import Limits, print_notes, read_images, read_labelled, seen_through, take_limits
from fastdc.cli.options import check_folder, check_output, open_bundle, open_network, plan_options
from fastdc.cli.runner import progress_of, promise
from fastdc.diffusion import LevelWeights
from fastdc.inference import (
    CALIBRATION_DRAWS,
    CALIBRATION_SEEDS,
    ErrorTable,
    Job,
    Options,
    PlanChoice,
    ValidationRuns,
    fit_runs,
    full_runs,
    merged,
)
from fastdc.rules import Calibration
from fastdc.support import InputError, Int64, checks

_SEEDS = 8  # of the full runs, if they do not take long

# Options that say which plan is calibrated, so that the model's own band is not in question.
_OF_PLAN = ("levels", "first", "weighting", "loss", "sigma", "method", "prompts")


def run(bundle: str, data: tuple[str, ...], out: str | None, write: bool, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.calibrate`."""
    opened = _opened(bundle, data, out, write, options)
    limits, quiet = take_limits(options), options["quiet"]
    if options["seeds"] is not None:
        checks.whole("seeds", options["seeds"])
    curve_wanted, choose = options.pop("level_weights"), options.pop("choose")
    Job.of(opened.model, (), merged(Options(rule="full"), plan_options(options, opened.model, dry=True)))
    images, labels = _load(data, opened, seen_through(limits, opened.model), labelled=curve_wanted, quiet=quiet)
    images, labels, kept, delta = _parts(images, labels, opened, options, choose=choose)
    seeds = _size_runs(opened, len(images), options)
    options["delta"] = delta
    classifier, plan, choice = open_network(opened, options), plan_options(options, opened.model), None
    seen = None
    if kept is not None:
        choice, seen = chosen_plan(classifier, opened, *kept, options)
        show(choice)
        plan |= choice.options
    runs = classifier.validation_runs(images, layout="NCHW", **plan)
    with progress_of(runs=seeds, quiet=quiet, description="full runs") as progress:
        tables = list(runs.tables(seeds, progress))
    found = calibrate_errors([table.errors for table in tables], runs.config, delta=delta)
    defaults = _first(options) if choice is None else {**stored(choice), **_fitted(runs, labels, choice, tables)}
    curve = _level_weights(tables, labels, quiet=quiet) if curve_wanted and labels is not None else None
    _show(found, tables[0], curve)
    if out is not None:
        write_calibration_file(out, opened, found, level_weights=curve, defaults=defaults)
        click.echo(f"saved        {out}")
    if write:
        opened = with_calibration(opened, found, level_weights=curve, defaults=defaults, seen=seen)
        click.echo(f"saved        in {opened.path}, whose sha256 is now {opened.model.identity[:12]}...")
    del tables  # the bulk of the memory
    with progress_of(quiet=quiet, description="race") as progress:
        spent = runs.race(found.rule, seeds, progress)  # under noise that the calibration has not seen
    full = len(opened.model.conditions) * runs.config.draws
    click.echo(f"evaluations  {spent:.1f} per image on these images (full run: {full})")
    if quiet:
        return
    most = len(images) * runs.config.draws * seeds
    if choice is None and labels is not None and not any(options[name] is not None for name in _OF_PLAN):
        print_notes(
            filter(None, [better_levels(classifier, opened, images, labels, most=most, quiet=quiet)]), quiet=quiet
        )
    if choice is not None:
        options |= typed(choice, kept=write or out is not None)
    command = "certify --data DATA --out RUN.tsv" if found.noised else "classify IMAGE..."
    click.echo(f"next         fastdc {command} {_how(bundle, out, write, found, options)}", err=True)


def _opened(bundle: str, data: tuple[str, ...], out: str | None, write: bool, options: dict[str, Any]) -> Bundle:
    """The model, with what can be refused before the work refused, and its place held if it is to be written.

    Raises:
        InputError: An option cannot be used.
    """
    if write and bundle in shipped_models():
        raise InputError(f"{bundle} comes with fastdc: name a folder to write to, or use --out and --calibration")
    if options["choose"]:
        check_choose(options)
    for name in ("levels", "weighting", "loss"):
        if write and options[name] is not None and not options["sigma"] and not options["choose"]:
            raise InputError(f"--write is for the model's own {name}, with which it runs: use --out for other --{name}")
    if write and options["prompts"] is not None:
        raise InputError("--write is for the model's own prompts: use --out and --calibration for others")
    opened = open_bundle(bundle, options)
    if out is not None:
        check_output(out, data)
    if write:
        check_folder(opened.path)
        click.get_current_context().with_resource(bundle_place(opened.path))  # before the work, not after it
    if options["level_weights"] and opened.model.class_of not in ((), tuple(range(opened.model.num_classes))):
        raise InputError("--level-weights needs one prompt per class, in the order of the classes")
    return opened


def _parts(
    images: NDArray[Any], labels: Int64 | None, bundle: Bundle, options: dict[str, Any], *, choose: bool
) -> tuple[NDArray[Any], Int64 | None, tuple[NDArray[Any], Int64 | None] | None, float]:
    """The images to calibrate on with their labels, those to choose on if any are to, and the level of the race.

    Raises:
        InputError: There are too few images.
    """

    def part(numbers: Int64) -> tuple[NDArray[Any], Int64 | None]:
        return images[numbers], None if labels is None else labels[numbers]

    delta, chose, kept, note = options["delta"], bundle.seen.chose(images), None, None
    if choose:
        kept, rest = parts_of(len(images), delta, labels, chose)
    else:
        rest = (~chose).nonzero()[0]
        if chose.any():
            note = f"{chose.sum()} of {len(images)} images chose the model's checkpoint or plan and do not calibrate"
    try:
        delta = supported_delta(len(rest)) if delta is None else delta
        check_level(delta, len(rest))
    except InputError as error:
        raise (error if note is None else InputError(f"{error}: {note}")) from None
    print_notes(filter(None, [note]), quiet=options["quiet"])
    return *part(rest), None if kept is None else part(kept), delta


def _size_runs(bundle: Bundle, images: int, options: dict[str, Any]) -> int:
    """Sets how many draws the full runs have, unless the command says it; their number of seeds.

    Both are fewer than usual if an evaluation of the network takes long, which is said.
    """
    draws, seeds = full_runs(bundle.flops or 0, images * len(bundle.model.conditions))
    usual = options["seeds"] or (_SEEDS if seeds == CALIBRATION_SEEDS else seeds)
    if options["draws"] is None:
        options["draws"] = draws
        if (draws, seeds) != (CALIBRATION_DRAWS, CALIBRATION_SEEDS):
            text = f"full runs of {draws} draws and {usual} noise seed{'s' if usual > 1 else ''}"
            note = f"{text}, because more evaluations of this network would take long (--draws, --seeds)"
            print_notes([note], quiet=options["quiet"])
    return usual


def _first(options: dict[str, Any]) -> dict[str, Any] | None:
    """The first draws as a default. They belong to the model's band; a calibration for noisy images brings its own."""
    if options["first"] is None or options["levels"] is not None or options["sigma"]:
        return None
    return {"first": list(options["first"])}


def _fitted(runs: ValidationRuns, labels: Int64 | None, choice: PlanChoice, tables: list[ErrorTable]) -> dict[str, Any]:
    """The temperature, which belongs to a plan; prints the accuracy on the images that nothing was chosen on."""
    if labels is None:
        return {}
    fits = fit_runs(runs, labels, draws=min(choice.draws, runs.config.draws), seeds=len(tables), tables=tables)
    click.echo(
        f"accuracy     {100 * fits.accuracy:.1f} % of the {len(labels)} images that nothing was chosen on "
        f"({choice.draws} draws of every class)"
    )
    return {"temperature": float(f"{fits.temperature:.4g}")}


def _load(
    data: tuple[str, ...], bundle: Bundle, limits: Limits, *, labelled: bool, quiet: bool
) -> tuple[NDArray[Any], Int64 | None]:
    """The images (n, c, h, w), and their labels int64 (n,), or None if there are none; `labelled`: there must be.

    Raises:
        InputError: The images cannot be used, or their classes are not the model's.
    """
    from fastdc.train import check_unseen

    shape, names = bundle.image_shape, bundle.class_names
    if not labelled:
        loaded = read_images(data, shape, limits, quiet=quiet, classes=names, strict=False, natural="val")
        check_unseen(" ".join(data), loaded.images, loaded.labels, bundle)
        return loaded.images, loaded.labels
    if len(data) != 1:
        raise InputError(f"--level-weights needs one labelled folder or .npz file, got {len(data)}")
    held = read_labelled(data[0], shape, limits, quiet=quiet, classes=names)
    check_unseen(data[0], held.images, held.labels, bundle)
    return held.images, held.labels


def _level_weights(tables: list[ErrorTable], labels: Int64, *, quiet: bool) -> LevelWeights | None:
    from fastdc.calibration import fit_level_weights

    errors = np.concatenate([table.errors for table in tables])
    try:
        return fit_level_weights(errors, tables[0].sigma, np.tile(labels, len(tables)))
    except InputError as error:  # known only now, and no reason to lose the calibration
        print_notes([f"no level weights: {error}"], quiet=quiet)
        return None


def _show(found: Calibration, table: ErrorTable, curve: LevelWeights | None) -> None:
    click.echo(f"limit        {found.limit:.6g}")
    click.echo(f"delta        {found.delta:g}: {promise(found.delta)}")
    seeds = f"{found.seeds} noise seed{'s' if found.seeds > 1 else ''}"
    click.echo(f"risk seen    {found.risk:.4g} on {found.images} images, {seeds}")
    hint = _most_telling(table)
    if hint is not None:
        ratio, share = hint
        first = ",".join(f"{r:g}" for r in found.plan["first"]) or "none"
        click.echo(
            f"levels       the most informative is {ratio:.2g}: one draw there names the full run's class for "
            f"{100 * share:.1f} % of these images (--first here: {first})"
        )
    if curve is not None:
        best = curve.ratio[int(np.argmax(curve.weight))]
        click.echo(f"weights      {len(curve.ratio)} knots, largest at {best:.2g}")


def _most_telling(table: ErrorTable) -> tuple[float, float] | None:
    """The noise level whose draws name the full run's class most often, and how often; None if there is one level."""
    from fastdc.calibration import informative_levels, most_informative

    try:
        levels = informative_levels(table.errors, table.sigma, table.mean().argmin(axis=1))
    except InputError:  # one class, one level, or levels of pure noise
        return None
    ratio = most_informative(levels)
    return ratio, levels.accuracy[levels.ratio.index(ratio)]


def _how(bundle: str, out: str | None, write: bool, found: Calibration, options: dict[str, Any]) -> str:
    """The options that make a command use this calibration."""
    words = [f"--model {bundle}"]
    if found.noised is not None:
        words.append("--sigma {:g} --method {}".format(options["sigma"], found.noised[0]))
    if options["denoiser"] is not None:
        words.append(f"--denoiser {options['denoiser']}")
    if not write:
        words.append(f"--calibration {out}" if out is not None else f"--rule calibrated -o limit={found.limit:.6g}")
    if found.noised is not None and (write or out):
        return " ".join(words)  # the calibration brings its levels, weighting and loss
    words += [f"--{name} {options[name]}" for name in ("weighting", "loss") if options[name] is not None]
    if options["levels"] is not None:
        words.append(f"--levels {_ends(options['levels'])}")
    if options["first"] and (options["levels"] is not None or not (write or out)):
        words.append("--first " + ",".join(f"{ratio:g}" for ratio in options["first"]))
    return " ".join(words)


def _ends(levels: tuple[float, float] | str) -> str:
    """A band as it is typed."""
    return levels if isinstance(levels, str) else "{:g} {:g}".format(*levels)
