"""Scenes: coloured solids on a grey ground, rendered at any size from a description in plain numbers.

The camera looks down on a plane from far away, so that all rays are parallel. A point returns

    colour (ambient + sun max(n . l, 0) lit) + gloss max(n . h, 0)^40 lit,

with the normal n, the direction l to the light and the half vector h between l and the camera (Lambert's law, and
Blinn's highlight, SIGGRAPH 1977). A ray towards the light tells whether a point is lit. Each pixel averages 3x3 points,
and each of the nine looks for another point of the light, which makes shadows soft. Around an object's foot the ground
is darker, as it sees less of the sky there. Sensor noise comes last. The look is that of CLEVR (Johnson et al., CVPR
2017), whose images are ray traced by Blender.

Places and sizes are in image coordinates: x from -1 (left) to 1 (right), y from -1 (bottom) to 1 (top).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, InputError, checks
from fastdc.testing.solids import SHAPES, foot, height, meet, taper

COLOURS = {
    "blue": (0.14, 0.28, 0.84),
    "brown": (0.47, 0.26, 0.09),
    "cyan": (0.16, 0.76, 0.80),
    "gray": (0.33, 0.33, 0.34),
    "green": (0.12, 0.52, 0.15),
    "purple": (0.52, 0.15, 0.74),
    "red": (0.78, 0.12, 0.12),
    "yellow": (0.93, 0.83, 0.14),
}
"""Shares of red, green and blue light that a colour returns."""

MAX_SIZE = 1024
_POINTS = 3  # per pixel and side
_PENUMBRA = 0.13  # radius of the light, as an angle in radians


class SceneObject(NamedTuple):
    """A solid: its colour and shape, its middle (x, y) and its radius in image coordinates, and its turn in radians."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """All that an image shows.

    Attributes:
        objects: The objects.
        elevation: Angle of the camera above the ground, radians.
        roll: Turn of the camera about its axis, radians: the whole scene is tilted.
        light: Angles of the light, radians: from the camera's direction to the right, and above the ground.
        gloss: Strength of highlights.
        ground: Red, green and blue of the ground.
        slope: Change of the ground's brightness to the right and upwards.
        noise: Standard deviation of the sensor noise.
        seed: Seed of the sensor noise.
    """

    objects: tuple[SceneObject, ...]
    elevation: float
    roll: float
    light: tuple[float, float]
    gloss: float
    ground: tuple[float, float, float]
    slope: tuple[float, float]
    noise: float
    seed: tuple[int, ...]


def draw_scene(objects: tuple[SceneObject, ...], rng: np.random.Generator, seed: tuple[int, ...]) -> Scene:
    """A scene of given objects under a random camera, light and ground."""
    grey = rng.uniform(0.58, 0.82)
    return Scene(
        objects,
        elevation=float(rng.uniform(0.4, 0.62)),
        roll=float(rng.uniform(-0.06, 0.06)),
        light=(float(rng.uniform(-1.0, 1.0)), float(rng.uniform(0.8, 1.15))),
        gloss=float(rng.uniform(0.1, 0.5)),
        ground=tuple((grey + rng.uniform(-0.02, 0.02, 3)).tolist()),
        slope=tuple(rng.uniform(-0.07, 0.07, 2).tolist()),
        noise=float(rng.uniform(0.006, 0.018)),
        seed=seed,
    )


def render_scene(scene: Scene, size: int = 32) -> npt.NDArray[np.uint8]:
    """The image of a scene, uint8 (3, size, size) in 0 ... 255. Every size shows the same scene.

    Args:
        scene: The scene.
        size: Pixels per side, at most 1024.

    Raises:
        InputError: A colour or a shape is unknown, or the size is out of range.

    Example:
        >>> from fastdc.testing import render_scene, scenes
        >>> render_scene(scenes("single", "train", 1).scenes[0], 64).shape
        (3, 64, 64)
    """
    size = checks.whole("size", size, low=1, high=MAX_SIZE)
    for thing in scene.objects:
        checks.one_of("shape", thing.shape, SHAPES)
        checks.one_of("colour", thing.colour, tuple(COLOURS))
        if not thing.radius > 0:
            raise InputError(f"an object's radius must be positive, got {thing.radius}")
    light = _trace(scene, size)
    side = size * _POINTS
    pixels = light.reshape(side, side, 3).reshape(size, _POINTS, size, _POINTS, 3).mean(axis=(1, 3))
    noisy = pixels + scene.noise * np.random.default_rng((*scene.seed, size)).standard_normal(pixels.shape)
    image: npt.NDArray[np.uint8] = np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)
    return image.transpose(2, 0, 1)


class _Camera:
    """Parallel rays, and where objects stand so that their middles appear at given places."""

    def __init__(self, elevation: float) -> None:
        cosine, sine = np.cos(elevation), np.sin(elevation)
        self._cosine, self._sine = cosine, sine
        self.up, self.forward = np.array([0.0, cosine, sine]), np.array([0.0, -sine, cosine])

    def stand(self, thing: SceneObject) -> Float64:
        """The point of the ground below an object, (3,)."""
        middle = height(thing.shape) / 2 * self._cosine - taper(thing.shape) / 2 * self._sine  # of what is seen
        return np.array([thing.x, 0.0, (thing.y - thing.radius * middle) / self._sine])

    def origins(self, x: Float64, y: Float64) -> Float64:
        """Starts (n, 3) of the rays at image coordinates (n,), in front of everything."""
        return np.asarray(x[:, None] * np.array([1.0, 0.0, 0.0]) + y[:, None] * self.up - 20.0 * self.forward)


class _Standing(NamedTuple):
    """An object with the point of the ground where it stands, (3,)."""

    thing: SceneObject
    at: Float64

    def meet(self, origin: Float64, direction: Float64) -> tuple[Float64, Float64]:
        """Distances and normals, in the scene's units."""
        cosine, sine = np.cos(self.thing.turn), np.sin(self.thing.turn)
        turn = np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
        distance, normal = meet(self.thing.shape, (origin - self.at) @ turn / self.thing.radius, direction @ turn)
        return distance * self.thing.radius, normal @ turn.T

    def openness(self, points: Float64) -> Float64:
        """Share of the sky that points (n, 3) of the ground see beside the object."""
        radius = foot(self.thing.shape) * self.thing.radius
        away = np.hypot(points[:, 0] - self.at[0], points[:, 2] - self.at[2]) / radius
        return np.asarray(1 - 0.55 * np.exp(-((np.maximum(away - 0.75, 0) / 0.55) ** 2)))


