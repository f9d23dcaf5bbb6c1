"""Counterfactuals: what an image would have to look like to be of another class, by the model that classifies it.

Each image is edited under the class to reach and, as a check, under its own (:mod:`fastdc.explanation.edits`), and all
three pictures are classified. A counterfactual is worth looking at if its answer is the class to reach and the factual
reconstruction keeps its class; what the class changed is the difference of the two.
"""

import time
from dataclasses import asdict
from typing import Any, Protocol, TypeAlias, Unpack

import numpy as np

from fastdc.explanation.counterfactual_result import Counterfactuals
from fastdc.explanation.edits import Edit
from fastdc.explanation.named_classes import named_classes, runner_up
from fastdc.inference import (
    Classification,
    Images,
    OnProgress,
    Options,
    RunOptions,
    Settings,
    merged,
    stream_results,
)
from fastdc.sampling import Decoder, ModelAndNetwork, SamplingRun, Space, conditions_of
from fastdc.support import Float32, InputError, Int64, Interrupted, checks

_Pictures: TypeAlias = tuple[Float32, Float32]


class AbstractEditor(ModelAndNetwork, Protocol):
    """What a counterfactual needs of a classifier; a :class:`fastdc.DiffusionClassifier` has it."""

    def settings(self, options: Options | None = None, **keywords: Unpack[RunOptions]) -> Settings:
        """The options of a run, checked and complete."""


def counterfactuals(
    classifier: AbstractEditor,
    images: Any,
    *,
    to: Any = None,
    from_: Any = None,
    edit: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    own_guidance: float | None = None,
    from_t: float | None = None,
    ratio: float | None = None,
    averages: int | None = None,
    clip: bool | None = None,
    compat: str | None = None,
    decoder: Decoder | None = None,
    options: Options | None = None,
    streams: Any = None,
    progress: OnProgress | None = None,
    **keywords: Unpack[RunOptions],
) -> Counterfactuals:
    """Edits images towards another class, and towards their own as a check, and classifies what comes of it.

    Args:
        classifier: A ``DiffusionClassifier``. Pictures are made on the first of several devices.
        images: Images of any kind, see :func:`fastdc.data.prepare`.
        to: Class to reach, a name or index for all images or a list of one per image; None: the runner-up of each.
        from_: Class of the images, likewise; None: the answer to each.
        edit: One of :data:`EDITS`, see :mod:`fastdc.explanation.edits`; None: "flowedit" for flows, else "sdedit".
        steps: Number of steps; None, here and below: the edit's default (docs/counterfactuals.md).
        guidance: w of classifier-free guidance, (1 + w) D(class) - w D(no class); 0 if the model has no null class.
        own_guidance: w under the images' own class, for "flowedit".
        from_t: Position on the schedule at which editing starts, in (0, 1]: the larger, the more may change.
        ratio: Noise-to-signal ratio sigma / alpha at which it starts, in place of `from_t`.
        averages: Noises per step of "flowedit".
        clip: Whether estimates of clean images are clipped to the range of pixel values.
        compat: "favero" ends "sdedit" as the program of arXiv 2502.03687 does.
        decoder: Makes images (n, C, H, W) in the model's value range of latents (n, c, h, w); None: the bundle's.
        options: Options of the answers; the seed is also that of the edits' noise.
        streams: Noise stream of each image and its edits, in [0, 2^56); default: from the pixels of each picture.
        progress: Called after every step of the answers and of the edits.
        **keywords: Options by name, see :class:`fastdc.Options`; they win over `options`.

    Example:
        >>> from fastdc.explanation import counterfactuals
        >>> counterfactuals(clf, images[:2], to="8", steps=10).counterfactual.shape
        (2, 1, 8, 8)

    Raises:
        InputError: Images or options cannot be used; raised before any work starts.
        Interrupted: Ctrl-C; its ``result`` holds the images that were finished, if there are any.
    """
    start = time.perf_counter()
    given = {"steps": steps, "guidance": guidance, "own_guidance": own_guidance, "from_t": from_t, "ratio": ratio,
             "averages": averages, "clip": clip, "compat": compat}  # fmt: skip
    wanted = merged(options, keywords, counterfactuals)
    made = _Maker(classifier, Edit.of(classifier.model, edit, given), wanted, decoder, progress, streams is not None)
    ready = Images.of(images, classifier.model, streams, **wanted.reading)
    named = [named_classes(one, classifier.model, len(ready), what) for one, what in ((from_, "from_"), (to, "to"))]
    return made(ready, named[0], named[1], start)


