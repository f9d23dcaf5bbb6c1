"""What the network works on, as a differentiable function of images: the model's range of values, and its transform."""

import torch
from torch import Tensor

from fastdc.bundle import Model


def samples_of(model: Model, unit: Tensor) -> Tensor:
    """Images as the network sees them without noise; equal to the bit to ``Model.samples`` of the same float32 images.

    Args:
        model: A model of images.
        unit: Images (n, c, h, w) in [0, 1].

    Returns:
        (n, *sample_shape), in the model's value range or as its coefficients.
    """
    return transformed(model, model.pixels.from_unit(unit))


def transformed(model: Model, x: Tensor) -> Tensor:
    """Images (n, c, h, w) in the model's value range, transformed if the model has a transform."""
    if model.transform is None:
        return x
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    both = (top + bottom, top - bottom)
    sums, differences = ([step(r[..., 0::2], r[..., 1::2]) for r in both] for step in (torch.add, torch.sub))
    four = torch.stack([*sums, *differences], dim=-3) * (model.transform.factor / 2)
    return four.reshape(len(x), *model.sample_shape).contiguous()