def owners(scene: Scene, size: int) -> npt.NDArray[np.int64]:
    """Which object each pixel's middle shows, int64 (size, size); -1: the ground."""
    ticks = (np.arange(size) + 0.5) * 2 / size - 1
    return _first(scene, ticks)[2].reshape(size, size)


def _first(scene: Scene, ticks: Float64) -> tuple[Float64, Float64, npt.NDArray[np.int64], list[_Standing]]:
    """What the rays through a grid of image coordinates meet first: points (n, 3), normals, and objects."""
    camera = _Camera(scene.elevation)
    x, down = np.meshgrid(ticks, ticks)
    cosine, sine = np.cos(scene.roll), np.sin(scene.roll)
    origin = camera.origins((cosine * x + sine * down).ravel(), (sine * x - cosine * down).ravel())
    direction = np.broadcast_to(camera.forward, origin.shape)
    best = -origin[:, 1] / camera.forward[1]
    normal = np.tile((0.0, 1.0, 0.0), (len(origin), 1))
    owner = np.full(len(origin), -1, dtype=np.int64)
    standing = [_Standing(thing, camera.stand(thing)) for thing in scene.objects]
    for index, one in enumerate(standing):
        distance, facing = one.meet(origin, direction)
        nearer = distance < best
        best, owner = np.where(nearer, distance, best), np.where(nearer, index, owner)
        normal = np.where(nearer[:, None], facing, normal)
    return origin + best[:, None] * direction, normal, owner, standing


def _trace(scene: Scene, size: int) -> Float64:
    """Light (n, 3) that the points of all pixels return."""
    side = size * _POINTS
    points, normal, owner, standing = _first(scene, (np.arange(side) + 0.5) * 2 / side - 1)
    towards = _lights(scene.light, side)
    lit, open_sky, grounded = np.ones(len(points)), np.ones(len(points)), owner < 0
    for index, one in enumerate(standing):
        asked = np.flatnonzero(owner != index)  # solids are convex: none shades itself but by Lambert's law
        distance, _ = one.meet(points[asked], towards[asked])
        lit[asked[np.isfinite(distance)]] = 0.0
        open_sky[grounded] *= one.openness(points[grounded])
    middle = _direction(*scene.light)
    sun = np.maximum(normal @ middle, 0.0) * lit
    half = middle - _Camera(scene.elevation).forward
    shine = scene.gloss * np.maximum(normal @ (half / np.linalg.norm(half)), 0.0) ** 40 * lit * ~grounded
    colours = np.array([*(COLOURS[thing.colour] for thing in scene.objects), scene.ground])
    down, right = np.divmod(np.arange(len(points)), side)
    falloff = 1 + scene.slope[0] * (2 * right / side - 1) + scene.slope[1] * (1 - 2 * down / side)
    ambient = np.where(grounded, 0.55, 0.42 + 0.12 * normal[:, 1]) * open_sky
    strength = np.where(grounded, 0.45 / middle[1] * falloff, 0.68)
    body = colours[owner] * (ambient * np.where(grounded, falloff, 1.0) + strength * sun)[:, None]
    return np.asarray(body + shine[:, None])


def _direction(azimuth: npt.ArrayLike, elevation: npt.ArrayLike) -> Float64:
    """The unit vector (..., 3) towards a light at angles from the camera's direction and from the ground."""
    level = np.cos(elevation)
    return np.stack([level * np.sin(azimuth), np.sin(elevation) + 0 * level, -level * np.cos(azimuth)], axis=-1)


def _lights(light: tuple[float, float], side: int) -> Float64:
    """Directions (n, 3) to points of the light: the points of a pixel see nine of them, in a 3x3 grid."""
    offsets = _PENUMBRA * (np.arange(_POINTS) - (_POINTS - 1) / 2) / ((_POINTS - 1) / 2)
    tiled = np.tile(offsets, side // _POINTS)
    across, above = np.meshgrid(tiled, tiled)
    return _direction(light[0] + across.ravel() / np.cos(light[1]), light[1] + above.ravel())
