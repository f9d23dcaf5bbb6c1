"""How long a training takes: its number of steps from a time, and a time from its number of steps."""

import time
from collections.abc import Callable

_WARM_UP = 3  # steps that also pay for what happens once
_LONGEST = 10.0  # seconds of measurement
_MOST = 50  # steps of measurement
_TRAINING = 0.9  # share of the time that is not spent on validation and checkpoints

_SAID_AFTER = 20  # steps
_WORTH_SAYING = 60.0  # seconds


def steps_within(minutes: float, step: Callable[[], None], agreed: Callable[[int], int] = int) -> int:
    """The number of steps that a training of so many minutes has; takes some seconds.

    Args:
        minutes: The time.
        step: Does a step of the training.
        agreed: Makes of a number the one that all processes of the training have.
    """
    for _ in range(_WARM_UP):
        step()
    began, count = time.perf_counter(), 0
    while agreed(count < _MOST and time.perf_counter() - began < min(_LONGEST, 3 * minutes)):
        step()
        count += 1
    each = (time.perf_counter() - began) / max(1, count)
    return agreed(max(1, int(60 * _TRAINING * minutes / each)))


class Estimate:
    """Says once, soon after the start, how long the steps that are left will take.

    Args:
        left: Number of steps that are left.
    """

    def __init__(self, left: int) -> None:
        self._left, self._done, self._began = left, 0, 0.0

    def after_step(self) -> str | None:
        """A line, after the step at which it is known; None otherwise, and if it is not worth a line."""
        self._done += 1
        if self._done == _WARM_UP:
            self._began = time.perf_counter()
        if self._done != _SAID_AFTER:
            return None
        each = (time.perf_counter() - self._began) / (_SAID_AFTER - _WARM_UP)
        left = self._left - self._done
        return f"about {in_words(each * left)} for {left} steps" if each * left >= _WORTH_SAYING else None


def in_words(seconds: float) -> str:
    """A time in minutes, or in hours from two hours on."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
