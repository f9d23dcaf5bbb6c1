"""``fastdc certify``: a data set by randomized smoothing, into a file that any interruption leaves usable.

What is certified is that of :mod:`fastdc.certification.smoothing` and :mod:`fastdc.certification.estimation`; the file
is that of :mod:`fastdc.certification.records`.
"""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.certification import (
    ENVIRONMENT,
    UNKNOWN,
    AbstractEstimation,
    Anytime,
    Certificate,
    CertifyProgress,
    Fixed,
    Pilot,
    RecordWriter,
    Smoothing,
    Target,
    default_radii,
    names_of,
    read_records,
    summarize,
    table,
)
from fastdc.cli.options import (
    base_options,
    check_output,
    model_option,
    open_classifier,
    plan_options,
    progress_bar,
)
from fastdc.cli.runner import held_back, rule_options
from fastdc.diffusion import METHODS
from fastdc.inference import released_plan
from fastdc.support import InputError, Interrupted, version_of

DIGITS = "digits"  # the data set that comes with fastdc

_COPIES, _TARGET_COPIES = 1000, 10_000  # n where it is not given

_EPILOG = """\b
Examples:
  fastdc certify --data digits --max 20 --sigma 0.25 --out run.tsv
  fastdc certify --data val/ --model my-model --sigma 0.5 --n 10000 --skip 20 --out run.tsv
  fastdc certify --data val.npz --sigma 0.25 --radius 0.5 --out half.tsv      much cheaper
  fastdc evaluate run.tsv                                                    the numbers again

\b
The smoothed classifier answers what the model says most often when Gaussian noise of standard
deviation SIGMA is added to the image. If that class wins with probability p > 1/2, it wins for every
image within the L2 distance sigma * Phi^-1(p): a larger sigma reaches farther and costs accuracy.
N0 noisy copies choose the class, N fresh ones bound p, and each certificate holds with probability
1 - alpha. An image whose bound stays below 1/2 is abstained from (-1). With all N copies won the
radius is 2.5 sigma for 1000 of them and 3.2 sigma for 10000. SIGMA and radii are in pixels in [0, 1].

\b
--radius R asks only whether R can be certified, with as few copies as that takes, N at most.
--estimation pilot takes as many as the N0 copies say are worth it; anytime stops when more copies
would not help. Both may give away about --tolerance of radius against all N.

\b
DATA is a folder with a sub-folder for each class, an .npz with images and labels, "digits" for the
400 test digits that come with fastdc, or images without labels: then nobody counts what is correct.
--skip and --max choose images 0, SKIP, 2 SKIP, ... below MAX, as in other papers' programs.

\b
FILE gets a line an image as soon as it is certified, and FILE.json what reproduces the run. After
Ctrl-C, or a crash, the same command goes on where it stopped and ends in the same file.
"""


@dataclass(frozen=True, eq=False)
class _Data:
    """Images (n, c, h, w), their classes int64 (n,) or ``UNKNOWN``, and what is to be said of them."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 of all of it."""
        content = hashlib.sha256(f"{self.images.dtype.str} {self.images.shape}\n".encode())
        content.update(np.ascontiguousarray(self.images).tobytes())
        content.update(self.labels.astype("<i8").tobytes())
        return content.hexdigest()


@click.command(name="certify", epilog=_EPILOG)
@click.option("--data", required=True, metavar="DATA", help="Folder, .npz, .npy or digits.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="Records, one an image.")
@model_option
@click.option("--sigma", required=True, type=float, help="Standard deviation of the noise, in pixels in [0, 1].")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="epndc",
    show_default=True,
    help="How the model classifies a noisy copy.",
)
@click.option(
    "--compat",
    type=click.Choice(("ndc",)),
    help="The released grid and weights of --method epndc or apndc, every class at every level unless --rule is given.",
)
@click.option("--n0", type=int, default=100, show_default=True, help="Copies that choose the class.")
@click.option("--n", type=int, help=f"Copies that bound its probability.  [default: {_COPIES}; with --radius 10000]")
@click.option("--alpha", type=float, default=0.001, show_default=True, help="Probability of a false certificate.")
@click.option("--radius", type=float, metavar="R", help="Certify this radius or refuse.")
@click.option(
    "--estimation",
    type=click.Choice(("fixed", "pilot", "anytime")),
    default="fixed",
    show_default=True,
    help="How many copies: N, what the pilot says, or until more do not help.",
)
@click.option("--tolerance", type=float, metavar="R", help="Radius that pilot and anytime may lose.  [default: 0.05]")
@click.option("--skip", type=int, default=1, show_default=True, help="Certify every SKIP-th image.")
@click.option("--max", "stop", type=int, metavar="MAX", help="Only images before this one.  [default: all]")
@click.option("--overwrite", is_flag=True, help="Start FILE again.")
@base_options
def command(data: str, out: str, **options: Any) -> None:
    """Certify the images of DATA by randomized smoothing; the records go to FILE, a summary to the terminal."""
    estimation = _estimation(options)
    smoothing = Smoothing(estimation, n0=options["n0"], seed=options["seed"])
    for name in ("skip", "stop"):
        if options[name] is not None and options[name] < 1:
            raise InputError(f"--{'max' if name == 'stop' else name} must be at least 1, got {options[name]}")
    check_output(out, [data])
    classifier = open_classifier(options)
    rule, plan = options["rule"], plan_options(options, classifier.model)
    plan["method"], plan["sigma"] = options["method"], options["sigma"]
    if options["compat"] is not None:
        given = [name for name in ("draws", "first", "levels") if options[name] is not None]
        if given:
            raise InputError(f"--compat {options['compat']} brings its levels: expected no --{given[0]} beside it")
        plan = released_plan(classifier.model, options["method"], options["sigma"])
        rule = "full" if rule == "race" else rule
    base = classifier.base(rule=rule, rule_options=rule_options(options["rule_option"]), seed=options["seed"], **plan)
    loaded = _load(data, classifier.model)
    for note in () if options["quiet"] else loaded.notes:
        click.echo(f"note: {note}", err=True)
    n = len(loaded.images)
    manifest = {
        "indices": [0, min(n, options["stop"] or n), options["skip"]],
        "data": {"sha256": loaded.digest, "images": n, "labelled": bool((loaded.labels != UNKNOWN).all())},
        "smoothing": smoothing.describe(),
        "base": base.describe(),
        ENVIRONMENT: _environment(data, options),
    }
    with RecordWriter.open(out, manifest, overwrite=options["overwrite"]) as writer:
        if writer.finished and not options["quiet"]:
            done, left = len(writer.finished), len(writer.remaining)
            click.echo(f"note: {out} holds {done} image{'s'[: done != 1]} of this run, {left} to go", err=True)
        if writer.remaining:
            images = loaded.images[np.array(writer.remaining)]
            with progress_bar(len(images), quiet=options["quiet"]) as advance:
                stream = classifier.certify_stream(
                    images, estimation, n0=smoothing.n0, seed=smoothing.seed, base=base, progress=_Shown(advance)
                )
                _write(writer, loaded.labels, stream)
    records = read_records(out)
    click.echo(table([summarize(records, default_radii([records]), name=names_of([Path(out)])[0])]))


