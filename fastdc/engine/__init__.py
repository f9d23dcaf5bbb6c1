"""Cells in, errors out, every slot of every device busy."""

from fastdc.engine.look_ahead import WORTH, Foresight, LookAhead
from fastdc.engine.loop import Run, evaluate
from fastdc.engine.runner import AbstractRunner, Alone, Lane, Spread, SpreadNetwork, devices_of, networks_of, room_of
from fastdc.engine.scheduler import IN_FLIGHT, Cells, Finished, Request, Scheduler, Work
from fastdc.engine.step_times import StepTable, measure_steps, steps_of

__all__ = [
    "IN_FLIGHT",
    "WORTH",
    "AbstractRunner",
    "Alone",
    "Cells",
    "Finished",
    "Foresight",
    "Lane",
    "LookAhead",
    "Request",
    "Run",
    "Scheduler",
    "Spread",
    "SpreadNetwork",
    "StepTable",
    "Work",
    "devices_of",
    "evaluate",
    "measure_steps",
    "networks_of",
    "room_of",
    "steps_of",
]
