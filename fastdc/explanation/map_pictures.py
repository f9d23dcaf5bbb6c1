"""Maps as pictures, for pages and figures.

What speaks for a class is blue, what speaks against it orange, zero is neutral: colours that most colour-blind people
tell apart (Okabe & Ito, "Color universal design", 2008). Differences of brightness are no evidence and have colours of
their own: brighter pixels are green, darker ones purple (PRGn of ColorBrewer, which they tell apart, too). The strength
of a colour grows with the square root of a value, so that small ones can be seen; values beyond the scale have the full
colour.
"""

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, Floats, Mask, html_pages

Picture = npt.NDArray[np.uint8]

GREEN, PURPLE = (27, 120, 55), (118, 42, 131)
"""Brighter and darker: RGB in 0 ... 255."""

_NEUTRAL = 240.0
_GREY = (60.0, 180.0)  # black and white of an image below colours, so that both colours stand out


def scale_of(maps: Floats) -> float:
    """The value that has the full colour: the 99th percentile of the magnitudes, of all pixels given; at least tiny.

    Example:
        >>> from fastdc.explanation import scale_of
        >>> round(scale_of(np.linspace(-1, 1, 201)), 2)
        0.99
    """
    size = np.abs(maps[np.isfinite(maps)])
    return max(float(np.quantile(size, 0.99)) if size.size else 0.0, 1e-30)


def signed_picture(values: Floats, scale: float) -> Picture:
    """A map (h, w) as a picture, uint8 (h, w, 3).

    Args:
        values: The map.
        scale: The value that has the full colour.

    Example:
        >>> from fastdc.explanation import signed_picture
        >>> signed_picture(np.array([[0.0, 2.0, -2.0]]), 2.0)[0].tolist()
        [[240, 240, 240], [0, 114, 178], [213, 94, 0]]
    """
    return _coloured(values, _strength(values, scale), np.full((*values.shape, 3), _NEUTRAL))


def brightness_picture(values: Floats, scale: float) -> Picture:
    """A difference of two pictures (h, w) as a picture, uint8 (h, w, 3): green where it is brighter, purple if darker.

    Args:
        values: The difference.
        scale: The value that has the full colour.

    Example:
        >>> from fastdc.explanation import brightness_picture
        >>> brightness_picture(np.array([[0.0, 2.0, -2.0]]), 2.0)[0].tolist()
        [[240, 240, 240], [27, 120, 55], [118, 42, 131]]
    """
    below = np.full((*values.shape, 3), _NEUTRAL)
    return _coloured(values, _strength(values, scale), below, colours=(GREEN, PURPLE))


def overlay_picture(image: npt.NDArray[np.generic], values: Floats, significant: Mask, scale: float) -> Picture:
    """The significant pixels of a map over the image in grey, uint8 (h, w, 3); where none are, the image alone.

    Args:
        image: uint8, or float in [0, 1], (c, h, w).
        values: The map (h, w).
        significant: Which of its pixels are significant (h, w).
        scale: The value that has the full colour.

    Example:
        >>> from fastdc.explanation import overlay_picture
        >>> overlay_picture(images[0], np.ones((8, 8)), np.ones((8, 8), bool), 1.0)[0, 0].tolist()
        [0, 114, 178]
    """
    grey = html_pages.picture(image).astype(np.float64)
    grey = grey if grey.ndim == 2 else grey @ np.array([0.299, 0.587, 0.114])
    low, high = _GREY
    below = np.repeat((low + grey * (high - low) / 255)[:, :, None], 3, axis=2)
    return _coloured(values, np.where(significant, np.maximum(_strength(values, scale), 0.25), 0.0), below)


def width_picture(half_widths: Floats, scale: float) -> Picture:
    """Half widths of intervals (h, w): white is 0, black the scale or more; unknown ones are neutral."""
    known = np.nan_to_num(half_widths.astype(np.float64), nan=0.0, posinf=scale)
    return np.rint(255 * (1 - np.clip(known / scale, 0, 1))).astype(np.uint8)


def _strength(values: Floats, scale: float) -> Float64:
    return np.asarray(np.sqrt(np.clip(np.abs(values.astype(np.float64)) / scale, 0, 1)))


def _coloured(
    values: Floats,
    strength: Float64,
    below: Float64,
    *,
    colours: tuple[tuple[int, int, int], tuple[int, int, int]] = (html_pages.BLUE, html_pages.ORANGE),
) -> Picture:
    colour = np.where((values > 0)[:, :, None], np.array(colours[0]), np.array(colours[1]))
    return np.rint(below + strength[:, :, None] * (colour - below)).astype(np.uint8)
