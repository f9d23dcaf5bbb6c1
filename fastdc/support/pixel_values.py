"""Images in memory as a user holds them: NumPy arrays or torch tensors, uint8 or float in [0, 1].

torch is never imported here: a caller who passes a tensor has imported it.
"""

import math
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.support.exceptions import InputError
from fastdc.support.messages import one_line

FITS = ("crop", "stretch")
"""How pictures come to a height and width: resized to cover them and the centre cropped, or resized as a whole."""


class UsualWindow(NamedTuple):
    """The window of a model, in place of one that a user gives: for images whose values have no other meaning.

    Attributes:
        low: The value that is black.
        high: The value that is white.

    Example:
        >>> from fastdc.support import UsualWindow
        >>> UsualWindow(0.0, 4095.0).leaves(0.1, 0.9), UsualWindow(0.0, 4095.0).leaves(12, 3000)
        (True, False)
    """

    low: float
    high: float

    def leaves(self, low: float, high: float) -> bool:
        """Whether floats from `low` to `high` stay as they are: in [0, 1], unless the window itself lies there."""
        return 0 <= low <= high <= 1 and not 0 <= self.low < self.high <= 1


def as_array(images: object) -> NDArray[Any] | None:
    """A NumPy array, or a torch tensor of any device as one; None for anything else.

    Memory is shared, a tensor's if it is on the CPU. Arrays of a subclass, such as ``numpy.matrix``, become plain ones.

    Example:
        >>> from fastdc.support import as_array
        >>> as_array("photo.png") is None
        True

    Raises:
        InputError: A tensor has no values that NumPy can hold, or an array hides values behind a mask.
    """
    if isinstance(images, np.ndarray):
        if type(images) is not np.ndarray and np.ma.is_masked(images):
            raise InputError("masked values cannot be used: fill them first, as array.filled(0) does")
        return np.asarray(images)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(images, torch.Tensor):
        return None
    try:
        tensor = images.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # exact in float32, and unknown to NumPy
            tensor = tensor.float()
        array: NDArray[Any] = tensor.numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantized, without storage
        kind = f"{images.dtype}, {images.layout} on {images.device}"
        raise InputError(f"images must be plain tensors, got one of {kind}: {one_line(error)}") from None
    return array


def as_pixels(array: NDArray[Any], name: str = "images", *, bounded: bool = True) -> NDArray[Any]:
    """Images as uint8, which stay as they are, or as float32.

    Args:
        array: Images of any shape, uint8 or float in [0, 1]; the first axis counts them in messages.
        name: Name of the images in messages.
        bounded: Whether floats outside [0, 1] are refused.

    Example:
        >>> from fastdc.support import as_pixels
        >>> as_pixels(np.ones((1, 1, 8, 8))).dtype
        dtype('float32')

    Raises:
        InputError: Another type, a value that is not finite, or one outside [0, 1] if `bounded`.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        found = f"{array.dtype} from {array.min()} to {array.max()}" if array.dtype.kind in "iu" else str(array.dtype)
        raise InputError(f"{name} must be uint8 or float in [0, 1], got {found}{_way_out(array)}")
    if not np.all(np.isfinite(array)):
        index = np.argwhere(~np.isfinite(array))[0]
        raise InputError(f"{name} must be finite, got {array[tuple(index)]} in image {index[0]}")
    with np.errstate(over="ignore"):  # a value that float32 cannot hold is outside the range, which comes next
        unit = array.astype(np.float32)
    if not bounded:
        if not np.all(np.isfinite(unit)):
            raise InputError(f"{name} must fit into float32, got {np.abs(array).max():.4g}")
        return unit
    if unit.min() < 0 or unit.max() > 1:
        hint = _way_out(array) if unit.max() > 1.5 or unit.min() < -0.01 else ""
        raise InputError(f"float {name} must be in [0, 1], got [{unit.min():.4g}, {unit.max():.4g}]{hint}")
    return unit


def full_scale(high: float) -> float:
    """The largest value of as many bits as `high` takes, at least 8: what white may be.

    Example:
        >>> from fastdc.support import full_scale
        >>> full_scale(3000)
        4095.0
    """
    if not 0 < high < 2**53:
        return max(high, 255.0)
    return float(2 ** max(8, math.ceil(math.log2(high + 1))) - 1)


def _way_out(array: NDArray[Any]) -> str:
    """How to map images of other numbers to [0, 1], for a message."""
    if array.dtype.kind not in "iufb":
        return ""
    if array.min() >= 0 and array.max() <= 1:
        return ": convert them, as images.astype('float32') does"
    if array.min() < 0:
        black = -1 if array.min() >= -1 and array.max() <= 1 else "BLACK"
        white = 1 if black == -1 else "WHITE"
        return f": map black to 0 and white to 1, or give window=({black}, {white})"
    white = f"{full_scale(float(array.max())):.15g}"
    return f": divide by the value of white, such as (images / {white}).astype('float32'), or give window=(0, {white})"
