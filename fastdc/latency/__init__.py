"""Low latency for single images: what steps cost (``steps``), and errors ahead of the decisions (``ahead``)."""

from fastdc.latency.ahead import WORTH, Foresight, LookAhead
from fastdc.latency.steps import StepTable, measure_steps, steps_of

__all__ = ["WORTH", "Foresight", "LookAhead", "StepTable", "measure_steps", "steps_of"]
