"""Cells in, errors out, every slot of every device busy."""

from fastdc.engine.look_ahead import WORTH, Foresight, LookAhead
from fastdc.engine.step_times import StepTable, measure_steps, steps_of

__all__ = ["WORTH", "Foresight", "LookAhead", "StepTable", "measure_steps", "steps_of"]
