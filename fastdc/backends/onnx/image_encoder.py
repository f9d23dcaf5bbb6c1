"""The image encoder of a bundle in ONNX Runtime, and its decoder if it has one, for a few images at a time."""

from typing import Any

import numpy as np

from fastdc.backends.onnx.graphs import check_graph, evaluate, open_graph
from fastdc.backends.reopening import Reopened
from fastdc.bundle import DECODER, ENCODER, Bundle
from fastdc.support import BackendError, BundleError, Float32

BATCH = 4
"""Images encoded at a time: the activations of an encoder take tens of megabytes per image of 512 x 512."""


class OnnxEncoder(Reopened):
    """Encodes images with a bundle's ``encoder.onnx``; implements ``AbstractEncoder`` and ``AbstractDecoder``.

    Args:
        bundle: Bundle of a model that works on latents.
        threads: Number of threads inside the session; images are encoded one group after the other.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BundleError: The graph is corrupt, or its input and output are not those of an encoder.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._session: Any = open_graph(bundle, ENCODER, threads=threads)
        self._bundle, self._threads = bundle, threads
        self._decoding: Any = None  # opened when it is asked for: classification does not need it
        image, latent = (None, *bundle.model.image_shape), (None, *bundle.model.sample_shape)
        check_graph(bundle, ENCODER, self._session, [("pixels", "float", image)], [("latents", "float", latent)])

    def encode(self, images: Float32) -> Float32:
        """Latents float32 (n, c, h, w) of images float32 (n, C, H, W) in the model's value range.

        Raises:
            BackendError: ONNX Runtime fails, or a latent is not finite.
        """
        parts = [
            evaluate(self._session, {"pixels": images[start : start + BATCH]}, ENCODER)[0]
            for start in range(0, len(images), BATCH)
        ]
        latents: Float32 = np.concatenate(parts)
        if not np.all(np.isfinite(latents)):
            raise BackendError("the encoder's latents are not finite")
        return latents

    @property
    def decodes(self) -> bool:
        """Whether the bundle has a decoder."""
        return DECODER in self._bundle.manifest["files"]

    def decode(self, latents: Float32) -> Float32:
        """Images float32 (n, C, H, W) in the model's value range of latents float32 (n, c, h, w).

        Raises:
            BundleError: The bundle has no decoder, or it is corrupt.
            BackendError: ONNX Runtime fails, or a pixel is not finite.
        """
        if not self.decodes:
            raise BundleError(f"{self._bundle.path} has no {DECODER}: export it again with --decoder")
        if self._decoding is None:
            model = self._bundle.model
            image, latent = (None, *model.image_shape), (None, *model.sample_shape)
            session = open_graph(self._bundle, DECODER, threads=self._threads)
            check_graph(self._bundle, DECODER, session, [("latents", "float", latent)], [("pixels", "float", image)])
            self._decoding = session
        parts = [
            evaluate(self._decoding, {"latents": latents[start : start + BATCH]}, DECODER)[0]
            for start in range(0, len(latents), BATCH)
        ]
        images: Float32 = np.concatenate(parts)
        if not np.all(np.isfinite(images)):
            raise BackendError("the decoder's images are not finite")
        return images
