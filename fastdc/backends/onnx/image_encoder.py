"""The encoder of a bundle in ONNX Runtime: images to latents, a few at a time."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.onnx.graphs import check_graph, open_graph, run
from fastdc.bundle import ENCODER, Bundle
from fastdc.support import BackendError

_BATCH = 4  # an encoder's activations are large: tens of megabytes an image of 512 x 512


class OnnxEncoder:
    """See ``base.AbstractEncoder``.

    Args:
        bundle: Of a model that works on latents.
        threads: Inside the session: images come one after the other.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BundleError: The graph is corrupt, or its input and output are not those of an encoder.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._session: Any = open_graph(bundle, ENCODER, threads=threads)
        image, latent = (None, *bundle.model.image_shape), (None, *bundle.model.sample_shape)
        check_graph(bundle, ENCODER, self._session, [("pixels", "float", image)], [("latents", "float", latent)])

    def encode(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See ``base.AbstractEncoder``.

        Raises:
            BackendError: ONNX Runtime fails, or a latent is not finite.
        """
        parts = [
            run(self._session, {"pixels": images[start : start + _BATCH]}, ENCODER)[0]
            for start in range(0, len(images), _BATCH)
        ]
        latents: npt.NDArray[np.float32] = np.concatenate(parts)
        if not np.all(np.isfinite(latents)):
            raise BackendError("the encoder's latents are not finite")
        return latents


class ModuleEncoder:
    """An encoder that is a torch module, for models that were not exported; see ``base.AbstractEncoder``.

    Args:
        module: forward(images float32 (b, C, H, W)) -> latents (b, c, h, w).
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def encode(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See ``base.AbstractEncoder``."""
        import torch

        with torch.inference_mode():
            parts = [self._module(part).float().cpu() for part in torch.split(torch.from_numpy(images), _BATCH)]
        latents: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        return latents
