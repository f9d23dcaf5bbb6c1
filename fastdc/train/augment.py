"""Random changes of training images that keep their class: a few named sets of them.

    geometry    x'(p) = x(c + s R(a) (p - c) + t)        p: a pixel's position, c: the centre of the image
    intensity   x' = m + contrast (x - m) + brightness   m: the mean of the image; saturation: the same about its grey

Each image has its own angle a, side s of the crop and shift t, uniform in the set's ranges, in one bilinear resampling
(``grid_sample``); beyond the edge, the pixels of the edge repeat. Without crops, shifts are whole pixels, so that they
alone blur nothing. The result is clamped to [-1, 1]. All numbers come from torch's global generator.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastdc.train.config import AUGMENTATIONS


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A set of changes.

    Attributes:
        flip: Whether half of the images are mirrored left to right.
        degrees: Largest angle of a rotation, to either side.
        shift: Largest shift to either side, as a fraction of the image's sides.
        crop: Smallest side of a square crop, as a fraction of the image's, which is enlarged to the whole.
        jitter: Largest relative change of contrast and saturation, and half the largest change of brightness.
    """

    flip: bool = False
    degrees: float = 0.0
    shift: float = 0.0
    crop: float = 1.0
    jitter: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Changes images in [-1, 1], float32 (b, c, h, w)."""
        if self.flip:
            mirrored = torch.rand(len(x), device=x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if self.degrees or self.shift or self.crop < 1:
            x = self._moved(x)
        if self.jitter:
            x = self._jittered(x)
        return x

    def _moved(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        angle, size, across, down = torch.rand(4, b, device=x.device)
        angle = math.radians(self.degrees) * (2 * angle - 1)
        scale = 1 - (1 - self.crop) * size
        reach = self.shift + (1 - scale) / 2  # of the centre, as a fraction of the sides: a crop lies inside the image
        shifts = [(2 * part - 1) * reach * side for part, side in ((across, w), (down, h))]
        if self.crop == 1:
            shifts = [part.round() for part in shifts]
        return resampled(x, angle, scale, *shifts)

    def _jittered(self, x: Tensor) -> Tensor:
        contrast, brightness, saturation = self.jitter * (2 * torch.rand(3, len(x), 1, 1, 1, device=x.device) - 1)
        if x.shape[1] == 3:
            grey = x.mean(1, keepdim=True)
            x = grey + (1 + saturation) * (x - grey)
        mean = x.mean((1, 2, 3), keepdim=True)
        changed: Tensor = mean + (1 + contrast) * (x - mean) + 2 * brightness
        return changed.clamp(-1, 1)


def resampled(x: Tensor, angle: Tensor, scale: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Images whose pixel p is that of x at c + scale R(angle) (p - c) + (across, down).

    Args:
        x: Images, float32 (b, c, h, w).
        angle: Angle of R in radians, (b,).
        scale: Side of the part that is seen, as a fraction, (b,).
        across: Shift of that part in pixels to the right, (b,).
        down: The same, downwards.
    """
    h, w = x.shape[2:]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # In the coordinates of affine_grid, both sides reach from -1 to 1.
    right = torch.stack([cos, -sin * h / w, 2 * across / w], 1)
    bottom = torch.stack([sin * w / h, cos, 2 * down / h], 1)
    grid = functional.affine_grid(torch.stack([right, bottom], 1), list(x.shape), align_corners=False)
    moved: Tensor = functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved


_SETS = {
    "none": Augmentation(),
    "flip": Augmentation(flip=True),
    "shift": Augmentation(shift=0.1),
    "photo": Augmentation(flip=True, crop=0.8, jitter=0.1),
    "medical": Augmentation(degrees=10.0, shift=0.05, jitter=0.1),
}
assert tuple(_SETS) == AUGMENTATIONS


def augmentation(name: str, *, flip: bool) -> Augmentation:
    """The set of a name in ``config.AUGMENTATIONS``, with mirrored images too if `flip`."""
    found = _SETS[name]
    return Augmentation(**{**vars(found), "flip": found.flip or flip})
