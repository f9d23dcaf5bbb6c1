"""Edits: an image of one class as a sampler would show it under another one, with the same noise.

"sdedit"    noise the image to the start of a trajectory, and sample back under the other class with ancestral steps:
            SDEdit (Meng et al., arXiv 2108.01073), as Favero et al. (arXiv 2502.03687) explain diffusion classifiers.
            ``compat="favero"`` ends as their program does: the last step's mean is taken once more. Of a model on
            wavelet coefficients it clips these, as they do, and not the pixels that they make.
"ddim"      invert the image under its own class by DDIM without guidance (Song et al., arXiv 2010.02502, section 4.3),
            and sample back from there under the other class by DDIM.
"heun"      the same with the second-order sampler of Karras et al. (arXiv 2206.00364) both ways.
"flowedit"  FlowEdit (Kulikov et al., arXiv 2412.08629), which goes straight from one image to the other.

Each is done twice, for the class to reach and for the image's own: the second is the factual reconstruction. With all
but the class equal, what it changes in an image is the sampler's doing, not the class's. FlowEdit from a class to
itself is the identity, so its factual reconstruction is the image itself and takes no steps.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fastdc.bundle import Model
from fastdc.diffusion import FlowSchedule
from fastdc.sampling import (
    AbstractSampler,
    GuidedDenoiser,
    Trajectory,
    check_guidance,
    flow_edit_step,
    noise_of,
    sampler_of,
    walk,
)
from fastdc.support import Float64, InputError, Int32, Int64, checks

EDITS = ("sdedit", "ddim", "heun", "flowedit")


@dataclass(frozen=True)
class Edit:
    """How images are edited.

    Attributes:
        name: One of :data:`EDITS`.
        steps: Number of steps of the trajectory.
        guidance: w of classifier-free guidance on the way back, (1 + w) D(class) - w D(no class).
        own_guidance: w for an image's own class in "flowedit".
        from_t: Position on the schedule at which the trajectory starts, in (0, 1]; None: at `ratio`.
        ratio: Noise-to-signal ratio sigma / alpha at which it starts; None: at `from_t`.
        clip: Whether estimates of clean images are clipped to the range of pixel values.
        averages: Number of noises per step of "flowedit".
        compat: "favero", see above, or None.
    """

    name: str
    steps: int
    guidance: float
    own_guidance: float
    from_t: float | None
    ratio: float | None
    clip: bool
    averages: int = 1
    compat: str | None = None

    @classmethod
    def of(cls, model: Model, name: str | None, options: dict[str, Any]) -> "Edit":
        """A user's options on top of the defaults of an edit.

        Raises:
            InputError: An option cannot be used.
        """
        flow = isinstance(model.schedule, FlowSchedule)
        name = checks.one_of("edit", ("flowedit" if flow else "sdedit") if name is None else name, EDITS)
        given = {option: value for option, value in options.items() if value is not None}
        made = replace(_default(name, model), **given)
        if "from_t" in given and "ratio" not in given:
            made = replace(made, ratio=None)
        elif "ratio" in given and "from_t" not in given:
            made = replace(made, from_t=None)
        checks.flag("clip", made.clip)
        check_guidance(model, made.guidance)
        check_guidance(model, made.own_guidance, "own_guidance")
        for option, wanted in (("averages", "flowedit"), ("own_guidance", "flowedit"), ("compat", "sdedit")):
            if option in given and name != wanted:
                raise InputError(f"{option} is an option of {wanted}: expected none with {name}")
        checks.whole("averages", made.averages, high=1000)
        made.trajectory(model)
        return made

    @property
    def inverts(self) -> bool:
        """Whether images are first taken to noise by the sampler."""
        return self.name in ("ddim", "heun")

    def trajectory(self, model: Model) -> Trajectory:
        """The noise levels."""
        return Trajectory.of(
            model.schedule,
            self.steps,
            from_t=self.from_t,
            ratio=self.ratio,
            invertible=self.inverts,
            compat=self.compat,
        )

    def sampler(self, model: Model) -> AbstractSampler:
        """The sampler of the way back; none for "flowedit"."""
        return sampler_of(
            "ddpm" if self.name == "sdedit" else self.name, straight=isinstance(model.schedule, FlowSchedule)
        )

    @property
    def cells(self) -> int:
        """Network evaluations of an image in the largest call."""
        w = self.own_guidance if self.name == "flowedit" else self.guidance
        one_class = 2 if max(abs(self.guidance), abs(w)) > 0 else 1
        return one_class if self.name == "flowedit" else 2 * one_class

    def evaluations(self, model: Model) -> int:
        """Network evaluations that an image takes."""
        path = self.trajectory(model)
        if self.name == "flowedit":
            return len(path) * self.averages * ((2 if self.guidance else 1) + (2 if self.own_guidance else 1))
        how = self.sampler(model)
        back = how.evaluations(path) * self.cells
        return back + (how.evaluations(path.backwards()) if self.inverts else 0)

    def images(
        self,
        model: Model,
        denoise: GuidedDenoiser,
        x: Float64,
        streams: Int64,
        own: Int32,
        other: Int32,
        *,
        seed: int,
    ) -> tuple[Float64, Float64]:
        """The factual reconstructions and the counterfactuals.

        Args:
            model: The model.
            denoise: Estimates at the levels of :meth:`trajectory`.
            x: float64 (m, c, h, w), images in the space that the network works in.
            streams: int64 (m,), noise stream of each.
            own: int32 (m,), condition of each image's own class.
            other: int32 (m,), condition to reach.
            seed: Philox key.

        Returns:
            Both float64 (m, c, h, w).
        """
        path = self.trajectory(model)
        if self.name == "flowedit":
            return x, self._flow_edited(path, model, denoise, x, streams, own, other, seed=seed)
        how, first = self.sampler(model), path.points[0]
        if self.inverts:
            unguided = partial(denoise, conditions=own, guidance=0.0)
            x = walk(path.points[-1].alpha * x, path.backwards(), how, unguided, streams, seed=seed)
        else:
            x = first.alpha * x + first.sigma * noise_of(streams, 0, x.shape[1:], seed=seed)
        guided = partial(denoise, conditions=np.concatenate([own, other]), guidance=self.guidance)
        both = walk(np.concatenate([x, x]), path, how, guided, np.concatenate([streams, streams]), seed=seed)
        end = path.points[-1].alpha
        return both[: len(x)] / end, both[len(x) :] / end

    def _flow_edited(
        self,
        path: Trajectory,
        model: Model,
        denoise: GuidedDenoiser,
        x: Float64,
        streams: Int64,
        own: Int32,
        other: Int32,
        *,
        seed: int,
    ) -> Float64:
        z = x
        own_estimates = partial(denoise, conditions=own, guidance=self.own_guidance)
        estimates = partial(denoise, conditions=other, guidance=self.guidance)
        straight = isinstance(model.schedule, FlowSchedule)
        for number, span in enumerate(path):
            first = number * self.averages + 1
            z = flow_edit_step(
                x,
                z,
                span,
                own_estimates,
                estimates,
                lambda k, first=first: noise_of(streams, first + k, x.shape[1:], seed=seed),  # type: ignore[misc]
                averages=self.averages,
                straight=straight,
            )
        return z


def _default(name: str, model: Model) -> Edit:
    """The defaults of an edit: 30 steps with w = 2 from the highest level at which the model tells classes apart.

    docs/counterfactuals.md has the measurements that they were chosen on.
    """
    w, band = 0.0 if model.null_class is None else 2.0, model.defaults.levels
    from_t, ratio = (0.5, None) if band is None else (None, min(band[1], float(model.schedule.levels([1.0]).ratio[0])))
    return Edit(name, steps=30, guidance=w, own_guidance=w, from_t=from_t, ratio=ratio, clip=True)
