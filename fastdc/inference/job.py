"""A job: plan, rule and networks, checked and ready to run; shared by ``classify``, certification and sessions."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from fastdc.backends import AbstractEncoder, AbstractNetwork
from fastdc.bundle import Model
from fastdc.diffusion import MEAN, Plan, PlanConfig, make_plan
from fastdc.engine import (
    IN_FLIGHT,
    WORTH,
    Finished,
    Foresight,
    Lane,
    LookAhead,
    NextRequest,
    OtherErrors,
    Pool,
    Request,
    Runner,
    Scheduler,
    Turn,
    device_name,
    room_of,
    steps_of,
)
from fastdc.inference.denoisers import OtherDenoiser
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.images import MappedImages
from fastdc.inference.options import Options
from fastdc.inference.plan_options import as_the_rule_needs, check_used, plan_config
from fastdc.inference.prior import Prior
from fastdc.inference.results import OnProgress, Progress
from fastdc.rules import AbstractRule, Calibrated, describe, make_rule
from fastdc.support import Float32, InputError, Int32, Int64, __version__, checks

_ENCODED = 16  # images whose latents are made at a time

_DENOISED_BYTES = 2**28  # the most memory of images denoised under each class

Rows: TypeAlias = list[tuple[Int32, Float32] | None]
"""Counts and values of each image; None while it is not finished."""


@dataclass(frozen=True, eq=False)
class Job:
    """A plan and a rule on the networks that run them.

    Attributes:
        model: The model.
        networks: The model's network on each device, one or more.
        plan: The draws.
        rule: Rule that drops classes.
        seed: Philox key.
        encoder: Encoder that makes latents of images; None if the model works on images.
        denoiser: The other model that makes h(x_tau), for methods that need it; None if this one does.
        others: Takes further errors of every cell of a full run; None: there are none.
        prior: Prior of the classes, which the rule knows; None: a uniform one.
    """

    model: Model
    networks: tuple[AbstractNetwork, ...]
    plan: Plan = field(repr=False)
    rule: AbstractRule
    seed: int
    encoder: AbstractEncoder | None = None
    denoiser: OtherDenoiser | None = None
    others: OtherErrors | None = None
    prior: Prior | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        networks: Sequence[AbstractNetwork],
        options: Options,
        encoder: AbstractEncoder | None = None,
    ) -> "Job":
        """A job from a user's options.

        Raises:
            InputError: An option cannot be used.
        """
        if options.self_calibrate is not None:
            raise InputError("self_calibrate is for runs over images to classify: expected none here")
        seed = checks.seed(options.seed)
        config = plan_config(model, options.plan)
        prior = Prior.of(options, model, config)
        rule = _rule_of(model, options, config, prior)
        config = as_the_rule_needs(config, rule, options.plan)
        check_used(config, options.plan)
        rule.looks(config.draws)
        if config.antithetic and any(one.assumes_independence for one in (rule, getattr(rule, "inner", rule))):
            raise InputError(f"rule {rule.name} needs independent draws for its promise: expected no antithetic pairs")
        plan = make_plan(model.schedule, model.parameterization, config)
        denoiser = OtherDenoiser.of(options.denoiser, model, networks, config)
        return cls(model, tuple(networks), plan, rule, seed, encoder, denoiser, prior=prior)

    def but(self, *, rule: AbstractRule | None = None, seed: int | None = None) -> "Job":
        """The same plan under another rule or seed.

        Raises:
            InputError: The rule does not fit the plan, or the seed cannot be used.
        """
        if rule is not None:
            rule.looks(self.plan.draws)
        return replace(self, rule=rule or self.rule, seed=self.seed if seed is None else checks.seed(seed))

    def runner(
        self, requests: Iterable[Request] = (), *, total: int = 0, capacity: int = IN_FLIGHT, latency: bool = False
    ) -> Runner:
        """A runner of requests on the job's devices.

        Args:
            requests: Read as there is room; more may be submitted.
            total: Number of these requests.
            capacity: Requests in flight on a device.
            latency: Whether to evaluate errors ahead of the decisions (``engine.look_ahead``) if that pays.
        """
        lane = partial(self._lane, total=total, capacity=capacity, latency=latency)
        return Runner(self.networks, lane, requests, total)

    def _lane(
        self, network: AbstractNetwork, next_request: NextRequest, *, total: int, capacity: int, latency: bool
    ) -> Lane:
        """The lane of one device."""
        if len(self.networks) > 1 and total:
            capacity = min(capacity, room_of(network, len(self.networks), total))
        pool, scheduler = self.scheduler(network, next_request, capacity, latency=latency)
        return Lane(network, pool, scheduler, capacity)

    def scheduler(
        self, network: AbstractNetwork, next_request: NextRequest, capacity: int, *, latency: bool = False
    ) -> tuple[Pool, Scheduler]:
        """The arrays and the scheduler of one device; see :meth:`runner`."""
        classes, shape, draws = len(self.model.conditions), self.model.sample_shape, self.plan.draws
        denoising = self.denoising
        if len(denoising) > 1:
            capacity = max(1, min(capacity, _DENOISED_BYTES // (4 * math.prod(shape) * len(denoising))))
        if latency:
            capacity = LookAhead.capacity_for(capacity, classes, draws)
        pool = Pool.of(
            network,
            shape,
            self.plan,
            seed=self.seed,
            n_classes=classes,
            capacity=capacity,
            denoising=denoising,
            others=self.others,
        )
        options: dict[str, Any] = {
            "put": pool.put,
            "next_request": next_request,
            "capacity": capacity,
            "denoising": denoising,
            "denoised": pool.denoised,
        }
        rule = self.rule if self.prior is None else self.prior.rule(self.rule)
        if latency:
            steps = steps_of(network, pool, draws=draws)
            if Foresight(rule.looks(draws), classes, steps).gain >= WORTH:
                return pool, LookAhead(rule, draws, classes, steps=steps, **options)
        return pool, Scheduler(rule, draws, classes, **options)

    @property
    def denoising(self) -> tuple[int, ...]:
        """The classes that a noisy image is denoised under, as the network numbers them.

        "No class"; all classes, whose mean is taken, if the user asked for it; none if the method does not denoise or
        another model does.
        """
        if self.plan.denoising_row is None:
            return ()
        null = self.model.null_class
        return (
            tuple(range(len(self.model.conditions))) if self.plan.config.denoiser == MEAN or null is None else (null,)
        )

    @property
    def denoisings(self) -> int:
        """The evaluations that denoising an image takes, by whichever network."""
        return len(self.denoising) + (self.denoiser is not None)

    @property
    def most(self) -> int:
        """The most evaluations of the job's own networks that an image takes: those of a full run."""
        return self.competing * self.plan.draws + len(self.denoising)

    @property
    def competing(self) -> int:
        """Number of conditions that compete: all but those of prior 0."""
        allowed = None if self.prior is None else self.prior.allowed
        return len(self.model.conditions) if allowed is None else len(allowed)

    def run(
        self,
        x: Float32 | MappedImages,
        streams: Int64,
        *,
        rows: Int64 | None = None,
        candidates: Sequence[Int32] | None = None,
        progress: OnProgress | None = None,
    ) -> Iterator[list[Finished]]:
        """Runs over images when it is its turn; yields the requests that finished, keyed by the image's index.

        Args:
            x: float32 (n, c, h, w), images in the model's value range; taken and encoded as they are admitted.
            streams: int64 (n,).
            rows: Indices of the images to run over, int64; None: all.
            candidates: Candidate conditions of each image, increasing; None: all.
            progress: Called after every step.
        """
        rows = np.arange(len(x)) if rows is None else rows
        return self.turn().run(self._run(x, streams, rows, candidates, progress))

    def turn(self) -> Turn:
        """The turn of a run that encodes images on its way."""
        return Turn((*self.networks, *(() if self.denoiser is None else self.denoiser.networks)))

    def _run(
        self,
        x: Float32 | MappedImages,
        streams: Int64,
        rows: Int64,
        candidates: Sequence[Int32] | None,
        progress: OnProgress | None,
    ) -> Generator[list[Finished], None, None]:
        n = len(rows)
        step = self.together
        samples = (sample for i in range(0, n, step) for sample in self.encode(x[rows[i : i + step]], held=True))
        requests = (
            Request(i, sample, int(streams[i]), None if candidates is None else candidates[i])
            for i, sample in zip(rows.tolist(), samples, strict=True)
        )
        runner = self.runner(requests, total=n, capacity=min(n, IN_FLIGHT))
        done = 0
        fresh: list[Finished] = []  # finished and not yielded
        with closing(runner.evaluate(held=True)) as steps:
            try:
                for _ in steps:
                    fresh = runner.finished()
                    done += len(fresh)
                    if progress is not None:
                        ahead = (n - runner.admitted) * self.most
                        progress(Progress(done, n, runner.evaluated, runner.at_most + ahead))
                    given, fresh = fresh, []
                    yield given
            except KeyboardInterrupt:
                steps.close()  # waits for the steps in flight
                yield [*fresh, *runner.finished()]
                raise

    def table(self, x: Float32 | MappedImages, streams: Int64, progress: OnProgress | None = None) -> ErrorTable:
        """The errors of images, as :meth:`run` takes them, evaluated to the end."""
        if self.prior is not None:
            raise InputError("prior changes decisions and no errors: expected none here")
        rows: Rows = [None] * len(x)
        for finished in self.run(x, streams, progress=progress):
            for done in finished:
                rows[done.key] = (done.counts, done.values)
        return self.table_of(rows, streams)

    def tables(
        self, x: Float32, streams: Int64, others: Sequence[Plan], progress: OnProgress | None = None
    ) -> tuple[ErrorTable, ...]:
        """The errors under this plan and under others that show the network the same inputs, by one evaluation each.

        Args:
            x: float32 (n, c, h, w), as for :meth:`run`, of a full run.
            streams: int64 (n,).
            others: The other plans: they differ in weighting, loss or its threshold only.
            progress: Called after every step.

        Returns:
            The table of this plan, then that of each other plan.

        Raises:
            InputError: A plan shows the network other inputs, or denoises images first.
        """
        more = OtherErrors(self.plan, others, images=len(x), n_classes=len(self.model.conditions))
        own = replace(self, others=more).table(x, streams, progress)
        counts, one_by_one = own.counts, zip(more.plans, more.errors, strict=True)
        return own, *(
            replace(self, plan=plan).table_of(list(zip(counts, errors.reshape(len(x), -1), strict=True)), streams)
            for plan, errors in one_by_one
        )

    def table_of(self, rows: Sequence[tuple[Int32, Float32] | None], streams: Int64) -> ErrorTable:
        """The table of finished images."""
        finished = [row for row in rows if row is not None]
        return ErrorTable.from_rows(self.model, self.plan, streams, self.seed, finished, rule=self.rule.name)

    @property
    def promised(self) -> float | None:
        """Share of answers that agree with those of the full run, as the race's calibration promises; None: no promise.

        With fewer draws than those calibrated, the remaining classes may rank differently; a smaller limit drops more;
        a prior changes the answers.
        """
        config = self.plan.config
        found = self.model.calibration_for(config)
        if not isinstance(self.rule, Calibrated) or found is None or self.prior is not None:
            return None
        if found.draws != self.plan.draws or found.limit > self.rule.limit:
            return None
        return 1 - found.delta

    @property
    def together(self) -> int:
        """Number of images to encode in a call, so that samples are made only when there is room for them."""
        return _ENCODED if self.denoiser is None else self.denoiser.room

    def encode(self, x: Float32, *, held: bool = False) -> Float32:
        """The samples of images (n, c, h, w) that requests take.

        Args:
            x: float32 (n, c, h, w), images in the model's value range.
            held: Whether the caller has the :meth:`turn`.

        Returns:
            float32 ``(n, *sample_shape)``: latents, transformed images, the images, or what another model makes
            of them: denoised images, or ``(n, 2, *sample_shape)``, the images and their targets.
        """
        if self.denoiser is not None:
            denoised = self.denoiser(x, held=held)
            return self.model.samples(denoised if self.plan.method.replaces else np.stack([x, denoised], axis=1))
        return self.model.samples(x) if self.encoder is None else self.encoder.encode(x)

    def describe(self) -> dict[str, Any]:
        """Everything that reproduces a run, as plain values."""
        network = self.networks[0]
        other = {} if self.denoiser is None else {"denoiser": self.denoiser.describe()}
        return {
            "method": self.plan.config.method,
            "rule": describe(self.rule),
            "seed": self.seed,
            "plan": self.plan.config.to_dict(),
            "model": self.model.name,
            "sha256": self.model.identity,
            "backend": network.backend,
            "device": device_name(self.networks),
            "precision": network.precision,
            **other,
            **({} if self.prior is None else {"prior": self.prior.describe()}),
            "fastdc": __version__,
        }


