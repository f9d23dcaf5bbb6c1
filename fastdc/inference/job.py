"""A job: images, plan and rule, checked and ready to run: what ``classify``, ``errors`` and a session share."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from fastdc.backends import AbstractEncoder, AbstractNetwork
from fastdc.bundle import Model
from fastdc.diffusion import LevelWeights, Plan, PlanConfig, make_plan, method_of
from fastdc.engine import (
    IN_FLIGHT,
    WORTH,
    AbstractRunner,
    Alone,
    Finished,
    Foresight,
    Lane,
    LookAhead,
    Request,
    Run,
    Scheduler,
    Spread,
    networks_of,
    room_of,
    steps_of,
)
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.results import Classification, OnProgress, Progress
from fastdc.rules import AbstractRule, describe, make_rule
from fastdc.support import InputError, __version__, checks

Candidates = Callable[[npt.NDArray[np.float32]], Any]
"""Given images (n, c, h, w) in [0, 1], the candidate classes of each: a mask (n, K), or n lists of class indices."""

# The band of levels above an image's noise where a model says nothing better, as multiples of that noise.
_ABOVE_NOISE, _FAR_ABOVE_NOISE = 1.05, 4.0

_ENCODED = 16  # images at a time, so that latents are made as there is room and not before

_DENOISED_BYTES = 2**28  # of images denoised under each class, at most

Rows = list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None]
"""Counts and values of each image; None while it is not finished."""


class PlanOptions(TypedDict, total=False):
    """Which draws; what is not given is the model's default. See ``plan.PlanConfig``.

    method and sigma are for noisy images: sigma is the standard deviation of their noise in pixels in [0, 1].
    """

    draws: int | None
    levels: tuple[float, float] | str | None
    weighting: str | None
    loss: str | None
    first: Sequence[float] | None
    order: str | None
    order_seed: int
    antithetic: bool
    level_weights: LevelWeights | None
    method: str
    sigma: float


def plan_config(model: Model, options: PlanOptions) -> PlanConfig:
    """The configuration of a plan: the model's defaults, with what a user gave in their place.

    Raises:
        InputError: An option is unknown or out of range.
    """
    defaults = model.defaults
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    unknown = set(given) - set(PlanOptions.__annotations__)
    if unknown:
        raise InputError(f"there is no option {min(unknown)!r}")
    sigma = given.pop("sigma", 0.0)
    if not checks.is_number(sigma) or not 0 <= sigma < math.inf:
        raise InputError(f"sigma must be a standard deviation in pixels in [0, 1], from 0, got {sigma!r:.80}")
    given["noise"] = model.noise_ratio(sigma)
    if model.latent_shape is not None and given.get("method", "dc") != "dc":
        raise InputError(f"method {given['method']} needs a model of images: noise is not Gaussian in latents, use dc")
    if "levels" in given:
        given["levels"] = _band(given["levels"])
        given.setdefault("first", ())  # chosen for the default band
    elif given["noise"] or given.get("method", "dc") != "dc":
        _noisy_band(model, given)
    elif defaults.levels is not None:
        given["levels"] = defaults.levels
    for name in ("draws", "weighting", "loss", "first"):
        given.setdefault(name, getattr(defaults, name))
    return PlanConfig(**given)


def _noisy_band(model: Model, given: dict[str, Any]) -> None:
    """Levels for noisy images: those that the model was calibrated at, else a band above the noise."""
    noise = given["noise"]
    method = given.setdefault("method", "dc")
    for calibration in model.noised_calibrations:
        if calibration.noised == (method, noise):
            for name in ("levels", "first", "weighting"):
                if calibration.plan.get(name) is not None:
                    given.setdefault(name, calibration.plan[name])
            return
    low, high = model.defaults.levels or (0.0, 0.0)
    if isinstance(method, str) and method_of(method).above:
        low = max(low, _ABOVE_NOISE * noise)
    if low:
        given["levels"] = (low, max(high, _FAR_ABOVE_NOISE * noise))
    given.setdefault("first", ())


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be run.

    Attributes:
        model: The model.
        network: Runs it.
        plan: The draws.
        rule: When to drop classes.
        seed: Philox key.
        encoder: Makes latents of images, for a model that works on latents.
    """

    model: Model
    network: AbstractNetwork
    plan: Plan = field(repr=False)
    rule: AbstractRule
    seed: int
    encoder: AbstractEncoder | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        network: AbstractNetwork,
        rule: str | AbstractRule,
        rule_options: dict[str, Any] | None,
        seed: Any,
        options: PlanOptions,
        encoder: AbstractEncoder | None = None,
    ) -> "Job":
        """A job from what a user gave.

        Raises:
            InputError: Any of it cannot be used.
        """
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= checks.MAX_SEED:
            raise InputError(f"seed must be a whole number in [0, 2^64), got {seed!r}")
        config = plan_config(model, options)
        calibration = model.calibration_for(config) or model.calibration
        made = make_rule(
            rule,
            dict(rule_options or {}),
            n_classes=len(model.conditions),
            calibrated=calibration.rule if calibration is not None and calibration.fits(config) else None,
            bound=None if calibration is None else calibration.bound,
        )
        config = _as_the_rule_needs(config, made, options)
        made.looks(config.draws)
        if config.antithetic and any(rule.assumes_independence for rule in (made, getattr(made, "inner", made))):
            raise InputError(f"rule {made.name} needs independent draws for its promise: expected no antithetic pairs")
        return cls(model, network, make_plan(model.schedule, model.parameterization, config), made, int(seed), encoder)

    def runner(
        self, requests: Iterable[Request] = (), *, total: int = 0, capacity: int = IN_FLIGHT, latency: bool = False
    ) -> AbstractRunner:
        """What runs requests, on as many devices as the network is on.

        Args:
            requests: Read as there is room; more may be submitted.
            total: How many these are.
            capacity: Requests in flight on a device.
            latency: Whether errors are evaluated ahead of the decisions (``latency``) where that pays.
        """
        networks = networks_of(self.network)
        if len(networks) == 1:
            return Alone(Lane(self.network, *self.scheduler(requests, capacity, latency=latency), capacity))
        lanes = []
        for network in networks:
            room = min(capacity, room_of(network, len(networks), total)) if total else capacity
            lanes.append(Lane(network, *self.scheduler((), room, network=network, latency=latency), room))
        return Spread(lanes, requests, total)

    def scheduler(
        self,
        requests: Iterable[Request],
        capacity: int,
        *,
        network: AbstractNetwork | None = None,
        latency: bool = False,
    ) -> tuple[Run, Scheduler]:
        """A run on one device, by default the job's, and its scheduler; see :meth:`runner`."""
        network = self.network if network is None else network
        classes, shape, draws = len(self.model.conditions), self.model.sample_shape, self.plan.draws
        denoising = self.denoising
        if len(denoising) > 1:
            capacity = max(1, min(capacity, _DENOISED_BYTES // (4 * math.prod(shape) * len(denoising))))
        if latency:
            capacity = LookAhead.capacity_for(capacity, classes, draws)
        run = Run(
            network,
            shape,
            self.plan,
            seed=self.seed,
            n_classes=classes,
            capacity=capacity,
            denoising=denoising,
        )
        options: dict[str, Any] = {
            "place": run.place,
            "requests": requests,
            "capacity": capacity,
            "denoising": denoising,
            "denoised": run.denoised,
        }
        if latency:
            steps = steps_of(network, run, draws=draws)
            if Foresight(self.rule.looks(draws), classes, steps).gain >= WORTH:
                return run, LookAhead(self.rule, draws, classes, steps=steps, **options)
        return run, Scheduler(self.rule, draws, classes, **options)

    @property
    def denoising(self) -> tuple[int, ...]:
        """The classes that a noisy image is denoised under, as the network calls them.

        "No class" where it knows that, else all, whose mean is taken; none where the method does not denoise.
        """
        if not self.plan.method.denoises:
            return ()
        null = self.model.null_class
        return tuple(range(len(self.model.conditions))) if null is None else (null,)

    def run(
        self,
        x: npt.NDArray[np.float32],
        streams: npt.NDArray[np.int64],
        *,
        candidates: Sequence[npt.NDArray[np.int32]] | None = None,
        progress: OnProgress | None = None,
    ) -> Iterator[list[Finished]]:
        """Runs over images; yields the requests that finished, keyed by the image's index, after every step.

        Args:
            x: float32 (n, c, h, w), images in the model's value range; encoded as they are admitted.
            streams: int64 (n,).
            candidates: Candidate conditions of each image, increasing; None: all.
            progress: Called after every step.
        """
        n = len(x)
        samples = (sample for i in range(0, n, _ENCODED) for sample in self.encode(x[i : i + _ENCODED]))
        requests = (
            Request(i, sample, int(streams[i]), None if candidates is None else candidates[i])
            for i, sample in enumerate(samples)
        )
        runner = self.runner(requests, total=n, capacity=min(n, IN_FLIGHT))
        done = 0
        fresh: list[Finished] = []  # finished and not yielded
        most = len(self.model.conditions) * self.plan.draws
        with closing(runner.evaluate()) as steps:
            try:
                for _ in steps:
                    fresh = runner.finished()
                    done += len(fresh)
                    if progress is not None:
                        ahead = (n - runner.admitted) * most
                        progress(Progress(done, n, runner.evaluated, runner.at_most + ahead))
                    given, fresh = fresh, []
                    yield given
            except KeyboardInterrupt:
                steps.close()  # waits for the steps in flight
                yield [*fresh, *runner.finished()]
                raise

    def encode(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the network works on, float32 (n, *sample_shape): latents of images, or the images themselves."""
        return x if self.encoder is None else self.encoder.encode(x)

    def describe(self) -> dict[str, Any]:
        """What reproduces a run, as plain values."""
        return {
            "method": self.plan.config.method,
            "rule": describe(self.rule),
            "seed": self.seed,
            "plan": self.plan.config.to_dict(),
            "model": self.model.name,
            "sha256": self.model.identity,
            "backend": self.network.backend,
            "device": self.network.device,
            "precision": self.network.precision,
            "fastdc": __version__,
        }

    def table(self, rows: Rows, streams: npt.NDArray[np.int64]) -> ErrorTable:
        """The table of finished images."""
        finished = [row for row in rows if row is not None]
        return ErrorTable.from_rows(self.model, self.plan, streams, self.seed, finished, rule=self.rule.name)


@dataclass(frozen=True, eq=False)
class Settings:
    """How images are run and decided.

    Attributes:
        job: Plan, rule and network.
        decision: One of ``decide.DECISIONS``.
        temperature: Of the posterior, positive.
    """

    job: Job
    decision: str
    temperature: float

    def decide(self, table: ErrorTable, indices: npt.NDArray[np.int64], *, seconds: float) -> Classification:
        """The result of a table whose rows are the images `indices`, with what reproduces it."""
        job = self.job
        provenance = {
            **job.describe(),
            "decision": self.decision,
            "temperature": self.temperature,
            "plan": table.plan,
            "fastdc": table.version,
        }
        return Classification.of_table(
            table,
            indices,
            decision=self.decision,
            temperature=self.temperature,
            seconds=seconds,
            provenance=provenance,
            class_names=job.model.class_names,
            class_of=job.model.class_of,
            denoising=len(job.denoising),
        )


def check_candidates(
    candidates: Any, unit_images: npt.NDArray[np.float32], model: Model
) -> list[npt.NDArray[np.int32]]:
    """The candidate classes of each image, or their prompts, int32 in increasing order.

    Args:
        candidates: A mask (n, K), n lists of class indices, or a callable that returns either for images in [0, 1].
        unit_images: float32 (n, c, h, w) in [0, 1].
        model: Has K classes.

    Raises:
        InputError: Wrong shape, type or class, or an image without a candidate.
    """
    given = candidates(unit_images) if callable(candidates) else candidates
    n, n_classes = len(unit_images), model.num_classes
    if isinstance(given, np.ndarray) and given.dtype == np.bool_:
        if given.shape != (n, n_classes):
            raise InputError(f"a mask of candidates must have shape ({n}, {n_classes}), got {given.shape}")
        lists: list[Any] = [np.flatnonzero(row) for row in given]
    else:
        try:
            lists = list(given)
        except TypeError:
            raise InputError(f"candidates must be a mask or a list of classes an image, got {given!r:.80}") from None
        if len(lists) != n:
            raise InputError(f"candidates must be a list of classes for each of {n} images, got {len(lists)}")
    result = []
    for i, classes in enumerate(lists):
        try:
            array = np.asarray(classes)
        except ValueError:  # lists of different lengths
            array = np.empty(0)
        if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
            got = " ".join(repr(classes).split())
            raise InputError(f"candidates of image {i} must be one class index or more, got {got:.80}")
        if array.min() < 0 or array.max() >= n_classes:
            raise InputError(f"candidates of image {i} must be in [0, {n_classes}), got {array.min()} to {array.max()}")
        chosen = np.flatnonzero(np.isin(model.class_of, array)) if model.class_of else np.unique(array)
        result.append(chosen.astype(np.int32))
    return result


def _as_the_rule_needs(config: PlanConfig, rule: AbstractRule, options: PlanOptions) -> PlanConfig:
    """The plan with the draws that the rule asks for, unless the user gave another number."""
    timesteps = rule.timesteps
    if timesteps is not None:
        given = [name for name in ("levels", "first", "order") if options.get(name) is not None]
        if given:
            raise InputError(f"rule {rule.name} brings its own timesteps: expected no {given[0]} beside it")
        config = replace(config, levels=None, first=(), timesteps=timesteps, draws=len(timesteps))
    wanted = rule.draws
    if wanted is not None and options.get("draws") is None:
        config = replace(config, draws=wanted)
    return config


def _band(levels: tuple[float, float] | str) -> tuple[float, float] | None:
    """The band of a plan: a pair, or None for "all"."""
    if not isinstance(levels, str):
        return levels
    if levels != "all":
        raise InputError(f'levels must be (low, high) or "all", got {levels!r}')
    return None
