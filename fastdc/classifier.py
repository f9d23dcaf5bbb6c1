"""The public object: a diffusion classifier that is loaded once and asked many times.

    clf = fastdc.load("digits")
    result = clf.classify(images)          # uint8 or float in [0, 1], (n, c, h, w)
    result.labels, result.probabilities, result.evaluations

The method is the Diffusion Classifier (Li et al., arXiv 2303.16203, algorithm 1): for every class, how well does the
conditional model denoise the image; all classes see the same noise.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends import AbstractNetwork, NetworkOptions, open_network
from fastdc.bundle import Bundle, load_bundle
from fastdc.cells import FullRule
from fastdc.decide import DECISIONS, decide_table
from fastdc.engine import Progress, fill_table
from fastdc.errors import ErrorTable
from fastdc.exceptions import BundleError, InputError
from fastdc.images import check_streams, streams_of, to_model_range
from fastdc.model import Model
from fastdc.ops import MAX_SEED, set_num_threads
from fastdc.plan import PlanConfig, is_number, make_plan

METHODS = ("dc",)
RULES = ("full",)

_SHIPPED = Path(__file__).parent / "models"


@dataclass(frozen=True, eq=False)
class Classification:
    """The result of :meth:`DiffusionClassifier.classify` for n images.

    Attributes:
        labels: int64 (n,), the predicted class.
        probabilities: float64 (n, K): temperature-scaled posterior, or shares of votes with ``decision="vote"``.
        errors: float64 (n, K), mean weighted denoising error of each class; the smallest wins. A class that was dropped
            early is placed by its paired differences to the best, see ``decide.Decision.mean_errors``.
        evaluations: int64 (n,), network evaluations spent on each image (NFE).
        votes: int64 (n, K), draws at which each class had the smallest error.
        class_names: K names.
        seconds: Wall time of the run.
        provenance: What reproduces the result: seed, plan, method, rule, decision, model, its sha256, backend, version.
        table: Every error, to replay decisions or save.
    """

    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64] = field(repr=False)
    errors: npt.NDArray[np.float64] = field(repr=False)
    evaluations: npt.NDArray[np.int64] = field(repr=False)
    votes: npt.NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    seconds: float
    provenance: dict[str, Any] = field(repr=False)
    table: ErrorTable = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the predicted classes."""
        return tuple(self.class_names[label] for label in self.labels)


