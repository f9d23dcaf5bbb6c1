"""What fastdc must know of a diffusion model besides its network: shapes, ranges, classes, schedule, parameterisation.

A bundle's manifest holds exactly this; a network given from Python comes with a :class:`Model` made by hand.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastdc.diffusion import AbstractSchedule, LevelWeights, Parameterization, PlanConfig
from fastdc.rules import Calibration
from fastdc.support import InputError


@dataclass(frozen=True)
class Defaults:
    """What a run uses when the user does not say; see ``plan.PlanConfig``.

    Attributes:
        draws: Draws a class.
        levels: Band of noise-to-signal ratios (low, high), or None for the whole schedule.
        weighting: One of ``weighting.WEIGHTINGS``.
        loss: One of ``kernels.LOSSES``.
        temperature: Of the posterior softmax(-error / temperature), positive.
        first: Noise-to-signal ratios of the first draws.
    """

    draws: int = 100
    levels: tuple[float, float] | None = None
    weighting: str = "uniform"
    loss: str = "l2"
    temperature: float = 1.0
    first: tuple[float, ...] = ()


@dataclass(frozen=True)
class Model:
    """A class-conditional diffusion model, without its network.

    Attributes:
        name: Short name.
        image_shape: (channels, height, width) of images as users give them.
        value_range: (low, high) of the model's pixel values; user images in [0, 1] are mapped onto it.
        class_names: K names.
        schedule: Noise schedule.
        parameterization: What the network predicts.
        null_class: Index that the network takes for "no class", or None.
        latent_shape: (channels, height, width) of what the network works on where an encoder makes it from the image;
            None: the image itself.
        prompts: Where conditions are texts: one a condition. Empty: a condition is a class.
        class_of: The class of each prompt, where several may describe one class; as long as `prompts`.
        defaults: What a run uses when the user does not say.
        identity: Names the exact model in results: a bundle's sha256, else "".
        calibration: Of the race, or None.
        noised_calibrations: Of the race on noisy images, each for one method and noise; they bring their levels.
        level_weights: A curve fitted to this model, or None; used only where a user asks for it, as in
            ``classify(images, level_weights=model.level_weights)``.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    schedule: AbstractSchedule
    parameterization: Parameterization
    value_range: tuple[float, float] = (-1.0, 1.0)
    null_class: int | None = None
    defaults: Defaults = field(default_factory=Defaults)
    identity: str = ""
    calibration: Calibration | None = None
    noised_calibrations: tuple[Calibration, ...] = ()
    level_weights: LevelWeights | None = None
    latent_shape: tuple[int, int, int] | None = None
    prompts: tuple[str, ...] = ()
    class_of: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, shape in (("image_shape", self.image_shape), ("latent_shape", self.latent_shape)):
            if shape is not None and (len(shape) != 3 or min(shape) < 1):
                raise InputError(f"{name} must be (channels, height, width), got {shape}")
        if not self.class_names:
            raise InputError("class_names must hold at least one name")
        if not self.value_range[0] < self.value_range[1]:
            raise InputError(f"value_range must be (low, high) with low < high, got {self.value_range}")
        if len(self.class_of) != len(self.prompts):
            raise InputError(f"{len(self.prompts)} prompts need a class each, got {len(self.class_of)}")
        if self.prompts and set(self.class_of) != set(range(self.num_classes)):
            raise InputError(f"every class in [0, {self.num_classes}) needs a prompt, got prompts of {self.class_of}")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network works on: the latent, or the image itself."""
        return self.image_shape if self.latent_shape is None else self.latent_shape

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the network tells apart, by the index that it is given: the prompts, or the classes."""
        return self.prompts or self.class_names

    def check_plain(self, what: str) -> None:
        """Refuses, for `what` cannot do without them, a model of anything but images and classes.

        Raises:
            InputError: The model works on latents, or describes a class by several prompts.
        """
        if self.latent_shape is not None:
            raise InputError(f"{what} needs a model of images, {self.name} works on latents")
        if self.class_of not in ((), tuple(range(self.num_classes))):
            raise InputError(f"{what} needs one prompt a class in their order, {self.name} has {len(self.prompts)}")

    def calibration_for(self, plan: PlanConfig) -> Calibration | None:
        """The calibration that holds for a plan, or None."""
        known = (self.calibration, *self.noised_calibrations)
        return next((found for found in known if found is not None and found.fits(plan)), None)

    def noise_ratio(self, sigma: float) -> float:
        """Noise of standard deviation `sigma` in pixels in [0, 1] as a ratio sigma / alpha, the unit of noise levels.

        The image is the signal: on a value range of [-1, 1] that is 2 sigma, and for a variance preserving schedule the
        level with (1 - alpha_bar) / alpha_bar = (2 sigma)^2.
        """
        low, high = self.value_range
        return float(sigma) * (high - low)

    def to_unit(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Images in the model's value range, float32, as images in [0, 1]: what users see."""
        low, high = self.value_range
        return (x - np.float32(low)) / np.float32(high - low)
