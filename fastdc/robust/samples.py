"""What the network works on, as a differentiable function of images in [0, 1]."""

from torch import Tensor

from fastdc.bundle import Model, torch_samples


def samples_of(model: Model, unit: Tensor) -> Tensor:
    """Images (n, c, h, w) in [0, 1] as the network sees them without noise, (n, *sample_shape)."""
    return torch_samples(model.transform, model.pixels.from_unit(unit))
