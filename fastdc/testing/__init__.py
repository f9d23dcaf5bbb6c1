"""For tests of code that uses fastdc: known worlds, rendered images, the float64 reference, replays of error tables."""

from typing import TYPE_CHECKING

from fastdc.support import lazy_names
from fastdc.testing import reference
from fastdc.testing.absent import WITHOUT
from fastdc.testing.gaussian_world import GaussianWorld
from fastdc.testing.replay import Replay, replay, verify

if TYPE_CHECKING:
    from fastdc.testing.edm_files import write_edm
    from fastdc.testing.image_text_folders import tiny_image_text
    from fastdc.testing.phantom_images import phantoms
    from fastdc.testing.scene_images import Scene, SceneObject, render_scene
    from fastdc.testing.scene_tasks import (
        SCENE_CLASSES,
        SCENE_SPLITS,
        SCENE_TASKS,
        SceneGroup,
        Scenes,
        scene_candidates,
        scene_groups,
        scenes,
    )
    from fastdc.testing.tiny_pipelines import tiny_dit, tiny_sd
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "write_edm": "edm_files",
            "phantoms": "phantom_images",
            **dict.fromkeys(("Scene", "SceneObject", "render_scene"), "scene_images"),
            **dict.fromkeys(
                (
                    "SCENE_CLASSES",
                    "SCENE_SPLITS",
                    "SCENE_TASKS",
                    "SceneGroup",
                    "Scenes",
                    "scene_candidates",
                    "scene_groups",
                    "scenes",
                ),
                "scene_tasks",
            ),
            "tiny_dit": "tiny_pipelines",
            "tiny_image_text": "image_text_folders",
            "tiny_sd": "tiny_pipelines",
        },
    )

__all__ = [
    "SCENE_CLASSES",
    "SCENE_SPLITS",
    "SCENE_TASKS",
    "WITHOUT",
    "GaussianWorld",
    "Replay",
    "Scene",
    "SceneGroup",
    "SceneObject",
    "Scenes",
    "phantoms",
    "reference",
    "render_scene",
    "replay",
    "scene_candidates",
    "scene_groups",
    "scenes",
    "tiny_dit",
    "tiny_image_text",
    "tiny_sd",
    "verify",
    "write_edm",
]
