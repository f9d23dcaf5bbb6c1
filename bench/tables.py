"""Tables of errors of the digits for benchmarks: images with and without noise, full runs, calibrations, statistics.

Noise is added in the model's value range and not clipped. The public API takes only images in [0, 1], so noisy images
go through a job. The noise's standard deviation is given in pixels in [0, 1]; on [-1, 1] it is twice that.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.calibration import calibrate_errors
from fastdc.classifier import DiffusionClassifier
from fastdc.data import LabelledImages, load_labelled
from fastdc.diffusion import PlanConfig
from fastdc.inference import Job, Options, PlanOptions, streams_of, to_model_range
from fastdc.rules import AbstractRule, Calibration
from fastdc.support import installed

Images = npt.NDArray[np.float32]
Errors = npt.NDArray[np.float32]

MAKE_DIGITS = Path(__file__).resolve().parents[1] / "models" / "make_digits.py"


def note(message: str) -> None:
    """Prints a line of progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Prints how long a step took."""
    start = time.perf_counter()
    yield
    note(f"{what}: {time.perf_counter() - start:.1f} s")


def validation_images(path: Path | None) -> LabelledImages:
    """The 197 validation images of the digits, from a file or made by ``models/make_digits.py``.

    Raises:
        SystemExit: No file was given and scikit-learn is not installed.
    """
    if path is not None:
        return load_labelled(path)
    if not installed("sklearn"):
        raise SystemExit("the validation images need scikit-learn (pip install scikit-learn), or --val digits-val.npz")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(MAKE_DIGITS), folder], check=True, capture_output=True)
        return load_labelled(Path(folder) / "digits-val.npz")


def first_images(given: LabelledImages, count: int) -> LabelledImages:
    """The first `count` images of a set."""
    return replace(given, images=given.images[:count], labels=given.labels[:count], ids=given.ids[:count])


def model_images(images: npt.NDArray[np.uint8], model: Model, *, sigma: float = 0.0, seed: int = 0) -> Images:
    """Images in the model's value range, float32 (n, c, h, w). Noise may leave the range: nothing is clipped.

    Args:
        images: Images, uint8 (n, c, h, w).
        model: Model that defines the range.
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        seed: Seed of the noise.
    """
    x = to_model_range(images, model)
    if sigma == 0:
        return x
    low, high = model.value_range
    noise = np.random.default_rng([seed, round(1000 * sigma)]).standard_normal(x.shape)
    return (x + sigma * (high - low) * noise).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Ran:
    """The outcome of a job.

    Attributes:
        counts: Number of draws per image and class, int32 (n, K).
        errors: Errors, float32 (n, K, J); NaN where a class was not evaluated.
        ratio: Noise-to-signal ratio of each draw, float64 (J,).
        config: Configuration of the plan.
        seconds: Wall time.
    """

    counts: npt.NDArray[np.int32]
    errors: Errors
    ratio: npt.NDArray[np.float64]
    config: PlanConfig
    seconds: float


def run_job(
    classifier: DiffusionClassifier, x: Images, rule: str | AbstractRule, *, seed: int, plan: PlanOptions
) -> Ran:
    """Runs a rule on images in the model's value range."""
    job = Job.of(classifier.model, classifier.networks, Options(rule=rule, seed=seed).but(**plan))
    streams = streams_of(x)
    start = time.perf_counter()
    table = job.table(x, streams)
    seconds = time.perf_counter() - start
    return Ran(table.counts, table.errors, table.sigma, job.plan.config, seconds)


def full_run(classifier: DiffusionClassifier, x: Images, *, seed: int, plan: PlanOptions) -> Ran:
    """Evaluates every class at every draw."""
    return run_job(classifier, x, "full", seed=seed, plan=plan)


def supported(deltas: Sequence[float], images: int) -> list[float]:
    """Levels that a number of validation images can guarantee; smaller ones become the smallest possible level."""
    least = float(np.ceil(1e4 / (images + 1)) / 1e4)
    return sorted({max(delta, least) for delta in deltas})


def calibrations(runs: Sequence[Errors], config: PlanConfig, deltas: Sequence[float]) -> dict[float, Calibration]:
    """The calibration at each level that the images can guarantee, from full runs (n, K, J) of several seeds."""
    return {delta: calibrate_errors(runs, config, delta=delta) for delta in supported(deltas, len(runs[0]))}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval over seeds; 0 if there is one seed, or if all agree."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return float(np.mean(values)), 0.0
    return float(np.mean(values)), float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)


def plus_minus(values: Sequence[float], digits: int = 2) -> str:
    """The interval as text; the mean alone if the seeds do not tell an interval, as at 100 % under every seed."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if half else f"{mean:.{digits}f}"
