"""Runs of the engine on the Gaussian world's denoiser, with a scheduler that notes what it is told."""

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastdc import ErrorTable
from fastdc.backends.function import NetworkFunction
from fastdc.diffusion.plan import PlanConfig, make_plan
from fastdc.engine import IN_FLIGHT, Finished, Pool, Request, Scheduler, Work
from fastdc.inference.images import streams_of, to_model_range
from fastdc.rules.full import Full
from fastdc.rules.protocol import AbstractRule
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.sources import Source
from helpers.worlds import SHAPE, Float32, ManySlots, classifier, denoiser, gaussian, unit_images

WORLD = gaussian(3)
MODEL = WORLD.model


class Recorder(Scheduler):
    """A scheduler that records what goes through it, and refuses to be asked from another thread."""

    def __init__(self, *args: Any, requests: Iterable[Request] = (), **options: Any) -> None:
        self.source = Source(requests)
        super().__init__(*args, next_request=self.source, **options)
        self.rooms: list[int] = []
        self.waited = 0
        self.observed: list[tuple[int, int, int]] = []
        self.errors: list[float] = []
        self.thread = threading.get_ident()

    def prepare(self) -> int:
        assert threading.get_ident() == self.thread
        return super().prepare()

    def propose(self, room: int) -> Work:
        assert threading.get_ident() == self.thread
        self.rooms.append(room)
        work = super().propose(room)
        self.waited += not len(work.cells) and self.flying > 0
        return work

    def observe(self, work: Work, errors: Float32) -> None:
        assert threading.get_ident() == self.thread
        assert errors.dtype == np.float32
        self.observed += [(self.key(place), k, j) for place, k, j in work.cells.tolist()]
        self.errors += errors.tolist()
        super().observe(work, errors)

    def pairs(self) -> dict[tuple[int, int, int], float]:
        assert len(set(self.observed)) == len(self.observed), "a cell was evaluated twice"
        return dict(zip(self.observed, self.errors, strict=True))


def prepared(
    network: ManySlots,
    n: int,
    draws: int,
    *,
    rule: AbstractRule | None = None,
    world: GaussianWorld = WORLD,
    capacity: int = IN_FLIGHT,
    kind: type[Recorder] = Recorder,
) -> tuple[Pool, Recorder]:
    """The arrays and the scheduler of a run over n images, to be handed to evaluate()."""
    model = world.model
    x = to_model_range(unit_images(n), model) if n else np.empty((0, *SHAPE), np.float32)
    streams = streams_of(x)
    plan = make_plan(world.schedule, model.parameterization, PlanConfig(draws=draws, weighting="edm"))
    pool = Pool.of(network, SHAPE, plan, seed=0, n_classes=model.num_classes, capacity=capacity)
    requests = (Request(i, x[i], int(streams[i])) for i in range(n))
    made = kind(
        rule or Full(), draws, model.num_classes, put=pool.put, requests=requests, capacity=min(capacity, IN_FLIGHT)
    )
    return pool, made


def network(*, batch: int = 128, slots: int = 1, function: NetworkFunction | None = None) -> ManySlots:
    return ManySlots(function or denoiser(WORLD), batch=batch, slots=slots)


def table(
    images: Float32, *, batch: int = 128, slots: int = 1, world: GaussianWorld = WORLD, **options: Any
) -> ErrorTable:
    return classifier(world, batch=batch, slots=slots).errors(images, **{"draws": 6, **options})


def counts_of(finished: list[Finished]) -> dict[int, list[int]]:
    return {one.key: one.counts.tolist() for one in finished}
