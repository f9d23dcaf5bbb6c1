"""What a model's network works on, as a differentiable torch function of images."""

from fastdc.bundle.haar import HaarTransform
from fastdc.support import require

require("torch", extra="train")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402


def torch_samples(transform: HaarTransform | None, x: Tensor) -> Tensor:
    """The transform of images, equal to the bit to ``HaarTransform.forward`` of the same float32 images.

    Args:
        transform: A model's transform; None: images stay as they are.
        x: Images (..., c, h, w) in the model's value range, h and w even.

    Returns:
        (..., 4c, h/2, w/2), or the images.

    Example:
        >>> import torch
        >>> from fastdc.bundle import HaarTransform, torch_samples
        >>> torch_samples(HaarTransform(0.5), torch.ones(1, 2, 2)).flatten()
        tensor([1., 0., 0., 0.])
    """
    if transform is None:
        return x
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    both = (top + bottom, top - bottom)
    sums, differences = ([step(r[..., 0::2], r[..., 1::2]) for r in both] for step in (torch.add, torch.sub))
    four = torch.stack([*sums, *differences], dim=-3) * (transform.factor / 2)
    return four.flatten(-4, -3)
