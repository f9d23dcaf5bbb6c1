"""Rendered scenes show what their descriptions say: colours by hue, shapes by silhouette, places, sizes, shadows."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastdc.support import InputError
from fastdc.testing import SCENE_TASKS, Scene, SceneObject, render_scene, scene_images, scenes

# Hues in degrees; brown is a dark orange.
HUES = {
    "red": (340, 10),
    "brown": (11, 42),
    "yellow": (46, 66),
    "green": (100, 150),
    "cyan": (170, 195),
    "blue": (215, 245),
    "purple": (262, 295),
}
PLAIN = Scene((), 0.5, 0.0, (0.6, 0.9), 0.3, (0.7, 0.7, 0.7), (0.0, 0.0), 0.0, (0,))


def one(shape: str, colour: str = "red", x: float = 0.0, y: float = 0.0, radius: float = 0.6) -> Scene:
    return replace(PLAIN, objects=(SceneObject(colour, shape, x, y, radius, 0.3),))


def colour_of(pixels: NDArray[np.uint8]) -> str:
    """The colour of pixels (n, 3), by the hue of their median."""
    rgb = np.median(pixels, axis=0) / 255
    hue, saturation, _ = colorsys.rgb_to_hsv(*rgb)
    if saturation < 0.25:
        return "gray"
    return next(name for name, (low, high) in HUES.items() if (360 * hue - low) % 360 <= (high - low) % 360)


def test_every_size_shows_the_same_scene() -> None:
    world = scenes("two_object", "train", 6)
    for scene, image in zip(world.scenes, world.images, strict=True):
        quiet = replace(scene, noise=0.0)
        small, large = render_scene(quiet).astype(float), render_scene(quiet, 64).astype(float)
        assert np.array_equal(render_scene(scene), image)
        halved = large.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
        assert np.abs(halved - small).mean() < 2.0, "of 255; edges and shadows are sampled twice as finely"
    assert len({image.tobytes() for image in world.images}) == 6


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_objects_have_their_colours_and_are_clearly_visible(task: str) -> None:
    world = scenes(task, "ID_test", 40)
    for scene, image in zip(world.scenes, world.images, strict=True):
        seen = scene_images.owners(scene, 32)
        for index, thing in enumerate(scene.objects):
            alone = scene_images.owners(replace(scene, objects=(thing,)), 32) == 0
            assert alone.sum() >= 25
            assert (seen == index).sum() >= 0.75 * alone.sum()
            assert colour_of(image[:, seen == index].T) == thing.colour
            assert not alone[0].all()
        assert (seen >= 0).mean() < 0.6


def test_shapes_by_their_silhouettes() -> None:
    """Height over width, and the width at a sixth of the height over that at five sixths."""
    found = {}
    for shape in ("cone", "cube", "cylinder", "sphere"):
        mask = scene_images.owners(one(shape), 96) == 0
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        upper, lower = (mask[rows[0] + int(tall * share)].sum() for share in (1 / 6, 5 / 6))
        found[shape] = (tall / wide, upper / lower)
    # For the camera's elevation e = 0.5: (height cos e + depth sin e) / width.
    cosine, sine = np.cos(0.5), np.sin(0.5)
    assert found["sphere"] == pytest.approx((1, 1), abs=0.06)
    assert found["cylinder"] == pytest.approx(((1.5 * cosine + 2 * 0.62 * sine) / 1.24, 1), abs=0.06)
    assert found["cone"][0] == pytest.approx((1.75 * cosine + 0.82 * sine) / 1.64, abs=0.08)
    assert found["cone"][1] < 0.5
    diagonal = np.cos(0.3) + np.sin(0.3)  # of the turned square, seen from its side
    assert found["cube"][0] == pytest.approx((2 * cosine + 2 * diagonal * sine) / (2 * diagonal), abs=0.06)


def test_objects_stand_where_they_should() -> None:
    for shape in ("cone", "cube", "cylinder", "sphere"):
        mask = scene_images.owners(one(shape, x=0.3, y=-0.25, radius=0.5), 128) == 0
        down, right = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        middle = (right[0] + right[-1] + 1) / 128 - 1, 1 - (down[0] + down[-1] + 1) / 128
        assert middle == pytest.approx((0.3, -0.25), abs=0.03)
        assert 0.5 < max(np.ptp(right), np.ptp(down)) / 64 < 1.1


def test_the_nearer_object_hides_the_farther() -> None:
    near, far = SceneObject("red", "cube", 0.0, -0.2, 0.5, 0.3), SceneObject("blue", "cube", 0.1, 0.2, 0.5, 0.3)
    for objects in ((near, far), (far, near)):
        scene = replace(PLAIN, objects=objects)
        seen = scene_images.owners(scene, 64)
        alone = [scene_images.owners(replace(scene, objects=(thing,)), 64) == 0 for thing in objects]
        assert (seen[alone[objects.index(near)]] == objects.index(near)).all()
        assert (alone[0] & alone[1]).any()


def test_shadows_lie_on_the_side_away_from_the_light_and_at_the_foot() -> None:
    empty = render_scene(PLAIN, 64).astype(int)
    for azimuth in (-1.0, 1.0):
        scene = replace(one("cylinder", radius=0.4), light=(azimuth, 0.9))
        darker = (empty - render_scene(scene, 64)).sum(axis=0) > 30
        ground = darker & (scene_images.owners(scene, 64) < 0)
        columns = np.nonzero(ground)[1] - 31.5
        assert ground.sum() > 60
        assert np.sign(columns.mean()) == -np.sign(azimuth)
    foot = scene_images.owners(one("cylinder"), 64) == 0
    bottom = np.flatnonzero(foot.any(axis=1))[-1]
    image = render_scene(one("cylinder"), 64).astype(int)
    assert image[:, bottom + 2, 31].sum() < empty[:, bottom + 2, 31].sum() - 60


def test_the_lit_side_is_brighter_and_has_a_highlight() -> None:
    scene = replace(one("sphere", "green"), light=(1.0, 0.8), gloss=0.5)
    image = render_scene(scene, 64).astype(int)
    assert image[1, 31, 45] > image[1, 31, 18] + 30
    dull = render_scene(replace(scene, gloss=0.0), 64).astype(int)
    shine = image - dull
    assert shine.max() > 90
    assert 10 < (shine[0] > 40).sum() < 200


def test_noise_has_its_deviation() -> None:
    scene = replace(PLAIN, noise=0.02)
    difference = render_scene(scene, 64).astype(float) - render_scene(PLAIN, 64)
    assert abs(difference.std() / 255 / 0.02 - 1) < 4 / np.sqrt(2 * difference.size) + 0.01  # rounding
    assert not np.array_equal(render_scene(scene, 64), render_scene(replace(scene, seed=(1,)), 64))


def test_wrong_scenes_are_refused() -> None:
    for scene, naming in (
        (one("torus"), "shape must be"),
        (one("cube", "pink"), "colour must be"),
        (one("cube", radius=0.0), "radius must be positive"),
    ):
        with pytest.raises(InputError, match=naming):
            render_scene(scene)
    with pytest.raises(InputError, match="size"):
        render_scene(PLAIN, 0)
