"""The image encoder of a bundle in ONNX Runtime: makes latents of images, a few at a time."""

from typing import Any

import numpy as np

from fastdc.backends.onnx.graphs import check_graph, evaluate, open_graph
from fastdc.backends.reopening import Reopened
from fastdc.bundle import ENCODER, Bundle
from fastdc.support import BackendError, Float32

BATCH = 4
"""Images encoded at a time: the activations of an encoder take tens of megabytes per image of 512 x 512."""


class OnnxEncoder(Reopened):
    """Encodes images with a bundle's ``encoder.onnx``; implements ``AbstractEncoder``.

    Args:
        bundle: Bundle of a model that works on latents.
        threads: Number of threads inside the session; images are encoded one group after the other.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BundleError: The graph is corrupt, or its input and output are not those of an encoder.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._session: Any = open_graph(bundle, ENCODER, threads=threads)
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
