"""User images into model images: checked once, at the entrance, before any work starts.

A user's image is uint8 in 0 ... 255 or float in [0, 1]; the network's is float32 in its own range
(:class:`fastdc.bundle.PixelRange`). :class:`Images` keeps both views, and the noise stream of each image.
"""

import hashlib
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model, PixelRange
from fastdc.support import Float32, InputError, Int64


@dataclass(frozen=True, eq=False)
class Images:
    """Images that were checked, in both of their scales, with their noise streams.

    Attributes:
        given: uint8, or float32 in [0, 1], (n, c, h, w): the user's images.
        x: float32 (n, c, h, w) in the model's value range.
        streams: int64 (n,), names the noise of each image.
    """

    given: npt.NDArray[Any] = field(repr=False)
    x: Float32 = field(repr=False)
    streams: Int64

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.x)

    @property
    def unit(self) -> Float32:
        """The images in [0, 1], float32 (n, c, h, w): what a prefilter and a foreign classifier see."""
        return _unit(self.given)

    def on(self, pixels: PixelRange) -> Float32:
        """The images in another range of pixel values, float32 (n, c, h, w)."""
        return pixels.from_unit(self.unit)


def prepare(images: Any, model: Model, streams: Any = None, *, bounded: bool = True) -> Images:
    """Checks images and names their noise.

    Args:
        images: (n, c, h, w) with the model's (c, h, w) and n > 0: uint8, or float in [0, 1]; NumPy or torch on the CPU.
        model: The model.
        streams: Noise stream of each image, n whole numbers in [0, 2^56); None: :func:`streams_of`.
        bounded: Whether float images outside [0, 1] are refused. An optimizer may step outside for a moment.

    Example:
        >>> from fastdc.inference import prepare
        >>> prepare(images, clf.model).x.shape
        (20, 1, 8, 8)

    Raises:
        InputError: Wrong type, shape, range, NaN, or no image.
    """
    given = _checked(images, model, bounded)
    x = np.ascontiguousarray(model.pixels.from_unit(_unit(given)))
    return Images(given, x, streams_of(x) if streams is None else check_streams(streams, len(x)))


def to_model_range(images: Any, model: Model) -> Float32:
    """Images for a model's network, float32 (n, c, h, w) in the model's value range.

    Args:
        images: See :func:`prepare`.
        model: The model.

    Example:
        >>> from fastdc.inference import to_model_range
        >>> x = to_model_range(images, clf.model)
        >>> (float(x.min()), float(x.max()))
        (-1.0, 1.0)

    Raises:
        InputError: Wrong type, shape, range, NaN, or no image.
    """
    return np.ascontiguousarray(model.pixels.from_unit(_unit(_checked(images, model))))


def streams_of(images: Float32) -> Int64:
    """The default noise stream of each image: the first 56 bits of the BLAKE2b hash of its pixels, int64 (n,).

    An image therefore sees the same noise in any batch, order, shard or process. Equal images get equal results, and
    different images get independent noise.

    Args:
        images: float32 (n, c, h, w) as :func:`to_model_range` makes them.

    Example:
        >>> from fastdc.inference import streams_of
        >>> streams_of(np.zeros((1, 1, 8, 8), np.float32)).shape
        (1,)
    """
    digests = (hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=7).digest() for image in images)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.int64)


def check_streams(streams: Any, count: int) -> Int64:
    """Streams given by a user: whole numbers in [0, 2^56), one per image.

    Example:
        >>> from fastdc.inference import check_streams
        >>> check_streams([7, 8], 2)
        array([7, 8])

    Raises:
        InputError: Wrong type, shape or range.
    """
    try:
        array = np.asarray(streams)
    except ValueError:  # lists of different lengths
        raise InputError(f"streams must be {count} whole numbers, got a ragged list") from None
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise InputError(f"streams must be {count} whole numbers, got {array.dtype} of shape {array.shape}")
    if count and (array.min() < 0 or int(array.max()) >= 2**56):
        raise InputError(f"streams must be in [0, 2^56), got [{array.min()}, {array.max()}]")
    return array.astype(np.int64)


def _checked(images: Any, model: Model, bounded: bool = True) -> npt.NDArray[Any]:
    """The images as uint8, or as float32, in [0, 1] if `bounded`."""
    array = _as_numpy(images)
    shape = model.image_shape
    if array.ndim == 3 and array.shape == shape:
        raise InputError(f"images must have shape (n, {', '.join(map(str, shape))}), got one image: pass images[None]")
    if array.ndim != 4 or array.shape[1:] != shape:
        raise InputError(f"images must have shape (n, {', '.join(map(str, shape))}), got {array.shape}")
    if len(array) == 0:
        raise InputError("images is empty: expected at least one image")
    if array.dtype == np.uint8:
        return array
    if array.dtype not in (np.float16, np.float32, np.float64):
        found = f"{array.dtype} from {array.min()} to {array.max()}" if array.dtype.kind in "iu" else str(array.dtype)
        raise InputError(f"images must be uint8 or float in [0, 1], got {found}{_way_out(array)}")
    if not np.all(np.isfinite(array)):
        index = np.argwhere(~np.isfinite(array))[0]
        raise InputError(f"images must be finite, got {array[tuple(index)]} in image {index[0]}")
    with np.errstate(over="ignore"):  # a value that float32 cannot hold is outside the range, which comes next
        unit = array.astype(np.float32)
    if not bounded:
        if not np.all(np.isfinite(unit)):
            raise InputError(f"images must fit into float32, got {np.abs(array).max():.4g}")
        return unit
    if unit.min() < 0 or unit.max() > 1:
        hint = _way_out(array) if unit.max() > 1.5 else ""
        raise InputError(f"float images must be in [0, 1], got [{unit.min():.4g}, {unit.max():.4g}]{hint}")
    return unit


def _unit(checked: npt.NDArray[Any]) -> Float32:
    """Checked images as float32 in [0, 1]."""
    if checked.dtype == np.uint8:
        return checked.astype(np.float32) / np.float32(255)
    return checked


def _way_out(array: npt.NDArray[Any]) -> str:
    """How to map images of other numbers to [0, 1], for a message."""
    if array.dtype.kind not in "iuf":
        return ""
    from fastdc.data import full_scale  # which loads Pillow

    if array.min() < 0:
        return ": map black to 0 and white to 1"
    white = f"{full_scale(float(array.max())):.15g}"
    return f": divide by the value of white, such as (images / {white}).astype('float32')"


def _as_numpy(images: Any) -> npt.NDArray[Any]:
    if isinstance(images, np.ndarray):
        return images
    torch = sys.modules.get("torch")  # a caller who passes a tensor has imported it
    if torch is not None and isinstance(images, torch.Tensor):
        tensor = images.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # exact in float32, and unknown to NumPy
            tensor = tensor.float()
        array: npt.NDArray[Any] = tensor.numpy()
        return array
    raise InputError(f"images must be a NumPy array or a torch tensor, got {type(images).__name__}")
