"""New images of classes, from noise."""

from functools import partial
from typing import Any

import numpy as np

from fastdc.diffusion import FlowSchedule
from fastdc.inference import OnProgress, check_streams, class_indices
from fastdc.sampling.guided import check_guidance, conditions_of
from fastdc.sampling.runs import ModelAndNetwork, SamplingRun
from fastdc.sampling.space import Decoder, Space
from fastdc.sampling.steps import noise_of, sampler_of, walk
from fastdc.sampling.trajectory import Trajectory
from fastdc.support import Float32, checks


def sample(
    classifier: ModelAndNetwork,
    labels: Any,
    *,
    sampler: str = "heun",
    steps: int = 32,
    guidance: float = 0.0,
    clip: bool = True,
    spacing: str | None = None,
    seed: int = 0,
    streams: Any = None,
    decoder: Decoder | None = None,
    progress: OnProgress | None = None,
) -> Float32:
    """Makes images of classes from noise.

    Args:
        classifier: A ``DiffusionClassifier``. Of several devices it uses the first.
        labels: Class of each image to make, n indices or names.
        sampler: One of :data:`SAMPLERS`.
        steps: Number of steps.
        guidance: w of classifier-free guidance, (1 + w) D(class) - w D(no class).
        clip: Whether estimates of clean images are clipped to the model's range of pixel values.
        spacing: One of :data:`SPACINGS`, see :class:`Trajectory`.
        seed: Seed of the noise, in [0, 2^64).
        streams: Noise stream of each image, whole numbers in [0, 2^56); default: 0 ... n - 1. Equal streams with
            different labels show one noise as several classes.
        decoder: Makes images (n, C, H, W) in the model's value range of latents (n, c, h, w); None: the bundle's.
        progress: Called after every call of the network.

    Returns:
        float32 (n, c, h, w) in [0, 1], which depend on no order or batch.

    Example:
        >>> from fastdc.sampling import sample
        >>> sample(clf, ["3", "8"], steps=4).shape
        (2, 1, 8, 8)

    Raises:
        InputError: An option cannot be used, or the model works on latents and there is no decoder.
        Interrupted: Ctrl-C; its ``result`` holds the images that were finished.
    """
    model, space = classifier.model, Space(classifier.model, decoder, classifier.encoder)
    space.check_pictures("sampling")
    conditions = conditions_of(model, class_indices(labels, model, "labels"))
    w, key = check_guidance(model, guidance), checks.seed(seed)
    noise = np.arange(len(conditions)) if streams is None else check_streams(streams, len(conditions))
    trajectory = Trajectory.of(model.schedule, steps, spacing=spacing)
    how = sampler_of(sampler, straight=isinstance(model.schedule, FlowSchedule))
    cells = 2 if w else 1
    sizes: dict[str, Any] = {"images": len(conditions), "evaluations": cells * how.evaluations(trajectory)}
    run = SamplingRun(classifier, trajectory, **sizes, cells=cells, clip=checks.flag("clip", clip), progress=progress)

    def work(rows: slice) -> Float32:
        x = trajectory.points[0].sigma * noise_of(noise[rows], 0, model.sample_shape, seed=key)
        denoise = partial(run.denoise, conditions=conditions[rows], guidance=w)
        return space.pictures(walk(x, trajectory, how, denoise, noise[rows], seed=key))

    made: Float32 = run(work, lambda parts: np.concatenate(parts or [np.empty((0, *model.image_shape), np.float32)]))
    return made