# What a bound on differences of errors does not depend on: where in the band draws lie, and how their noise is made.
_NOT_IN_BOUND = ("first", "order", "order_seed", "antithetic")


def _rule_of(model: Model, options: Options, config: PlanConfig, prior: Prior | None) -> AbstractRule:
    """The rule that a user asks for, with what the model's calibration knows about the plan.

    Raises:
        InputError: The rule cannot be used, or rule "calibrated" is asked for at draws that it was not calibrated for.
    """
    given = {} if options.rule_options is None else options.rule_options
    if prior is not None and options.rule == Calibrated.name and "limit" not in given:
        raise InputError(
            "rule calibrated has no promise under a prior: take rule race, which then is paired tests, or with "
            "self_calibrate the race that this run calibrates"
        )
    calibration = model.calibration_for(config) or model.calibration
    fits = calibration is not None and calibration.fits(config)
    bounded = calibration is not None and calibration.misfit(config, but=_NOT_IN_BOUND) is None
    rule = make_rule(
        options.rule,
        given,
        n_classes=len(model.conditions),
        calibrated=calibration.rule if calibration is not None and fits and prior is None else None,
        bound=calibration.bound if calibration is not None and bounded else None,
        misfit=None if calibration is None else calibration.misfit(config),
    )
    draws = options.draws if options.draws is not None else rule.draws
    own = options.rule == Calibrated.name and "limit" not in given  # the model's, as the user believes
    if own and calibration is not None and draws != calibration.draws:
        raise InputError(
            f"rule calibrated keeps its promise at the {calibration.draws} draws that it was calibrated for, got "
            f"{draws}: calibrate for {draws} draws, or take rule race, which promises nothing there"
        )
    return rule
