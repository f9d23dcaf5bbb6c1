"""Options and progress that several commands share, so that a word means the same everywhere."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from fastdc.backends import BACKENDS, PRECISIONS
from fastdc.bundle import Bundle, Model, find_model, load_bundle, with_calibration_file
from fastdc.classifier import DiffusionClassifier
from fastdc.diffusion import METHODS, ORDERS
from fastdc.inference import DECISIONS, PlanOptions
from fastdc.loading import load
from fastdc.rules import RULES
from fastdc.support import InputError, require

Command = TypeVar("Command", bound=Callable[..., Any])
Advance = Callable[[int, str], None]


def _ratios(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Noise-to-signal ratios of "0.8" or "0.8,1.2", none of "". Whether they fit the model shows with the plan."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(",")) if value.strip() else ()
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 0.8 or 0.8,1.2, got {value!r:.80}", ctx, param) from None


def first_option(default: str) -> Callable[[Command], Command]:
    """The option --first of a command whose default is described so."""
    text = "Noise levels (sigma / alpha) of the first draws: the most telling ones."
    return click.option("--first", callback=_ratios, metavar="R[,R...]", help=f"{text}  [default: {default}]")


FIRST = first_option("the model's")
LEVELS = click.option(
    "--levels",
    type=(float, float),
    metavar="LO HI",
    help="Band of noise levels (sigma / alpha) that the draws go through.  [default: the model's]",
)
SIGMA = click.option(
    "--sigma",
    type=float,
    help="Add noise of this standard deviation to the images, in pixels in [0, 1], as certification does.",
)
METHOD = click.option(
    "--method",
    type=click.Choice(METHODS),
    help="What takes the noise into account: the classifier of noisy images.  [default: epndc with --sigma, else dc]",
)
QUIET = click.option("--quiet", is_flag=True, help="No progress bar, no notes.")

_NETWORK_OPTIONS = (
    click.option(
        "--backend",
        type=click.Choice(("auto", *BACKENDS)),
        default="auto",
        show_default=True,
        help="What runs the network.",
    ),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or several: cuda:N,M."),
    click.option(
        "--precision",
        type=click.Choice(("auto", *PRECISIONS)),
        default="auto",
        show_default=True,
        help="Of the network's numbers, where the backend has a choice.",
    ),
    click.option(
        "--batch",
        type=int,
        help="Network evaluations in a step.  [default: 128 on the CPU, 512 on a GPU; fewer if they are large]",
    ),
    click.option("--compile", is_flag=True, help="With torch: compile the network first."),
    click.option("--threads", type=int, help="CPU threads.  [default: all usable]"),
)

_RULE_OPTIONS = (
    click.option(
        "--rule",
        type=click.Choice(RULES),
        default="race",
        show_default=True,
        help="When to drop a class. race: calibrated where the model has a calibration for the draws, else paired "
        "tests; full: never.",
    ),
    click.option(
        "--rule-option",
        "-o",
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of the rule, such as alpha=0.001 or n_samples=16,64. Repeat for more.",
    ),
    click.option(
        "--calibration",
        type=click.Path(dir_okay=False),
        metavar="FILE.json",
        help="Use this calibration, of fastdc calibrate --out.  [default: the model's]",
    ),
)
_MODEL = click.option("--model", default="digits", show_default=True, help="A shipped model or a bundle folder.")
PROMPTS = click.option(
    "--prompts",
    metavar="CSV",
    help="Other classes for a text-conditional model with its text encoder: prompt,classname,classidx, one a line; "
    "several prompts may describe a class.  [default: the model's]",
)
_DRAWS = click.option(
    "--draws",
    type=int,
    help="Noise draws a class, at most; more is surer and slower.  [default: the rule's, else the model's]",
)
_SEED = click.option("--seed", type=int, default=0, show_default=True, help="Of the noise; same seed, same result.")

_RUN_OPTIONS = (
    _MODEL,
    PROMPTS,
    *_RULE_OPTIONS,
    click.option(
        "--decision",
        type=click.Choice(DECISIONS),
        default="mean",
        show_default=True,
        help="mean: smallest mean error wins; vote: most draws won.",
    ),
    _DRAWS,
    FIRST,
    LEVELS,
    click.option(
        "--order",
        type=click.Choice(ORDERS),
        help="How the draws go through the band: evenly, or at random (betting's guarantee asks for it).",
    ),
    click.option("--antithetic", is_flag=True, help="Draws in pairs of opposite noise."),
    click.option("--level-weights", is_flag=True, help="Weigh noise levels by the model's fitted curve."),
    _SEED,
    *_NETWORK_OPTIONS,
    QUIET,
)
_BASE_OPTIONS = (PROMPTS, *_RULE_OPTIONS, _DRAWS, FIRST, LEVELS, _SEED, *_NETWORK_OPTIONS, QUIET)


def run_options(command: Command) -> Command:
    """Adds the options of commands that run a classifier."""
    return _with(command, _RUN_OPTIONS)


def model_option(command: Command) -> Command:
    """Adds --model."""
    return _MODEL(command)


def base_options(command: Command) -> Command:
    """Adds the options of commands that certify: what decides about a noisy copy, and what runs it."""
    return _with(command, _BASE_OPTIONS)


def network_options(command: Command) -> Command:
    """Adds the options that say what runs the network."""
    return _with(command, _NETWORK_OPTIONS)


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def open_classifier(options: dict[str, Any]) -> DiffusionClassifier:
    """The classifier that a command's options name."""
    bundle = open_bundle(options["model"], options)
    if options.get("calibration") is not None:
        bundle = with_calibration_file(bundle, options["calibration"])
    return open_network(bundle, options)


