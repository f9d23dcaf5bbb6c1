"""Samplers against worlds whose denoiser is known: their order, their moments, and every kind of network."""

import itertools
from functools import partial

import numpy as np
import pytest

from fastdc import DiffusionClassifier
from fastdc.diffusion import AbstractSchedule, EDMSchedule, FlowSchedule
from fastdc.sampling import SamplingRun, Trajectory, noise_of, sampler_of, walk
from fastdc.support import Float64
from helpers.ode_worlds import SPREAD, WORLD, exact, world_as
from helpers.parameterizations import PAIRS
from helpers.worlds import SHAPE


def walked(clf: DiffusionClassifier, path: Trajectory, sampler: str, x: Float64, *, backwards: bool = False) -> Float64:
    """x, at the trajectory's first level, brought to its last one under class 1; or the other way."""
    how = sampler_of(sampler, straight=isinstance(clf.model.schedule, FlowSchedule))
    run = SamplingRun(clf, path, images=len(x), evaluations=1, cells=1, clip=False)
    denoise = partial(run.denoise, conditions=np.ones(len(x), np.int32), guidance=0.0)
    return walk(x, path.backwards() if backwards else path, how, denoise, np.arange(len(x)), seed=3)


def errors_of(clf: DiffusionClassifier, sampler: str, *, backwards: bool = False) -> list[float]:
    """The largest error after 32, 64 and 128 steps between fixed levels."""
    found = []
    for steps in (32, 64, 128):
        path = Trajectory.of(clf.model.schedule, steps, ratio=2.0, spacing="karras", invertible=True)
        start, end = path.points[:: -len(path) if backwards else len(path)]
        x = start.alpha * WORLD.means[[1] * 4] + start.sigma * noise_of(np.arange(4), 0, SHAPE, seed=0)
        found.append(float(np.abs(walked(clf, path, sampler, x, backwards=backwards) - exact(x, start, end)).max()))
    return found


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("schedule", [EDMSchedule(0.05, 5.0), FlowSchedule()])
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("euler", 1), ("heun", 2)])
def test_half_the_step_leaves_a_half_or_a_quarter_of_the_error(
    schedule: AbstractSchedule, sampler: str, order: int, backwards: bool
) -> None:
    clf = world_as("sample" if isinstance(schedule, EDMSchedule) else "flow", schedule)
    errors = errors_of(clf, sampler, backwards=backwards)
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.25), errors


@pytest.mark.parametrize(("kind", "schedule"), PAIRS)
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_every_kind_of_network_takes_the_same_path(kind: str, schedule: AbstractSchedule, sampler: str) -> None:
    """From the ratio 2 to the lowest level, against the exact end."""
    clf = world_as(kind, schedule)
    path = Trajectory.of(schedule, 100, ratio=2.0, invertible=True)
    start, end = path.points[0], path.points[-1]
    x = start.alpha * WORLD.means[[1] * 4] + start.sigma * noise_of(np.arange(4), 0, SHAPE, seed=0)
    np.testing.assert_allclose(
        walked(clf, path, sampler, x), exact(x, start, end), atol=0.03 if sampler == "ddim" else 0.003
    )


def ancestral_deviation(path: Trajectory) -> float:
    """The deviation of a pixel after ancestral steps: D and the steps are affine, so its variance has a recursion."""
    variance = path.points[0].sigma ** 2
    for span in path:
        s, t = span.end.sigma, span.start.sigma
        kept, pull = (s / t) ** 2, SPREAD**2 / (SPREAD**2 + t**2)  # alpha = 1
        variance = (kept + (1 - kept) * pull) ** 2 * variance + s**2 * (1 - kept)
    return float(np.sqrt(variance))


def test_ancestral_sampling_has_the_moments_of_the_class() -> None:
    """2000 images of 16 pixels: the mean of a pixel within 5 standard errors; the deviation of all within 1 %, which is
    2.5 of its own. The steps' own deviation tends to the class's."""
    clf = world_as("sample", EDMSchedule(0.02, 20.0))
    path = Trajectory.of(clf.model.schedule, 25)
    x = path.points[0].sigma * noise_of(np.arange(2000), 0, SHAPE, seed=1)
    made = walked(clf, path, "ddpm", x)
    deviations = made - WORLD.means[1]
    assert np.abs(deviations.mean(axis=0)).max() < 5 * SPREAD / np.sqrt(len(x))
    assert deviations.std() == pytest.approx(ancestral_deviation(path), rel=0.01)
    assert ancestral_deviation(Trajectory.of(clf.model.schedule, 5000)) == pytest.approx(SPREAD, rel=0.005)


def test_ancestral_noise_is_that_of_the_posterior() -> None:
    """One step from x_t with x0 known: mean and variance of q(x_s | x_t, x0), arXiv 2006.11239, equation 7."""
    path = Trajectory.of(EDMSchedule(0.1, 1.0), 2, spacing="uniform")
    span = next(iter(path))
    s, t = span.end.sigma, span.start.sigma
    x0, x_t = np.full((1, *SHAPE), 0.3), np.full((1, *SHAPE), 1.1)
    step = sampler_of("ddpm").step
    mean = step(x_t, span, lambda *_: x0, lambda: np.zeros_like(x0))
    one = step(x_t, span, lambda *_: x0, lambda: np.ones_like(x0))
    np.testing.assert_allclose(mean, (s**2 * x_t + (t**2 - s**2) * x0) / t**2)
    np.testing.assert_allclose(one - mean, np.sqrt(s**2 * (t**2 - s**2)) / t)


def test_the_published_program_ends_with_the_mean_of_its_last_step_taken_again() -> None:
    path = Trajectory.of(EDMSchedule(0.1, 1.0), 3, compat="favero")
    spans = list(path)
    assert len(spans) == len(path) == 4
    assert (spans[3].start, spans[3].end) == (spans[2].start, spans[2].end)
    assert [span.mean for span in spans] == [False, False, False, True]
    assert spans[3].end.sigma == pytest.approx(0.1)
