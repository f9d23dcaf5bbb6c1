"""The other model that makes h(x_tau), the estimate of the clean image, where the classifier has no "no class".

Its schedule, parameterisation, pixel range and transform are its own. On its scale the image's noise is tau' =
tau w' / w, with w and w' what noise of deviation 1 in pixels in [0, 1] is on the two scales; its denoising row is made
for the level of its own schedule whose noise-to-signal ratio is nearest to tau'.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastdc.backends import AbstractNetwork
from fastdc.bundle import Model
from fastdc.diffusion import MEAN, PlanConfig, make_plan, method_of
from fastdc.engine import Denoiser, Turn, device_name
from fastdc.support import Float32, InputError, shown


class AbstractDenoiser(Protocol):
    """What a denoiser is asked for; a :class:`fastdc.DiffusionClassifier` has it."""

    @property
    def model(self) -> Model:
        """The model."""

    @property
    def networks(self) -> tuple[AbstractNetwork, ...]:
        """Its network on every device, one or more."""


@dataclass(frozen=True, eq=False)
class OtherDenoiser:
    """Another model as the denoiser of a classifier's images.

    Attributes:
        model: The other model.
        networks: Its network on each device.
        images: The classifier's model, whose pixel values the images have.
    """

    model: Model
    networks: tuple[AbstractNetwork, ...]
    images: Model
    _each: tuple[Denoiser, ...] = field(repr=False)

    @classmethod
    def of(
        cls,
        given: AbstractDenoiser | str | None,
        model: Model,
        networks: Sequence[AbstractNetwork],
        config: PlanConfig,
    ) -> "OtherDenoiser | None":
        """The denoiser of a plan; None if the model itself denoises, or nothing does.

        Raises:
            InputError: The model is to denoise without a class and cannot, the networks are the classifier's own, or
                the denoiser's schedule does not reach the noise.
        """
        if given is None and method_of(config.method).denoises:
            _check_own(model, config.method)
        if given is None or isinstance(given, str):
            return None
        other = given.model
        if set(map(id, given.networks)) & set(map(id, networks)):
            raise InputError(f"denoiser {other.name} is the classifier itself: expected another one, or no denoiser")
        tau = config.noise * other.noise_ratio(1.0) / model.noise_ratio(1.0)
        try:
            plan = make_plan(other.schedule, other.parameterization, PlanConfig(draws=1, method="denoised", noise=tau))
        except InputError as error:
            raise InputError(f"denoiser {other.name}: {error}") from None
        label = 0 if other.null_class is None else other.null_class
        each = tuple(Denoiser(network, other.sample_shape, plan, label) for network in given.networks)
        return cls(other, given.networks, model, each)

    @property
    def room(self) -> int:
        """Number of images that fill the steps of a call."""
        return sum(one.room for one in self._each)

    def __call__(self, x: Float32, *, held: bool = False) -> Float32:
        """Estimates of the clean images, of noisy ones x; both float32 (n, c, h, w) on the classifier's range.

        Args:
            x: The noisy images.
            held: Whether the caller has the networks' turn; otherwise the call waits for its own.

        Raises:
            BackendError: The network fails, or the thread would wait for a run of its own.
        """
        return self._denoised(x) if held else Turn(self.networks).call(lambda: self._denoised(x))

    def _denoised(self, x: Float32) -> Float32:
        ours, theirs = self.images.pixels, self.model.pixels
        if ours != theirs:
            x = theirs.from_unit(ours.to_unit(x))
        x = self.model.samples(x)
        if len(self._each) == 1:
            denoised = self._each[0](x)
        else:
            parts = [part for part in np.array_split(x, len(self._each)) if len(part)]
            with ThreadPoolExecutor(len(parts)) as threads:
                denoised = np.concatenate(list(threads.map(lambda one, part: one(part), self._each, parts)))
        if self.model.transform is not None:
            denoised = self.model.transform.inverse(denoised)
        return denoised if ours == theirs else ours.from_unit(theirs.to_unit(denoised))

    def describe(self) -> dict[str, Any]:
        """Everything that reproduces the denoiser, as plain values."""
        network = self.networks[0]
        return {
            "model": self.model.name,
            "sha256": self.model.identity,
            "backend": network.backend,
            "device": device_name(self.networks),
            "precision": network.precision,
        }


def denoiser_name(given: AbstractDenoiser | str) -> str:
    """The name of a denoiser in a plan: ``diffusion.MEAN``, or the exact model's."""
    return given if isinstance(given, str) else given.model.identity or f"model {given.model.name}"


def check_denoiser(given: AbstractDenoiser | str, model: Model) -> None:
    """Refuses what cannot denoise the images of a model.

    Raises:
        InputError: It is neither "mean" nor a classifier; or that works on latents or images of another shape, or
            always needs one of several classes.
    """
    if isinstance(given, str) and given == MEAN:
        return
    other = getattr(given, "model", None)
    if not isinstance(other, Model) or not hasattr(given, "networks"):
        raise InputError(f'denoiser must be a classifier, such as fastdc.load returns, or "{MEAN}", got {shown(given)}')
    if other.latent_shape is not None:
        raise InputError(f"denoiser {other.name} works on latents: expected a model of images")
    if other.image_shape != model.image_shape:
        raise InputError(
            f"denoiser {other.name} takes images of shape {other.image_shape}: expected those of {model.name}, "
            f"{model.image_shape}"
        )
    if other.null_class is None and len(other.conditions) > 1:
        raise InputError(
            f"denoiser {other.name} always needs one of {len(other.conditions)} classes: expected an unconditional "
            "model or one with a null class"
        )


def _check_own(model: Model, method: str) -> None:
    """Refuses a method that denoises without a class, for a model that always needs one.

    Raises:
        InputError: The model has several classes and no null class.
    """
    if model.null_class is None and len(model.conditions) > 1:
        raise InputError(
            f"method {method} denoises without a class, and {model.name} has no null class: use method epndc or dc, or "
            f'give a denoiser (--denoiser), an unconditional model of such images or "{MEAN}" for the mean over classes'
        )