@dataclass(frozen=True)
class DiffusionClassifier:
    """A model and a network that runs it. Made by :func:`load`, or by hand for a network given from Python.

    Attributes:
        model: Shapes, classes, schedule, parameterisation, defaults.
        network: What runs F(sample, timestep, class_labels).
    """

    model: Model
    network: AbstractNetwork

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K class names."""
        return self.model.class_names

    def errors(
        self,
        images: Any,
        *,
        draws: int | None = None,
        seed: int = 0,
        levels: tuple[float, float] | str | None = None,
        weighting: str | None = None,
        loss: str | None = None,
        streams: Any = None,
        progress: Progress | None = None,
    ) -> ErrorTable:
        """The error of every image, class and draw.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            draws: Draws a class, J; default: the model's.
            seed: Of the noise, in [0, 2^64).
            levels: Band of noise-to-signal ratios sigma / alpha (low, high), in units of the model's pixel values, or
                "all" for the whole schedule;
                default: the model's.
            weighting: "uniform", "edm", "vlb", "exp" or "min_snr"; default: the model's.
            loss: "l2", "l1" or "huber"; default: the model's.
            streams: Noise stream of each image, ints in [0, 2^56); default: from the image's pixels, so that order and
                batch change nothing.
            progress: Called with (cells evaluated, cells in all) after every step.

        Raises:
            InputError: Images or options cannot be used; before any work starts.
        """
        config = self._plan_config(draws, levels, weighting, loss)
        plan = make_plan(self.model.schedule, self.model.parameterization, config)
        seed = _check_seed(seed)
        x = to_model_range(images, self.model)
        noise_streams = streams_of(x) if streams is None else check_streams(streams, len(x))
        rule = FullRule(len(x), self.model.num_classes, plan.draws)
        return fill_table(self.network, self.model, x, noise_streams, plan, rule, seed=seed, progress=progress)

    def classify(
        self,
        images: Any,
        *,
        method: str = "dc",
        rule: str = "full",
        decision: str = "mean",
        draws: int | None = None,
        seed: int = 0,
        levels: tuple[float, float] | str | None = None,
        weighting: str | None = None,
        loss: str | None = None,
        temperature: float | None = None,
        streams: Any = None,
        progress: Progress | None = None,
    ) -> Classification:
        """Classifies images.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            method: "dc", the Diffusion Classifier.
            rule: "full": every class at every draw.
            decision: "mean" (smallest mean error) or "vote" (most draws won).
            draws: Draws a class; default: the model's.
            seed: Of the noise, in [0, 2^64).
            levels: Band of noise levels, see :meth:`errors`.
            weighting: See :meth:`errors`.
            loss: See :meth:`errors`.
            temperature: Of the posterior; default: the model's, fitted on validation images where it was.
            streams: See :meth:`errors`.
            progress: Called with (cells evaluated, cells in all) after every step.

        Returns:
            Labels, probabilities and what they cost.

        Raises:
            InputError: Images or options cannot be used; before any work starts.
        """
        _check_choice("method", method, METHODS)
        _check_choice("rule", rule, RULES)
        _check_choice("decision", decision, DECISIONS)
        temperature = self.model.defaults.temperature if temperature is None else temperature
        if not is_number(temperature) or not 0 < temperature < float("inf"):
            raise InputError(f"temperature must be positive, got {temperature!r}")
        temperature = float(temperature)
        start = time.perf_counter()
        table = self.errors(
            images,
            draws=draws,
            seed=seed,
            levels=levels,
            weighting=weighting,
            loss=loss,
            streams=streams,
            progress=progress,
        )
        decided = decide_table(table, decision=decision, temperature=temperature)
        return Classification(
            labels=decided.labels,
            probabilities=decided.probabilities,
            errors=decided.mean_errors,
            evaluations=table.evaluations,
            votes=decided.votes,
            class_names=self.model.class_names,
            seconds=time.perf_counter() - start,
            provenance={
                "method": method,
                "rule": rule,
                "decision": decision,
                "temperature": temperature,
                "seed": table.seed,
                "plan": table.plan,
                "model": table.model,
                "sha256": table.identity,
                "backend": self.network.backend,
                "device": self.network.device,
                "precision": self.network.precision,
                "fastdc": table.version,
            },
            table=table,
        )

    def _plan_config(
        self, draws: int | None, levels: tuple[float, float] | str | None, weighting: str | None, loss: str | None
    ) -> PlanConfig:
        defaults = self.model.defaults
        return PlanConfig(
            draws=defaults.draws if draws is None else draws,
            levels=defaults.levels if levels is None else _band(levels),
            weighting=defaults.weighting if weighting is None else weighting,
            loss=defaults.loss if loss is None else loss,
        )


def load(
    model: str | os.PathLike[str] | Bundle,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch: int | None = None,
    threads: int | None = None,
) -> DiffusionClassifier:
    """Loads a model and opens its network.

    Args:
        model: Name of a shipped model ("digits", "digits-mlp"), a bundle folder, or a loaded bundle.
        backend: "auto", "onnx" or "torch".
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "float32", "float16" or "bfloat16".
        batch: Largest number of network evaluations in a step; default 128.
        threads: CPU threads; default: the CPUs this process may use.

    Raises:
        BundleError: No such model, or a bundle that is corrupt, hostile or too new.
        MissingDependencyError: The backend's package is not installed.
        BackendError: The backend has no such device or precision.
        InputError: An option is out of range.
    """
    options = NetworkOptions(device=device, precision=precision, batch=batch, threads=threads)
    bundle = model if isinstance(model, Bundle) else load_bundle(find_model(model))
    if threads is not None:
        set_num_threads(threads)
    return DiffusionClassifier(bundle.model, open_network(bundle, backend, options))


def shipped_models() -> tuple[str, ...]:
    """Names of the models that come with fastdc."""
    return tuple(sorted(path.name for path in _SHIPPED.iterdir() if (path / "fastdc.json").is_file()))


def find_model(model: str | os.PathLike[str]) -> Path:
    """The folder of a shipped model's name, or the given folder. A folder needs a separator or must not be a name.

    Raises:
        BundleError: Neither.
    """
    name = os.fspath(model)
    if name in shipped_models():
        return _SHIPPED / name
    path = Path(name)
    if not path.exists():
        raise BundleError(f"no model {name!r}: expected a bundle folder or one of {', '.join(shipped_models())}")
    return path


def _band(levels: tuple[float, float] | str) -> tuple[float, float] | None:
    """The band of a plan: a pair, or None for "all"."""
    if not isinstance(levels, str):
        return levels
    if levels != "all":
        raise InputError(f'levels must be (low, high) or "all", got {levels!r}')
    return None


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed must be a whole number in [0, 2^64), got {seed!r}")
    return int(seed)
