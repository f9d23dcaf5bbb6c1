"""The levels of trajectories."""

import numpy as np
import pytest

from fastdc import InputError
from fastdc.diffusion import DiscreteSchedule, EDMSchedule, FlowSchedule, TableSchedule
from fastdc.sampling import Trajectory


def test_equal_steps_in_the_schedules_time() -> None:
    path = Trajectory.of(FlowSchedule(), 4, from_t=0.8)
    np.testing.assert_allclose([point.sigma for point in path.points], [0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-12)
    assert path.points[-1].alpha == 1
    assert path.points[-1].number is None
    assert [span.mean for span in path] == [False, False, False, True]


def test_levels_of_karras() -> None:
    """The formula of arXiv 2206.00364, equation 5, with the values of its table 1."""
    path = Trajectory.of(EDMSchedule(0.002, 80.0), 18)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose([point.sigma for point in path.points[:-1]], expected, rtol=1e-9)


@pytest.mark.parametrize("schedule", [EDMSchedule(), FlowSchedule(), DiscreteSchedule()])
def test_an_invertible_trajectory_ends_at_the_lowest_level(schedule: EDMSchedule | FlowSchedule) -> None:
    path = Trajectory.of(schedule, 10, ratio=1.0, invertible=True)
    lowest = schedule.levels([0.0])
    assert len(path) == 10
    assert path.points[0].ratio == pytest.approx(1.0, rel=0.01)
    assert path.points[-1].sigma == pytest.approx(lowest.sigma[0])
    up = path.backwards()
    assert [(span.end, span.start) for span in up[::-1]] == [(span.start, span.end) for span in path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 4, "from_t": 0.0}, "from_t"),
        ({"steps": 4, "from_t": 0.5, "ratio": 1.0}, "got both"),
        ({"steps": 4, "ratio": -1.0}, "ratio"),
        ({"steps": 4, "ratio": 10.0}, "ratio must be at most 9.94987, the schedule's highest, got 10.0"),
        ({"steps": 4, "spacing": "log"}, "spacing"),
        ({"steps": 4, "compat": "rdc"}, "compat"),
        ({"steps": 200}, "fewer levels"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trajectory.of(TableSchedule(tuple(np.linspace(0.99, 0.01, 100))), **options)  # type: ignore[arg-type]
