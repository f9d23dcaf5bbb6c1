"""Rays meet solids where small steps along them first come inside, and leave at right angles to the surface."""

import numpy as np
import pytest

from fastdc.support import Float64, Mask
from fastdc.testing import solids

STEP = 2e-3


def inside(shape: str, points: Float64) -> Mask:
    """The solids from their definitions, points (..., 3)."""
    x, y, z = np.moveaxis(points, -1, 0)
    away = np.hypot(x, z)
    if shape == "sphere":
        found = x**2 + (y - 0.9) ** 2 + z**2 <= 0.9**2
    elif shape == "cube":
        found = (np.abs(x) <= 0.66) & (np.abs(z) <= 0.66) & (y >= 0) & (y <= 1.32)
    elif shape == "cylinder":
        found = (away <= 0.62) & (y >= 0) & (y <= 1.5)
    else:
        found = (y >= 0) & (away <= 0.82 * (1 - y / 1.75))
    return np.asarray(found)


def rays(count: int, seed: int) -> tuple[Float64, Float64]:
    """Rays downwards and sideways to points of a box around a solid, from a distance of 4."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3)) - (0.0, 1.0, 0.0)
    direction[:, 1] = -np.abs(direction[:, 1])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    aim = rng.uniform((-0.9, 0.05, -0.9), (0.9, 1.8, 0.9), (count, 3))
    return aim - 4 * direction, direction


@pytest.mark.parametrize("shape", solids.SHAPES)
def test_rays_meet_a_solid_where_they_come_inside(shape: str) -> None:
    origin, direction = rays(200, 1)
    distance, _ = solids.meet(shape, origin, direction)
    along = np.arange(0, 8, STEP)
    path = inside(shape, origin[:, None] + along[:, None] * direction[:, None])
    path &= (origin[:, None, 1] + along * direction[:, None, 1]) >= 1e-3  # the ground hides what lies below
    hit = path.any(axis=1)
    assert 60 < hit.sum() < 195
    first = along[path.argmax(axis=1)]
    assert np.isfinite(distance[hit]).all()
    assert (np.abs(distance - first)[hit] <= 1.01 * STEP).all()
    chord = path.sum(axis=1)  # a miss by less than a step cannot be seen
    assert not (np.isfinite(distance) & ~hit & (origin[:, 1] + distance * direction[:, 1] > 0.01) & (chord > 1)).any()


@pytest.mark.parametrize("shape", solids.SHAPES)
def test_normals_are_at_right_angles_to_the_surface(shape: str) -> None:
    """Two rays beside a ray meet the same plane, unless an edge lies between them."""
    origin, direction = rays(300, 2)
    distance, normal = solids.meet(shape, origin, direction)
    hit = np.isfinite(distance)
    np.testing.assert_allclose(np.linalg.norm(normal[hit], axis=1), 1, atol=1e-9)
    assert (np.sum(normal * direction, axis=1)[hit] < 0).all()
    at = origin + np.where(hit, distance, 0)[:, None] * direction
    steep = 0
    for axis in np.eye(3):
        beside, _ = solids.meet(shape, origin + 1e-5 * axis, direction)
        moved = origin + 1e-5 * axis + np.where(np.isfinite(beside), beside, 0)[:, None] * direction - at
        fine = hit & np.isfinite(beside) & (np.linalg.norm(moved, axis=1) < 1e-3)
        slope = np.abs(np.sum(moved * normal, axis=1))[fine] / np.linalg.norm(moved, axis=1)[fine]
        steep += (slope > 1e-2).sum()
    assert steep <= 3, "edges"


def test_rays_along_a_face_and_rays_away() -> None:
    """A ray along an axis of the cube has no infinite slab; a ray that leads away meets nothing."""
    origin, direction = np.array([[0.2, 5.0, 0.1], [0.7, 5.0, 0.0]]), np.array([[0.0, -1.0, 0.0]] * 2)
    distance, normal = solids.meet("cube", origin, direction)
    np.testing.assert_allclose(distance, [5 - 1.32, np.inf])
    np.testing.assert_array_equal(normal[0], (0, 1, 0))
    for shape in solids.SHAPES:
        assert np.isinf(solids.meet(shape, np.array([[0.0, 3.0, 0.0]]), np.array([[0.0, 1.0, 0.0]]))[0]).all()


def test_sizes_are_those_of_the_solids() -> None:
    for shape in solids.SHAPES:
        top = solids.height(shape)
        assert inside(shape, np.array([0, top - 1e-9, 0]))
        assert not inside(shape, np.array([0, top + 1e-6, 0]))
        assert 0.5 < solids.foot(shape) < 0.9
        assert solids.taper(shape) == (0.82 if shape == "cone" else 0)
