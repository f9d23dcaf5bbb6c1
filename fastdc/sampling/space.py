"""The space that a sampler works in, and the way from a user's pixels to it and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastdc.backends import AbstractDecoder, AbstractEncoder
from fastdc.bundle import Model
from fastdc.support import BackendError, Float32, Float64, InputError, as_array, shown

Decoder: TypeAlias = Callable[[Float32], Float32]
"""Makes images (n, C, H, W) in the model's value range of latents, float32 (n, c, h, w)."""


@dataclass(frozen=True)
class Space:
    """The values that a model's network works on.

    Attributes:
        model: The model.
        decoder: Makes images of latents, for a model that works on latents; None: what the encoder knows, or none.
        encoder: Makes latents of images, for a model that works on latents; it may decode them as well.
    """

    model: Model
    decoder: Decoder | None = None
    encoder: AbstractEncoder | None = None

    def __post_init__(self) -> None:
        own: Any = self.encoder
        if self.decoder is None and isinstance(own, AbstractDecoder) and own.decodes:
            object.__setattr__(self, "decoder", own.decode)

    def check_pictures(self, what: str) -> None:
        """Refuses a model whose samples cannot be turned into pictures.

        Raises:
            InputError: The model works on latents, and there is no decoder; or the decoder has nothing to decode.
        """
        if self.model.latent_shape is not None and self.decoder is None:
            raise InputError(
                f"{what} gives pictures, but {self.model.name} works on latents and has no decoder: expected a bundle "
                "exported with --decoder, or the option decoder, a function from latents to images"
            )
        given: Any = self.decoder
        if given is not None and self.model.latent_shape is None:
            raise InputError(f"decoder is for a model of latents: expected none, as {self.model.name} works on images")
        if given is not None and not callable(given):
            raise InputError(f"decoder must be a function from latents to images, got {shown(given)}")

    def samples(self, x: Float32) -> Float64:
        """What the network works on, float64 ``(n, *sample_shape)``, of images (n, c, h, w) in its value range."""
        found = self.model.samples(x) if self.encoder is None else self.encoder.encode(x)
        return np.asarray(found, np.float64)

    def clipped(self, x: Float64, *, coefficients: bool = False) -> Float64:
        """Samples whose pixels are clipped to the model's value range; latents as they are.

        Args:
            x: float64 ``(n, *sample_shape)``.
            coefficients: Whether wavelet coefficients themselves are clipped to that range, not the pixels they make.
        """
        transform = self.model.transform
        if self.model.latent_shape is not None:
            return x
        if transform is None or coefficients:
            return np.clip(x, *self.model.value_range)
        return np.asarray(transform.forward(np.clip(transform.inverse(x), *self.model.value_range)))

    def pictures(self, x: Float64) -> Float32:
        """float32 (n, c, h, w) in [0, 1], clipped, from samples float64 ``(n, *sample_shape)``.

        Raises:
            BackendError: The decoder gives something else.
        """
        images = x if self.model.transform is None else self.model.transform.inverse(x)
        if self.decoder is not None:
            decoded = as_array(self.decoder(x.astype(np.float32)))
            wanted = (len(x), *self.model.image_shape)
            if decoded is None or decoded.shape != wanted or not np.all(np.isfinite(decoded)):
                got = "something else" if decoded is None else f"{decoded.shape}"
                raise BackendError(f"the decoder must give finite images of shape {wanted}, got {got}")
            images = decoded.astype(np.float64)
        return np.clip(self.model.pixels.to_unit(images), 0, 1).astype(np.float32)
