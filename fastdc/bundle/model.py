"""A diffusion model without its network: shapes, value range, classes, noise schedule and parameterisation.

A bundle's manifest holds exactly this. For a network given from Python, the user makes a :class:`Model`.
"""

from dataclasses import dataclass, field, replace

from fastdc.bundle.haar import HaarTransform
from fastdc.bundle.pixel_range import PixelRange
from fastdc.diffusion import AbstractSchedule, LevelWeights, Parameterization, PlanConfig
from fastdc.rules import Calibration
from fastdc.support import FITS, Float32, InputError, checks, shown


@dataclass(frozen=True)
class Defaults:
    """Options that apply if the user gives no others; :class:`fastdc.diffusion.PlanConfig` explains the plan's.

    Attributes:
        draws: Number of draws per class.
        levels: Band (low, high) of noise-to-signal ratios, or None for the whole schedule.
        weighting: Weighting of the noise levels, one of ``fastdc.diffusion.WEIGHTINGS``.
        loss: Loss of a residual, one of ``fastdc.diffusion.LOSSES``.
        temperature: Temperature of the posterior softmax(-error / temperature); positive.
        first: Noise-to-signal ratios of the first draws.
    """

    draws: int = 100
    levels: tuple[float, float] | None = None
    weighting: str = "uniform"
    loss: str = "l2"
    temperature: float = 1.0
    first: tuple[float, ...] = ()