class _Maker:
    """Makes counterfactuals with the options of a call."""

    def __init__(
        self,
        classifier: AbstractEditor,
        edit: Edit,
        options: Options,
        decoder: Decoder | None,
        progress: OnProgress | None,
        one_noise: bool,
    ) -> None:
        self._one_noise = one_noise  # whether all pictures of an image are answered under its noise
        self._classifier, self._edit, self._options, self._progress = classifier, edit, options, progress
        self._space = Space(classifier.model, decoder, classifier.encoder)
        self._space.check_pictures("a counterfactual")
        self._settings = classifier.settings(options)
        method = self._settings.job.plan.config.method
        if method != "dc":
            raise InputError(f"edited images are clean: expected method dc, got {method}")
        self._seed = checks.seed(options.seed)

    def __call__(self, images: Images, own: Int64 | None, target: Int64 | None, start: float) -> Counterfactuals:
        before = self._answers(images)
        own = before.labels if own is None else own
        target = runner_up(before, own) if target is None else target
        try:
            pictures, stopped = self._pictures(images, own, target), None
        except Interrupted as interrupted:
            if interrupted.result is None:
                raise
            pictures, stopped = interrupted.result, interrupted
        rows = np.arange(len(pictures[0]))
        streams = images.streams[rows] if self._one_noise else None
        of_factual, after = (self._answers(self._read(one, streams)) for one in pictures)
        edits = self._edit.evaluations(self._classifier.model)
        found = Counterfactuals(
            images=images.unit[rows],
            factual=pictures[0],
            counterfactual=pictures[1],
            own=own[rows],
            target=target[rows],
            before=before[rows],
            after=after,
            of_factual=of_factual,
            evaluations=before.evaluations[rows] + of_factual.evaluations + after.evaluations + edits,
            edit={**asdict(self._edit), "seed": self._seed},
            seconds=time.perf_counter() - start,
        )
        if stopped is not None:
            raise Interrupted(str(stopped), found) from None
        return found

    def _read(self, pictures: Float32, streams: Int64 | None) -> Images:
        return Images.of(pictures, self._classifier.model, streams, layout="NCHW")

    def _answers(self, images: Images) -> Classification:
        try:
            return next(stream_results(self._settings, images, progress=self._progress))
        except Interrupted as interrupted:  # whose result is answers, not counterfactuals
            raise Interrupted(str(interrupted)) from None

    def _pictures(self, images: Images, own: Int64, target: Int64) -> _Pictures:
        """The factual reconstructions and the counterfactuals, float32 (n, c, h, w) in [0, 1] each.

        Raises:
            Interrupted: Ctrl-C; its ``result`` holds those of the first images.
        """
        model, edit = self._classifier.model, self._edit
        run = SamplingRun(
            self._classifier,
            edit.trajectory(model),
            images=len(images),
            evaluations=edit.evaluations(model),
            cells=edit.cells,
            clip=edit.clip,
            coefficients=edit.compat is not None,
            progress=self._progress,
        )
        sources, targets = conditions_of(model, own), conditions_of(model, target)

        def work(rows: slice) -> _Pictures:
            x, streams = self._space.samples(images.samples[rows]), images.streams[rows]
            found = edit.images(model, run.denoise, x, streams, sources[rows], targets[rows], seed=self._seed)
            return self._space.pictures(found[0]), self._space.pictures(found[1])

        def together(parts: list[_Pictures]) -> _Pictures:
            return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

        made: _Pictures = run(work, together)
        return made
