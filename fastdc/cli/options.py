"""Options, checks and the progress bar that several commands share."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fastdc.cli.completing import files, models
from fastdc.cli.level_options import FIRST, LEVELS
from fastdc.cli.names import BACKENDS, DECISIONS, LOSSES, METHODS, ORDERS, PRECISIONS, RULES, WEIGHTINGS
from fastdc.cli.noise import hushed
from fastdc.cli.priors import read_prior
from fastdc.support import InputError, require

if TYPE_CHECKING:
    from fastdc.bundle import Bundle, Model
    from fastdc.classifier import DiffusionClassifier
    from fastdc.inference import PlanOptions

Command = TypeVar("Command", bound=Callable[..., Any])
Advance = Callable[[int, str], None]


SIGMA = click.option(
    "--sigma",
    type=float,
    help="Add Gaussian noise of this standard deviation to the images, in pixels in [0, 1], as certification does.",
)
METHOD = click.option(
    "--method",
    type=click.Choice(METHODS),
    help="Diffusion classifier of the noisy images.  [default: epndc with --sigma, otherwise dc]",
)
DENOISER = click.option(
    "--denoiser",
    metavar="BUNDLE",
    shell_complete=models,
    help="Model that denoises the images for --method denoised, apndc and apndc-x if the classifier has no null class: "
    "a shipped model or a bundle folder, unconditional or with a null class, of images of the same shape. mean: the "
    "mean of the classifier's own classes, a poor estimate.  [default: the classifier's null class]",
)
WEIGHTING = click.option(
    "--weighting",
    type=click.Choice(WEIGHTINGS),
    help="How much the error at each noise level counts. uniform: errors in epsilon alike (Li et al.); velocity: "
    "errors in velocity alike, as flow models are trained; edm: EDM's training weights; vlb: the variational bound; "
    "exp: mostly low noise (Clark & Jaini); min_snr: less at low noise.  [default: the model's]",
)
LOSS = click.option(
    "--loss",
    type=click.Choice(LOSSES),
    help="How the error of a pixel counts. l2: its square; l1: its magnitude, so that a few pixels matter less; huber: "
    "its square below 1, its magnitude above.  [default: the model's]",
)


def _hush(ctx: click.Context, param: click.Parameter, quiet: bool) -> bool:
    """Silences warnings and other libraries until the command ends, if --quiet is given."""
    if quiet:
        ctx.find_root().with_resource(hushed())  # whose end comes even if another option cannot be read
    return quiet


QUIET = click.option(
    "--quiet",
    is_flag=True,
    is_eager=True,
    callback=_hush,
    help="Print results and errors only: no progress bar, notes or warnings.",
)

_NETWORK_OPTIONS = (
    click.option(
        "--backend",
        type=click.Choice(("auto", *BACKENDS)),
        default="auto",
        show_default=True,
        help="Library that runs the network. auto: onnx if it is installed, but torch on a GPU.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="DEVICE",
        help="cpu, cuda, cuda:N, or several GPUs: cuda:N,M.",
    ),
    click.option(
        "--precision",
        type=click.Choice(("auto", *PRECISIONS)),
        default="auto",
        show_default=True,
        help="Precision of the network, if the backend offers several.",
    ),
    click.option(
        "--batch",
        type=int,
        help="Network evaluations per step.  [default: 128 on the CPU, 512 on a GPU; fewer for large networks]",
    ),
    click.option("--compile", is_flag=True, help="Compile the network before the first step (torch backend only)."),
    click.option("--threads", type=int, help="Number of CPU threads (CPU backends only).  [default: all usable]"),
)

_RULE_OPTIONS = (
    click.option(
        "--rule",
        type=click.Choice(RULES),
        default="race",
        show_default=True,
        help="Rule that stops evaluating classes that have lost. race: the model's calibrated race, or paired tests if "
        "the model has no calibration for these draws. full: evaluate every class at every draw.",
    ),
    click.option(
        "--rule-option",
        "-o",
        multiple=True,
        metavar="NAME=VALUE",
        help="Option of the rule, such as alpha=0.001 or n_samples=16,64; repeat it for more options.",
    ),
    click.option(
        "--calibration",
        type=click.Path(dir_okay=False),
        metavar="FILE.json",
        help="Calibration of the race, a file written by fastdc calibrate --out.  [default: the model's]",
    ),
)
_MODEL = click.option(
    "--model",
    default="digits",
    show_default=True,
    metavar="NAME|FOLDER",
    shell_complete=models,
    help="A shipped model (fastdc info lists and describes them), or the folder of your own from fastdc export.",
)
PROMPTS = click.option(
    "--prompts",
    metavar="CSV",
    shell_complete=files,
    help="Prompts that replace the classes of a text-conditional model: a CSV file with the columns prompt, classname "
    "and classidx, one or more prompts per class.  [default: the model's]",
)
_DRAWS = click.option(
    "--draws",
    type=int,
    help="Most noise draws per class; more draws make the answer surer and slower.  [default: the rule's or the "
    "model's]",
)
_SEED = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the noise; the same seed gives the same result."
)

SELF_CALIBRATE = click.option(
    "--self-calibrate",
    type=int,
    metavar="N",
    help="Calibrate the race on the run itself: N random images are run in full, and the others race. Their answers "
    "differ from the full run's with probability at most 1 %, or as -o delta=0.02 says. It takes 19 images, and 99 for "
    "1 %.",
)

PRIOR = click.option(
    "--prior",
    callback=read_prior,
    metavar="PRIOR",
    shell_complete=files,
    help="How often each class occurs. uniform; data: as in the training data, if the model knows; a weight for each "
    "class, such as cat=3,dog=1 or 3,1 in the order of the classes; or a text file with one of these per line. A class "
    "of weight 0 never wins. Needs a fitted temperature.  [default: uniform]",
)

_DECISION = click.option(
    "--decision",
    type=click.Choice(DECISIONS),
    default="mean",
    show_default=True,
    help="mean: the class with the smallest mean error wins. vote: the class that wins the most draws.",
)
_PLAN_OPTIONS = (
    _DECISION,
    _DRAWS,
    FIRST,
    LEVELS,
    click.option(
        "--order",
        type=click.Choice(ORDERS),
        help="Order of the noise levels in the band: evenly spread or random; the guarantee of --rule betting needs "
        "random.  [default: van_der_corput]",
    ),
    click.option("--antithetic", is_flag=True, help="Make draws in pairs of opposite noise."),
    WEIGHTING,
    LOSS,
    click.option(
        "--level-weights", is_flag=True, help="Weight noise levels by the curve that was fitted to the model."
    ),
    _SEED,
    *_NETWORK_OPTIONS,
    QUIET,
)
_RUN_OPTIONS = (PROMPTS, *_RULE_OPTIONS, SELF_CALIBRATE, PRIOR, *_PLAN_OPTIONS)
_TEXT_OPTIONS = (*_RULE_OPTIONS[:2], *_PLAN_OPTIONS)
_BASE_OPTIONS = (PROMPTS, *_RULE_OPTIONS, _DRAWS, FIRST, LEVELS, WEIGHTING, LOSS, _SEED, *_NETWORK_OPTIONS, QUIET)


def run_options(command: Command) -> Command:
    """Adds the options of commands that run a classifier, --model among them."""
    return _with(command, (_MODEL, *_RUN_OPTIONS))


def run_options_of_model(command: Command) -> Command:
    """Adds the options of commands that run a classifier whose model is an argument."""
    return _with(command, _RUN_OPTIONS)


def text_options(command: Command) -> Command:
    """Adds the options of commands in which every image has texts of its own: no prompts, calibration file or prior."""
    return _with(command, _TEXT_OPTIONS)


def model_option(command: Command) -> Command:
    """Adds --model."""
    return _MODEL(command)


def base_options(command: Command) -> Command:
    """Adds the options of commands that certify: the rule, the draws and the network of the base classifier."""
    return _with(command, _BASE_OPTIONS)


def network_options(command: Command) -> Command:
    """Adds the options of the network."""
    return _with(command, _NETWORK_OPTIONS)


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def open_classifier(options: dict[str, Any]) -> "DiffusionClassifier":
    """The classifier that the options describe."""
    return open_network(open_model(options), options)


def open_model(options: dict[str, Any]) -> "Bundle":
    """The bundle that the options name, with their prompts and calibration; no network is opened."""
    from fastdc.bundle import with_calibration_file

    bundle = open_bundle(options["model"], options)
    path = options.get("calibration")
    return bundle if path is None else with_calibration_file(bundle, path)


def open_bundle(model: str, options: dict[str, Any]) -> "Bundle":
    """The bundle of a name or folder, with the prompts that the options give."""
    from fastdc.bundle import find_model, load_bundle

    bundle = load_bundle(find_model(model))
    path = options.get("prompts")
    if path is None:
        return bundle
    from fastdc.backends import with_prompts
    from fastdc.bundle import read_prompts

    return with_prompts(bundle, read_prompts(path))


def open_network(bundle: "Bundle", options: dict[str, Any]) -> "DiffusionClassifier":
    """The classifier of a bundle, on the backend and device that the options name."""
    from fastdc.loading import load

    return load(
        bundle,
        backend=options["backend"],
        device=options["device"],
        precision=options["precision"],
        compile=options["compile"],
        batch=options["batch"],
        threads=options["threads"],
    )


@dataclass(frozen=True)
class _Unopened:
    """A model as a denoiser whose network is not open, which suffices to check the options."""

    model: "Model"
    networks: tuple[()] = ()


def plan_options(options: dict[str, Any], model: "Model", *, dry: bool = False) -> "PlanOptions":
    """The options of the plan: those that select the draws.

    Args:
        options: Options of the command.
        model: The classifier's model.
        dry: Whether the plan is only to be checked: then the network of ``--denoiser`` is not opened.

    Raises:
        InputError: The options ask for level weights, but the model has none.
    """
    from fastdc.bundle import find_model, load_bundle
    from fastdc.diffusion import MEAN
    from fastdc.inference import PlanOptions

    plan = PlanOptions(
        draws=options["draws"],
        levels=options["levels"],
        first=options["first"],
        weighting=options["weighting"],
        loss=options["loss"],
    )
    if options.get("order") is not None:
        plan["order"] = options["order"]
    if options.get("antithetic"):
        plan["antithetic"] = True
    if options.get("sigma") or options.get("method"):
        plan["sigma"] = options["sigma"] or 0.0
        plan["method"] = options["method"] or "epndc"
    denoiser = options.get("denoiser")
    if denoiser == MEAN:
        plan["denoiser"] = denoiser
    elif denoiser is not None:
        bundle = load_bundle(find_model(denoiser))
        plan["denoiser"] = _Unopened(bundle.model) if dry else open_network(bundle, options)
    if options.get("level_weights"):
        if model.level_weights is None:
            raise InputError(f"model {model.name} has no level weights: fastdc calibrate --level-weights makes them")
        plan["level_weights"] = model.level_weights
    return plan


def check_output(path: str, inputs: Iterable[str] = ()) -> None:
    """Refuses an output file that cannot be written, before the work starts; click itself refuses a folder.

    Args:
        path: The output file.
        inputs: Input files, which the output must not replace.

    Raises:
        InputError: Its folder is missing or not writable, or the path is one of the inputs.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a folder: expected one to write {target.name} to")
    if target.exists() and any(Path(name).exists() and target.samefile(name) for name in inputs):
        raise InputError(f"{target} is an input: choose another file to write to")
    check_folder(target.parent)