@dataclass(frozen=True, repr=False)
class Model:
    """A class-conditional diffusion model, without its network.

    Attributes:
        name: Short name.
        image_shape: Shape (channels, height, width) of the user's images.
        value_range: Range (low, high) of the model's pixel values; user images in [0, 1] are mapped onto it.
        class_names: Names of the K classes.
        schedule: Noise schedule.
        parameterization: The quantity that the network predicts.
        null_class: Index that the network takes for "no class", or None.
        latent_shape: Shape (channels, height, width) of the latents that an encoder makes from images and that the
            network works on; None if the network works on images.
        prompts: One text per condition of a text-conditional model; empty if each condition is a class.
        class_of: Class of each prompt, as long as `prompts`. Several prompts may describe one class.
        class_counts: Number of training images of each class, or None if it is not known.
        window: Values (black, white) that training images of more than 8 bits were read through, as others are unless
            a user gives a window; None: what the files state.
        fit: How pictures come to the height and width: "crop" or "stretch", as :func:`fastdc.data.load_images` does.
        transform: Transform of images, in the model's value range, to what the network works on; None: there is none.
        defaults: Options that apply if the user gives no others.
        identity: Name of the exact model in results: the sha256 of a bundle's manifest, otherwise "".
        calibration: Calibration of the race, or None.
        noised_calibrations: Calibrations of the race on noisy images, each for one method and noise, with their levels.
        level_weights: A curve fitted to this model, or None. It is used only on request, as in
            ``classify(images, level_weights=model.level_weights)``.

    Raises:
        InputError: A shape, the value range, the classes or the prompts are not valid.
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
    class_counts: tuple[int, ...] | None = None
    window: tuple[float, float] | None = None
    fit: str = "crop"
    transform: HaarTransform | None = None

    def __post_init__(self) -> None:
        for name, shape in (("image_shape", self.image_shape), ("latent_shape", self.latent_shape)):
            if shape is not None and (len(shape) != 3 or min(shape) < 1):
                raise InputError(f"{name} must be (channels, height, width), got {shape}")
        checks.one_of("fit", self.fit, FITS)
        if self.transform is not None:
            self.transform.shape(self.image_shape)
            if self.latent_shape is not None:
                raise InputError("transform is for models of images: expected none with latent_shape")
        if not self.class_names:
            raise InputError("class_names must hold at least one name")
        if not self.value_range[0] < self.value_range[1]:
            raise InputError(f"value_range must be (low, high) with low < high, got {self.value_range}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise InputError(f"window must be (black, white) with black < white, got {self.window}")
        if self.class_counts is not None and len(self.class_counts) != self.num_classes:
            raise InputError(f"class_counts must be {self.num_classes} numbers, got {len(self.class_counts)}")
        if len(self.class_of) != len(self.prompts):
            raise InputError(f"{len(self.prompts)} prompts need a class each, got {len(self.class_of)}")
        if self.prompts and set(self.class_of) != set(range(self.num_classes)):
            raise InputError(f"every class in [0, {self.num_classes}) needs a prompt, got prompts of {self.class_of}")

    def __repr__(self) -> str:
        latent = "" if self.latent_shape is None else f", latents {self.latent_shape}"
        prompts = f", {len(self.prompts)} prompts" if self.prompts else ""
        return (
            f"Model({shown(self.name)}: {self.num_classes} classes{prompts}, images {self.image_shape}{latent}, "
            f"{type(self.schedule).__name__}, {self.parameterization.kind})"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the network's input: of latents, of transformed images, or of images."""
        if self.transform is not None:
            return self.transform.shape(self.image_shape)
        return self.image_shape if self.latent_shape is None else self.latent_shape

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that the network tells apart, in the order of their indices: prompts or classes."""
        return self.prompts or self.class_names

    def check_plain(self, what: str) -> None:
        """Refuses a model that works on latents, or that has several prompts per class.

        Args:
            what: The feature that needs a plain model, for the message.

        Raises:
            InputError: The model works on latents, or describes a class by several prompts.

        Example:
            >>> clf.model.check_plain("a Lipschitz certificate")
        """
        if self.latent_shape is not None:
            raise InputError(f"{what} needs a model of images, but {self.name} works on latents")
        if self.class_of not in ((), tuple(range(self.num_classes))):
            raise InputError(
                f"{what} needs one prompt per class, in class order, but {self.name} has {len(self.prompts)} prompts"
            )

    def calibration_for(self, plan: PlanConfig) -> Calibration | None:
        """The calibration that holds for a plan, or None.

        Args:
            plan: Configuration of the plan; its number of draws does not matter.

        Example:
            >>> from fastdc.diffusion import PlanConfig
            >>> clf.model.calibration_for(PlanConfig(draws=8, levels=(0.3, 3.0))) is None
            True
        """
        known = (self.calibration, *self.noised_calibrations)
        return next((found for found in known if found is not None and found.fits(plan)), None)

    def raced(self, calibration: Calibration) -> "Model":
        """The model with another calibration, which comes before those that it has: the first that fits a plan applies.

        Args:
            calibration: The calibration, for clean images or for noisy ones.

        Example:
            >>> clf.model.raced(clf.model.calibration) == clf.model
            True
        """
        if calibration.noised is None:
            return replace(self, calibration=calibration)
        return replace(
            self, noised_calibrations=(calibration, *self.noised_calibrations)
        )  # the first that fits applies

    @property
    def pixels(self) -> PixelRange:
        """The range of the model's pixel values, which converts images and noise from [0, 1] and back."""
        return PixelRange(*self.value_range)

    def noise_ratio(self, sigma: float) -> float:
        """The noise-to-signal ratio sigma / alpha, the unit of noise levels, of noise in a user's pixels.

        On a value range of [-1, 1] the ratio is 2 sigma, times the factor of a transform. On a variance-preserving
        schedule, without a transform, it belongs to the level with (1 - alpha_bar) / alpha_bar = (2 sigma)^2.

        Args:
            sigma: Standard deviation of the noise, in pixels in [0, 1].

        Example:
            >>> clf.model.noise_ratio(0.25)
            0.5
        """
        noise = self.pixels.noise(sigma)
        return noise if self.transform is None else noise * self.transform.factor

    def samples(self, images: Float32) -> Float32:
        """What the network works on, for images: their transform, or the images themselves.

        Args:
            images: float32 (..., c, h, w) in the model's value range. Latents are made by an encoder, not here.

        Returns:
            float32 ``(..., *sample_shape)``.

        Example:
            >>> clf.model.samples(np.zeros((3, 1, 8, 8), np.float32)).shape  # this model has no transform
            (3, 1, 8, 8)
        """
        return images if self.transform is None else self.transform.forward(images)
