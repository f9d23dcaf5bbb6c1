"""Cells in, errors out, every slot of every device busy."""

from fastdc.engine.arrays import Pool
from fastdc.engine.denoiser import Denoiser
from fastdc.engine.devices import check_replicas, device_name, devices_of, room_of
from fastdc.engine.look_ahead import WORTH, Foresight, LookAhead
from fastdc.engine.loop import evaluate
from fastdc.engine.other_errors import OtherErrors
from fastdc.engine.pixel_maps import PixelMaps
from fastdc.engine.requests import IN_FLIGHT, Cells, Finished, Request, Work
from fastdc.engine.runner import Lane, NextRequest, Runner
from fastdc.engine.scheduler import Scheduler
from fastdc.engine.step_times import StepTable, measure_steps, steps_of
from fastdc.engine.turns import STUCK, Turn, holds

__all__ = [
    "IN_FLIGHT",
    "STUCK",
    "WORTH",
    "Cells",
    "Denoiser",
    "Finished",
    "Foresight",
    "Lane",
    "LookAhead",
    "NextRequest",
    "OtherErrors",
    "PixelMaps",
    "Pool",
    "Request",
    "Runner",
    "Scheduler",
    "StepTable",
    "Turn",
    "Work",
    "check_replicas",
    "device_name",
    "devices_of",
    "evaluate",
    "holds",
    "measure_steps",
    "room_of",
    "steps_of",
]