def open_bundle(model: str, options: dict[str, Any]) -> Bundle:
    """The bundle of a name or folder, with the prompts that a command's options give."""
    bundle = load_bundle(find_model(model))
    path = options.get("prompts")
    if path is None:
        return bundle
    from fastdc.backends import with_prompts
    from fastdc.bundle import read_prompts

    return with_prompts(bundle, read_prompts(path))


def open_network(bundle: Bundle, options: dict[str, Any]) -> DiffusionClassifier:
    """The classifier of a bundle, on the network that a command's options name."""
    return load(
        bundle,
        backend=options["backend"],
        device=options["device"],
        precision=options["precision"],
        compile=options["compile"],
        batch=options["batch"],
        threads=options["threads"],
    )


def plan_options(options: dict[str, Any], model: Model) -> PlanOptions:
    """Which draws a command's options ask for.

    Raises:
        InputError: Level weights are asked for, and the model has none.
    """
    plan = PlanOptions(draws=options["draws"], levels=options["levels"], first=options["first"])
    if options.get("order") is not None:
        plan["order"] = options["order"]
    if options.get("antithetic"):
        plan["antithetic"] = True
    if options.get("sigma") or options.get("method"):
        plan["sigma"] = options["sigma"] or 0.0
        plan["method"] = options["method"] or "epndc"
    if options.get("level_weights"):
        if model.level_weights is None:
            raise InputError(f"model {model.name} has no level weights: fastdc calibrate --level-weights makes them")
        plan["level_weights"] = model.level_weights
    return plan


def check_output(path: str, inputs: Iterable[str] = ()) -> None:
    """Refuses a file that cannot be written, before the work whose result it would hold.

    Args:
        path: Where a file is to be written.
        inputs: Files that are read and must not be replaced.

    Raises:
        InputError: Its folder is missing or cannot be written to, or the file is a folder or one of the inputs.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a folder: expected one to write {target.name} to")
    if target.is_dir():
        raise InputError(f"{target} is a folder: expected a file to write to")
    if target.exists() and any(Path(name).exists() and target.samefile(name) for name in inputs):
        raise InputError(f"{target} is an input: choose another file to write to")
    check_folder(target.parent)


def check_folder(folder: Path) -> None:
    """Refuses a folder that cannot be written to.

    Raises:
        InputError: It cannot.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}") from None


def check_plot(path: str, inputs: Iterable[str] = ()) -> None:
    """Refuses a plot before the work that it would show: no matplotlib, or no folder to write to.

    Args:
        path: Where the plot is to be written.
        inputs: Files that are read and must not be replaced.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InputError: The path's suffix will not do, or see :func:`check_output`.
    """
    require("matplotlib", extra="plot")
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"a plot is written as .png, .svg or .pdf, got {path!r}")
    check_output(path, inputs)


@contextmanager
def progress_bar(total: int, *, quiet: bool, description: str | None = None) -> Iterator[Advance]:
    """A bar on stderr over images, drawn only on a terminal, and drawn again where only the text behind it changes.

    Args:
        total: Images in all.
        quiet: No bar at all.
        description: A word before the bar.

    Yields:
        A function that advances the bar by a number of images and puts a text behind it.
    """
    from tqdm import tqdm

    disable = True if quiet else None  # None: tqdm's word for "only on a terminal"
    with tqdm(
        total=total,
        desc=description,
        unit="image",
        disable=disable,
        dynamic_ncols=True,
        leave=False,
        smoothing=0,  # the mean rate: images come in heaps
        miniters=0,
    ) as bar:

        def advance(count: int, postfix: str) -> None:
            bar.set_postfix_str(postfix, refresh=False)
            bar.update(count)

        yield advance
