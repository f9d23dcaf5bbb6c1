"""What other methods show: gradient, integrated gradients and occlusion, computed by captum, as maps (n, h, w).

The score that is explained is a difference of logits, logit_class - logit_against, of any torch module that maps images
(n, c, h, w) in [0, 1] to logits: a diffusion classifier made differentiable (``fastdc.robust.as_module``, with a fixed
``stream``, because otherwise every changed image sees other noise) or an ordinary network.

    gradient               largest |d score / d x| of the channels (Simonyan et al., arXiv 1312.6034); not negative
    integrated_gradients   (x - baseline) times the mean gradient on the way from the baseline, summed over channels
                           (Sundararajan et al., arXiv 1703.01365); the sum of a map is score(x) - score(baseline)
    occlusion              fall of the score when a window is replaced by the baseline, averaged over the windows that
                           cover a pixel (Zeiler & Fergus, arXiv 1311.2901)
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastdc.explanation.perturbing import baseline_images, unit_images
from fastdc.support import Float64, Floats, InputError, Int64, checks, require

if TYPE_CHECKING:
    import torch

ATTRIBUTIONS = ("gradient", "integrated_gradients", "occlusion")


def attributions(
    module: "Callable[[torch.Tensor], torch.Tensor]",
    images: npt.ArrayLike,
    classes: npt.ArrayLike,
    against: npt.ArrayLike,
    *,
    method: str = "gradient",
    baseline: str | npt.ArrayLike = "blur",
    window: int = 3,
    steps: int = 32,
    chunk: int = 32,
) -> Float64:
    """Maps of the evidence for one class against another, float64 (n, h, w); see the module for their scales.

    Args:
        module: Function or torch module, float32 images (n, c, h, w) in [0, 1] -> logits (n, K), differentiable except
            for occlusion.
        images: uint8 levels or floats in [0, 1], (n, c, h, w).
        classes: The class that each map speaks for, int (n,).
        against: The class against it, int (n,).
        method: One of :data:`ATTRIBUTIONS`.
        baseline: What integrated gradients start from and occlusion puts in place, as in ``deletion``.
        window: Side of the occluding window in pixels; it moves by a third of it.
        steps: Number of gradients per image of integrated gradients.
        chunk: Number of images that the module is given at a time.

    Raises:
        InputError: An argument does not fit.
        MissingDependencyError: captum is not installed.

    Example:
        >>> from fastdc.explanation import attributions
        >>> from fastdc.robust import as_module
        >>> module = as_module(fastdc.load("digits-mlp", backend="torch"), draws=4, stream=0)
        >>> attributions(module, images[:2], [7, 9], [1, 4]).shape
        (2, 8, 8)
    """
    x = unit_images(images)
    method, other = checks.one_of("method", method, ATTRIBUTIONS), baseline_images(x, baseline)
    window = checks.whole("window", window, high=min(x.shape[2:]))
    steps, chunk = checks.whole("steps", steps), checks.whole("chunk", chunk)
    pairs = np.stack([_classes("classes", classes, len(x)), _classes("against", against, len(x))], axis=1)
    torch, captum = require("torch", extra="explain"), require("captum.attr", extra="explain")
    maker = _Maker(captum, _Score(module), method, window, steps, chunk)
    with torch.set_grad_enabled(method != "occlusion"):
        parts = [
            maker.maps(*(torch.from_numpy(np.ascontiguousarray(array[at : at + chunk])) for array in (x, other, pairs)))
            for at in range(0, len(x), chunk)
        ]
    return np.concatenate(parts).astype(np.float64)


class _Maker(NamedTuple):
    """One of captum's methods with its options."""

    captum: Any
    score: "_Score"
    method: str
    window: int
    steps: int
    chunk: int

    def maps(self, image: "torch.Tensor", base: "torch.Tensor", pairs: "torch.Tensor") -> Floats:
        """The maps of some images (m, c, h, w), float (m, h, w)."""
        if self.method == "gradient":
            way = self.captum.Saliency(self.score)
            found = way.attribute(image.requires_grad_(), abs=True, additional_forward_args=pairs).amax(dim=1)
        elif self.method == "occlusion":
            channels, stride = image.shape[1], max(1, self.window // 3)
            found = self.captum.Occlusion(self.score).attribute(
                image,
                (channels, self.window, self.window),
                strides=(channels, stride, stride),
                baselines=base,
                additional_forward_args=pairs,
                perturbations_per_eval=max(1, self.chunk // len(image)),
            )[:, 0]  # a window covers all channels, which get the same number
        else:
            options = {"n_steps": self.steps, "internal_batch_size": self.chunk, "additional_forward_args": pairs}
            found = self.captum.IntegratedGradients(self.score).attribute(image, baselines=base, **options).sum(dim=1)
        maps: Floats = found.detach().numpy()
        return maps


class _Score:
    """The difference of two logits, as captum calls it."""

    def __init__(self, module: "Callable[[torch.Tensor], torch.Tensor]") -> None:
        self._module = module

    def __call__(self, images: "torch.Tensor", pairs: "torch.Tensor") -> "torch.Tensor":
        logits = self._module(images)
        if logits.ndim != 2 or len(logits) != len(images) or int(pairs.max()) >= logits.shape[1]:
            wanted = f"({len(images)}, K) with K > {int(pairs.max())}"
            raise InputError(f"module must return logits of shape {wanted}, got {tuple(logits.shape)}")
        chosen = logits.gather(1, pairs)
        return chosen[:, 0] - chosen[:, 1]


def _classes(name: str, values: npt.ArrayLike, count: int) -> Int64:
    array = np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "iu" or array.min() < 0:
        raise InputError(f"{name} must be {count} class numbers from 0, one for each image, got shape {array.shape}")
    return array.astype(np.int64)