def _estimation(options: dict[str, Any]) -> AbstractEstimation:
    """How a certificate is made, as the options say.

    Raises:
        InputError: They do not go together, or one is out of range.
    """
    kind, radius, tolerance, n = (options[name] for name in ("estimation", "radius", "tolerance", "n"))
    sigma, alpha = options["sigma"], options["alpha"]
    if tolerance is not None and (kind == "fixed" or radius is not None):
        raise InputError("--tolerance is of --estimation pilot and anytime: expected one of them and no --radius")
    if radius is not None:
        if kind != "fixed":
            raise InputError(f"--radius has an estimation of its own: expected no --estimation {kind} beside it")
        return Target(sigma, radius, _TARGET_COPIES if n is None else n, alpha)
    most = _COPIES if n is None else n
    if kind == "fixed":
        return Fixed(sigma, most, alpha)
    extra = () if tolerance is None else (tolerance,)
    return Pilot(sigma, most, alpha, *extra) if kind == "pilot" else Anytime(sigma, most, alpha, *extra)


def _load(source: str, model: Model) -> _Data:
    """The images of a data set, with the model's classes where they are known.

    Raises:
        InputError: It cannot be read, or has other classes than the model.
    """
    from fastdc.data import DIGITS_TEST, load_images, load_labelled

    path, shape = Path(source), model.image_shape
    folders = (
        {item.name for item in path.iterdir() if item.is_dir() and item.name[0] != "."} if path.is_dir() else set()
    )
    shipped = source == DIGITS and not path.exists()
    if shipped or (folders and folders <= set(model.class_names)):
        held = load_labelled(DIGITS_TEST if shipped else path, shape)
        return _Data(held.images, _classes(held.labels, held.class_names, model, source), held.notes)
    loaded = load_images([source], shape)
    notes = loaded.notes
    if loaded.labels is None:
        why = f": the folders in {source} are not named after its classes" if folders else ""
        unknown = np.full(len(loaded), UNKNOWN, np.int64)
        return _Data(loaded.images, unknown, (*notes, f"true classes are not known{why}"))
    return _Data(loaded.images, _classes(loaded.labels, loaded.class_names, model, source), notes)


def _classes(
    labels: npt.NDArray[np.int64], names: tuple[str, ...] | None, model: Model, source: str
) -> npt.NDArray[np.int64]:
    """Labels as classes of the model, by name where the data set has names."""
    known = model.class_names
    if names is None:
        if labels.max() >= len(known):
            raise InputError(f"{source} has label {labels.max()}: the model {model.name} has {len(known)} classes")
        return labels
    strange = [name for name in names if known.count(name) != 1]
    if strange:
        raise InputError(f"{source} has a class {strange[0]!r:.60}, which is not one of the model {model.name}")
    place = {name: k for k, name in enumerate(known)}
    return np.array([place[name] for name in names], np.int64)[labels]


def _environment(data: str, options: dict[str, Any]) -> dict[str, Any]:
    """What may differ between two parts of one run."""
    return {
        "data": data,
        "model": options["model"],
        "batch": options["batch"],
        "threads": options["threads"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": version_of("onnxruntime", "onnxruntime-gpu"),
        "torch": version_of("torch"),
    }


class _Shown:
    """Moves a bar as images and copies are done."""

    def __init__(self, advance: Any) -> None:
        self._advance, self._finished = advance, 0

    def __call__(self, state: CertifyProgress) -> None:
        self._advance(state.finished - self._finished, f"{state.copies:,} copies, {state.evaluations:,} evaluations")
        self._finished = state.finished


def _write(writer: RecordWriter, labels: npt.NDArray[np.int64], stream: Iterator[tuple[int, Certificate]]) -> None:
    """Writes certificates as they come; a Ctrl-C does not fall into a record.

    Raises:
        Interrupted: Ctrl-C.
    """
    try:
        with closing(stream):  # type: ignore[type-var]
            for _, certificate in stream:
                idx = writer.remaining[0]
                with held_back() as interrupted:
                    writer.write(idx, int(labels[idx]), certificate)
                if interrupted():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        done, left = len(writer.finished), len(writer.remaining)
        raise Interrupted(
            f"interrupted: {done} of {done + left} images finished; the same command goes on", None
        ) from None
