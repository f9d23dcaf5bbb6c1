"""User images into model images: checked once, at the entrance, before any work starts.

A user's image is uint8 in 0 ... 255 or float in [0, 1]; the model's is float32 in its value range, mostly [-1, 1]. The
factor two between the scales is the field's best-known trap, so it lives here and nowhere else.
"""

import hashlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.support import InputError


def to_model_range(images: Any, model: Model) -> npt.NDArray[np.float32]:
    """Images for a model's network.

    Args:
        images: (n, c, h, w) with the model's (c, h, w) and n > 0: uint8, or float in [0, 1]; NumPy or torch on the CPU.
        model: The model.

    Returns:
        float32 (n, c, h, w) in the model's value range.

    Raises:
        InputError: Wrong type, shape, range, NaN, or no image.
    """
    array = _as_numpy(images)
    shape = model.image_shape
    if array.ndim == 3 and array.shape == shape:
        raise InputError(f"images must have shape (n, {', '.join(map(str, shape))}), got one image: pass images[None]")
    if array.ndim != 4 or array.shape[1:] != shape:
        raise InputError(f"images must have shape (n, {', '.join(map(str, shape))}), got {array.shape}")
    if len(array) == 0:
        raise InputError("images is empty: expected at least one image")
    low, high = model.value_range
    if array.dtype == np.uint8:
        unit = array.astype(np.float32) / np.float32(255)
    elif array.dtype in (np.float16, np.float32, np.float64):
        if not np.all(np.isfinite(array)):
            index = np.argwhere(~np.isfinite(array))[0]
            raise InputError(f"images must be finite, got {array[tuple(index)]} in image {index[0]}")
        with np.errstate(over="ignore"):  # what float32 cannot hold is outside the range, which comes next
            unit = array.astype(np.float32)
        if unit.min() < 0 or unit.max() > 1:
            hint = ": divide 8-bit values by 255, or pass uint8" if unit.max() > 1.5 else ""
            raise InputError(f"float images must be in [0, 1], got [{unit.min():.4g}, {unit.max():.4g}]{hint}")
    else:
        raise InputError(f"images must be uint8 or float in [0, 1], got {array.dtype}")
    return np.ascontiguousarray(unit * np.float32(high - low) + np.float32(low))


def streams_of(images: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The default noise stream of each image: the first 56 bits of the BLAKE2b hash of its pixels, int64 (n,).

    An image therefore sees the same noise wherever it stands: in any batch, order, shard or process. Equal images get
    equal results, and different images independent noise.

    Args:
        images: float32 (n, c, h, w) as :func:`to_model_range` makes them.
    """
    digests = (hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=7).digest() for image in images)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.int64)


def check_streams(streams: Any, count: int) -> npt.NDArray[np.int64]:
    """Streams given by a user: whole numbers in [0, 2^56), one an image.

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


def _as_numpy(images: Any) -> npt.NDArray[Any]:
    if isinstance(images, np.ndarray):
        return images
    torch = sys.modules.get("torch")  # whoever passes a tensor has imported it
    if torch is not None and isinstance(images, torch.Tensor):
        tensor = images.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # exact in float32, and unknown to NumPy
            tensor = tensor.float()
        array: npt.NDArray[Any] = tensor.numpy()
        return array
    raise InputError(f"images must be a NumPy array or a torch tensor, got {type(images).__name__}")
