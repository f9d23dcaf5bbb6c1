"""Where rays meet a cone, a cube, a cylinder or a sphere, in closed form.

Every solid stands upright on the plane y = 0 at the origin, with y upwards. Its size is such that it fits about into a
circle of radius 1 when it is seen from a little above. All solids are convex.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from fastdc.support import Float64

Hit: TypeAlias = tuple[Float64, Float64]
"""Distances (n,), infinite where a ray misses, and outward normals (n, 3) of unit length where it meets the solid."""

SPHERE = 0.9  # radius
CUBE = 0.66  # half of an edge
CYLINDER = (0.62, 1.5)  # radius, height
CONE = (0.82, 1.75)  # radius of the foot, height


def meet(shape: str, origin: Float64, direction: Float64) -> Hit:
    """Where rays enter a solid; rays that start inside or behind it miss.

    Args:
        shape: One of :data:`SHAPES`.
        origin: Starts of the rays, float64 (n, 3).
        direction: Unit vectors, float64 (n, 3).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        distance, normal = _SOLIDS[shape](origin, direction)
    return np.where(distance > 1e-9, distance, np.inf), normal


def height(shape: str) -> float:
    """Height of a solid."""
    return {"cone": CONE[1], "cube": 2 * CUBE, "cylinder": CYLINDER[1], "sphere": 2 * SPHERE}[shape]


def taper(shape: str) -> float:
    """How much wider a solid is at its foot than at its top: a difference of radii."""
    return CONE[0] if shape == "cone" else 0.0


def foot(shape: str) -> float:
    """Radius of the circle on the ground that a solid casts its contact shadow around."""
    return {"cone": CONE[0], "cube": 1.15 * CUBE, "cylinder": CYLINDER[0], "sphere": 0.7 * SPHERE}[shape]


def _sphere(origin: Float64, direction: Float64) -> Hit:
    start = origin - (0.0, SPHERE, 0.0)
    half = np.sum(start * direction, axis=1)
    distance = -half - np.sqrt(half**2 - np.sum(start**2, axis=1) + SPHERE**2)  # NaN: missed
    return np.nan_to_num(distance, nan=np.inf), (start + distance[:, None] * direction) / SPHERE


def _cube(origin: Float64, direction: Float64) -> Hit:
    """The slab that a ray enters last, if it leaves none before."""
    start = origin - (0.0, CUBE, 0.0)
    along = direction == 0  # such a ray lies between two faces for ever, or never
    between = np.where(np.abs(start) <= CUBE, -np.inf, np.inf)
    near = np.where(along, between, (-np.sign(direction) * CUBE - start) / direction)
    far = np.where(along, np.inf, (np.sign(direction) * CUBE - start) / direction)
    axis = near.argmax(axis=1)
    normal = -np.sign(direction) * (np.arange(3) == axis[:, None])
    entry = near.max(axis=1)
    return np.where(entry <= far.min(axis=1), entry, np.inf), normal


def _cylinder(origin: Float64, direction: Float64) -> Hit:
    radius, top = CYLINDER
    a = direction[:, 0] ** 2 + direction[:, 2] ** 2
    b = origin[:, 0] * direction[:, 0] + origin[:, 2] * direction[:, 2]
    c = origin[:, 0] ** 2 + origin[:, 2] ** 2 - radius**2
    wall = (-b - np.sqrt(b**2 - a * c)) / a
    at = origin + wall[:, None] * direction
    wall = np.where((at[:, 1] >= 0) & (at[:, 1] <= top), wall, np.inf)
    lid = (top - origin[:, 1]) / direction[:, 1]
    on = origin + lid[:, None] * direction
    lid = np.where((direction[:, 1] < 0) & (on[:, 0] ** 2 + on[:, 2] ** 2 <= radius**2), lid, np.inf)
    sideways = np.stack([at[:, 0] / radius, np.zeros(len(at)), at[:, 2] / radius], axis=1)
    return np.minimum(wall, lid), np.where((lid <= wall)[:, None], (0.0, 1.0, 0.0), sideways)


def _cone(origin: Float64, direction: Float64) -> Hit:
    """The flank, x^2 + z^2 = slope^2 (top - y)^2; a ray that comes from above or the side meets it before the foot."""
    radius, top = CONE
    slope = (radius / top) ** 2
    start = origin - (0.0, top, 0.0)
    weights = np.array([1.0, -slope, 1.0])
    a = np.sum(weights * direction**2, axis=1)
    b = np.sum(weights * start * direction, axis=1)
    c = np.sum(weights * start**2, axis=1)
    root = np.sqrt(b**2 - a * c)
    both = np.stack([(-b - root) / a, (-b + root) / a])  # a < 0 swaps them
    y = start[:, 1] + both * direction[:, 1]
    distance = np.where((y <= 0) & (y >= -top) & (both > 1e-9), both, np.inf).min(axis=0)
    at = start + np.where(np.isfinite(distance), distance, 0.0)[:, None] * direction
    normal = weights * at
    return distance, normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


_SOLIDS: dict[str, Callable[[Float64, Float64], Hit]] = {
    "cone": _cone,
    "cube": _cube,
    "cylinder": _cylinder,
    "sphere": _sphere,
}
SHAPES = tuple(_SOLIDS)
