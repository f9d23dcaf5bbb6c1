"""A run that calibrates its own race: some of its images are run in full, and the others race.

Validation images are not always at hand. The images of a run are images, too: N of them are run in full, so that their
answers are those of the full run, and their errors determine the limit with which the others race
(:mod:`fastdc.calibration.race`). The N images count once each, under the one noise seed of the run: the loss of a limit
on an image is then 0 or 1. Labels are not needed.

*Images that are all known* (``classify``, ``score``, ``stream``). N of the n images are chosen at random. Whatever the
images are and however they are sorted, the N and a random one of the rest are then exchangeable, by the choice alone.
Conformal risk control (Angelopoulos et al., arXiv 2208.02814, theorem 1) gives

    E[share of the other n - N images whose answer is not that of the full run]  <=  delta ,

over the choice, for these very images: none of them needs to be a sample of anything. It holds for all of the n - N
together, and images are finished in the order in which they were given: a run that is interrupted has finished the
first ones, of a sorted folder the first classes, which are no random part. Of these alone it says that the expected
*number* of such answers is at most delta (n - N), as among all.

*Images that come one by one* (sessions). The first N are run in full. If they and a later image are exchangeable, as
independent images from one source are,

    P[the later image's answer is not that of the full run]  <=  delta ,

over the first N images and the later one. Here exchangeability is an assumption. A source that changes breaks it: of
images sorted by class, the first N say nothing about the classes that come later.

What neither says: nothing holds for each class, for hard images, or given the N images that were chosen; delta is an
average over choices. The full run is the reference, not the true label. And no promise is carried to another run.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastdc.bundle import Model
from fastdc.calibration import calibrate_errors, check_level, supported_delta
from fastdc.diffusion import PlanConfig
from fastdc.inference.options import Options
from fastdc.inference.plan_options import plan_config
from fastdc.rules import Calibration
from fastdc.support import Floats, InputError, Int64, Mask, checks, shown

FULL = "full"
"""What is promised about an image that was run in full."""


@dataclass(frozen=True)
class SelfCalibration:
    """How many images a run takes in full to calibrate its race, and what they gave.

    Attributes:
        images: Number N of images to run in full.
        delta: Level of the race of the others.
        first: Whether the N images are the first ones; otherwise they are chosen at random.
        found: The calibration; None before the N images are finished, or if no limit is enough.
    """

    images: int
    delta: float
    first: bool = False
    found: Calibration | None = None

    @classmethod
    def of(cls, options: Options) -> "SelfCalibration | None":
        """What a user asks for; None if nothing.

        Raises:
            InputError: Other options do not go with it, or the images are too few for the level.
        """
        if options.self_calibrate is None:
            return None
        images = checks.whole("self_calibrate", options.self_calibrate)
        if options.rule != "race":
            raise InputError(f"self_calibrate is for the race: expected no other rule, got {shown(options.rule)}")
        if options.decision != "mean":
            raise InputError(
                f"self_calibrate promises the class with the smallest mean error of the full run: expected decision "
                f"mean, got {shown(options.decision)}"
            )
        given = {} if options.rule_options is None else options.rule_options
        other = min(set(given) - {"delta"}, default=None, key=str) if isinstance(given, dict) else given
        if other is not None:
            raise InputError(f"rule race has no option {shown(other)} in a run that calibrates itself: it has delta")
        try:
            delta = given["delta"] if given else supported_delta(images)
            check_level(delta, images)
        except InputError as error:
            raise InputError(f"self_calibrate={images} cannot be used: {error}") from None
        return cls(images, float(delta))

    def options(self, model: Model, options: Options) -> Options:
        """The options of the full runs: of as many draws as the model's own race for the plan, if it has one."""
        own = model.calibration_for(plan_config(model, options.plan))
        draws = options.draws if options.draws is not None or own is None else own.draws
        return options.but(self_calibrate=None, rule="full", rule_options=None, draws=draws)

    def chosen(self, streams: Int64, seed: int) -> Mask:
        """Which images are run in full, bool (n,): those with the N smallest hashes of seed and stream.

        As noise, the choice then depends on the seed and the pixels, and not on the order of the images. Equal images
        are told apart by their number.

        Args:
            streams: int64 (n,), the noise stream of each image.
            seed: Seed of the run.
        """
        if self.first or len(streams) <= self.images:
            return np.arange(len(streams)) < self.images
        seen: Counter[int] = Counter()
        hashes = []
        for stream in streams.tolist():
            text = f"{seed} {stream} {seen[stream]}".encode()
            hashes.append(hashlib.blake2b(text, digest_size=16, person=b"self-calibration").digest())
            seen[stream] += 1
        chosen = np.zeros(len(streams), np.bool_)
        chosen[sorted(range(len(streams)), key=hashes.__getitem__)[: self.images]] = True
        return chosen

    def fitted(self, errors: Floats, config: PlanConfig) -> "SelfCalibration":
        """The calibration from the errors (n, C, J) of the images that were run in full, as the rule will see them.

        There is none if a class has no error at all.
        """
        try:
            return replace(self, found=calibrate_errors([errors], config, delta=self.delta))
        except InputError:  # no finite limit keeps every answer of the full run: none may be lost, so nothing races
            return self

    def promises(self, full: Mask) -> tuple[str, ...]:
        """What is promised about each image, given which of them were run in full, bool (m,)."""
        race = f"race, delta={self.delta:g}, calibrated on {self.images} images of this run"
        return tuple(FULL if each else race for each in full.tolist())

    def describe(self) -> dict[str, Any]:
        """What reproduces it, as plain values; limit and risk are None if there is no race."""
        limit, risk = (None, None) if self.found is None else (self.found.limit, self.found.risk)
        chosen = "first" if self.first else "random"
        return {"images": self.images, "chosen": chosen, "delta": self.delta, "limit": limit, "risk": risk}