def check_folder(folder: Path) -> None:
    """Refuses a folder that is not writable.

    Raises:
        InputError: The folder is not writable.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}") from None


def check_plot(path: str, inputs: Iterable[str] = ()) -> None:
    """Refuses a plot that cannot be drawn or written, before the work starts.

    Args:
        path: The plot's file.
        inputs: Input files, which the plot must not replace.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InputError: The suffix is not .png, .svg or .pdf, the folder is missing or not writable, or the path is one of
            the inputs.
    """
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"a plot is written as .png, .svg or .pdf, got {path!r}")
    require("matplotlib", extra="plot")
    check_output(path, inputs)


@contextmanager
def progress_bar(total: int, *, quiet: bool, description: str | None = None, unit: str = "image") -> Iterator[Advance]:
    """A progress bar on stderr, drawn only on a terminal.

    Args:
        total: Total number of images, or of what `unit` names.
        quiet: Whether to draw no bar.
        description: Text before the bar.
        unit: What is counted.

    Yields:
        A function that advances the bar by a number of them and sets the text after it.
    """
    from tqdm import tqdm

    disable = True if quiet else None  # None means "only on a terminal" to tqdm
    with tqdm(
        total=total,
        desc=description,
        unit=unit,
        disable=disable,
        dynamic_ncols=True,
        leave=False,
        smoothing=0,  # show the mean rate, because images finish in groups
        miniters=0,
    ) as bar:

        def advance(count: int, postfix: str) -> None:
            bar.set_postfix_str(postfix, refresh=False)
            bar.update(count)

        yield advance
