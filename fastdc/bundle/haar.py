"""The Haar wavelet as the input transform of a model: images become coefficients, on which the network works.

Each block of 2 x 2 pixels [[p, q], [r, s]] of a channel becomes four coefficients at the block's place:

    A = (p + q + r + s) / 2,  H = (p + q - r - s) / 2,  V = (p - q + r - s) / 2,  D = (p - q - r + s) / 2

which are all multiplied by a factor f: y = f W x with W orthonormal, and so x = W^T y / f. They are the coefficients
cA, cH, cV and cD of ``pywt.dwt2(x, "haar")``; diffusion models of large images have worked on them (Hoogeboom et al.,
arXiv 2301.11093, section 3.3), at f = 1/2 for images in [-1, 1] in the medical classifier of Favero et al. (arXiv
2502.03687), so that cA stays in that range.

Lengths are multiplied by f, and noise N(0, sigma^2 I) becomes noise N(0, f^2 sigma^2 I). So all that is stated in
pixels, such as the noise of noisy images and the radius of a certificate, holds for the images themselves.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastdc.support import InputError, checks, shown

Floats = TypeVar("Floats", npt.NDArray[np.float32], npt.NDArray[np.float64])

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class HaarTransform:
    """One level of the Haar wavelet per channel, times a factor.

    Channel k of an image becomes the channels 4k to 4k + 3, which are cA, cH, cV and cD.

    Attributes:
        factor: Factor f of all coefficients, positive; lengths and deviations of noise are multiplied by it.
    """

    factor: float = 0.5

    def __post_init__(self) -> None:
        checks.positive("factor", self.factor)

    def shape(self, image: Shape) -> Shape:
        """Shape (4c, h/2, w/2) of the coefficients of images of shape (c, h, w).

        Args:
            image: (c, h, w).

        Raises:
            InputError: A side is odd.
        """
        channels, height, width = image
        if height % 2 or width % 2:
            raise InputError(f"the haar transform needs images of even height and width, got {height}x{width}")
        return 4 * channels, height // 2, width // 2

    def forward(self, images: Floats) -> Floats:
        """Coefficients of images.

        Args:
            images: float (..., c, h, w), h and w even, in the model's value range.

        Returns:
            (..., 4c, h/2, w/2) of the same type, contiguous.

        Raises:
            InputError: A side is odd.

        Example:
            >>> from fastdc.bundle import HaarTransform
            >>> HaarTransform(factor=0.5).forward(np.ones((1, 2, 2))).ravel()
            array([1., 0., 0., 0.])
        """
        *leading, channels, height, width = images.shape
        shape = self.shape((channels, height, width))
        top, bottom = images[..., 0::2, :], images[..., 1::2, :]
        total, change = top + bottom, top - bottom
        average, rows = total[..., 0::2] + total[..., 1::2], change[..., 0::2] + change[..., 1::2]
        columns, both = total[..., 0::2] - total[..., 1::2], change[..., 0::2] - change[..., 1::2]
        stacked = np.stack([average, rows, columns, both], axis=-3)  # cA, cH, cV, cD of each channel
        return np.ascontiguousarray((stacked * images.dtype.type(self.factor / 2)).reshape(*leading, *shape))

    def inverse(self, coefficients: Floats) -> Floats:
        """Images of coefficients: the reverse of :meth:`forward`, up to rounding.

        A map of residuals on the coefficients thus becomes the residuals of the pixels.

        Args:
            coefficients: float (..., 4c, h/2, w/2).

        Returns:
            (..., c, h, w) of the same type, contiguous.

        Raises:
            InputError: The number of channels is no multiple of four.

        Example:
            >>> from fastdc.bundle import HaarTransform
            >>> haar = HaarTransform(factor=0.5)
            >>> haar.inverse(haar.forward(images[:1] / 255)).shape
            (1, 1, 8, 8)
        """
        *leading, channels, height, width = coefficients.shape
        if channels % 4:
            raise InputError(f"haar coefficients have a multiple of four channels, got {channels}")
        four = coefficients.reshape(*leading, channels // 4, 4, height, width)
        low, rows, columns, both = (four[..., k, :, :] for k in range(4))
        images = np.empty((*leading, channels // 4, 2 * height, 2 * width), coefficients.dtype)
        for row, sign in ((0, 1), (1, -1)):
            even, odd = low + sign * rows, columns + sign * both
            images[..., row::2, 0::2], images[..., row::2, 1::2] = even + odd, even - odd
        images *= coefficients.dtype.type(1 / (2 * self.factor))
        return images

    def to_dict(self) -> dict[str, Any]:
        """The entry of a bundle's manifest."""
        return {"kind": "haar", "factor": self.factor}


def transform_from_dict(entry: dict[str, Any]) -> HaarTransform:
    """The transform of a manifest entry.

    Args:
        entry: Entry such as {"kind": "haar", "factor": 0.5}.

    Raises:
        InputError: The kind or the factor is not valid.

    Example:
        >>> from fastdc.bundle import transform_from_dict
        >>> transform_from_dict({"kind": "haar", "factor": 0.5})
        HaarTransform(factor=0.5)
    """
    factor = entry.get("factor")
    if set(entry) != {"kind", "factor"} or entry["kind"] != "haar" or not checks.is_number(factor):
        raise InputError(f'transform must be {{"kind": "haar", "factor"}}, got {shown(entry)}')
    return HaarTransform(float(factor))
