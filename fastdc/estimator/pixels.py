"""Feature matrices and images: what scikit-learn hands over, as images that a classifier takes, and the scale of both.

scikit-learn's tools work on matrices (n, features). A row is an image whose pixels lie one after another; images
(n, c, h, w), (n, h, w, c) or (n, h, w) are made such rows, channels first. Where a row is no image, in training only,
it is padded with zeros to the next square.

The scale maps values to [0, 1]. It is stated, or learned when fitting:

    uint8                       0 to 255
    floats that lie in [0, 1]   0 to 1, unchanged
    anything else               the smallest and the largest value of the training data, over all features

Values outside a stated range are an error, outside a learned one they are clipped.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.support import Float32, Float64, InputError, as_array, checks, shown

Shape: TypeAlias = tuple[int, int, int]
"""(channels, height, width)"""

_CHANNELS = (1, 3)


def as_rows(X: Any, wanted: Shape | None) -> tuple[Any, Shape | None]:
    """Images as rows (n, c * h * w), and their shape; anything else as it is, and None.

    Args:
        X: Images with three or four axes, NumPy or torch, or what scikit-learn takes for a matrix.
        wanted: The (c, h, w) that is expected; decides which axis has the channels.

    Raises:
        InputError: The channels cannot be told.
    """
    array = as_array(X)
    X = X if array is None else array
    if array is None or X.ndim not in (3, 4):
        return X, None
    if X.ndim == 3:
        X = X[:, None]
    elif wanted is not None and (X.shape[3], X.shape[1], X.shape[2]) == wanted != X.shape[1:]:
        X = np.moveaxis(X, 3, 1)
    elif X.shape[1:] != wanted and X.shape[1] not in _CHANNELS:
        if X.shape[3] not in _CHANNELS:
            raise InputError(f"images must be (n, c, h, w) or (n, h, w, c) with 1 or 3 channels, got shape {X.shape}")
        X = np.moveaxis(X, 3, 1)
    return X.reshape(len(X), math.prod(X.shape[1:])), X.shape[1:]


def read_shape(image_shape: Any) -> tuple[Shape, bool] | None:
    """The (c, h, w) that a user states for rows, and whether the channels are their last axis; None if none is stated.

    Raises:
        InputError: It is no shape of an image.
    """
    if image_shape is None:
        return None
    sides = image_shape if isinstance(image_shape, (tuple, list)) else ()
    if len(sides) in (2, 3) and all(checks.is_whole(side) and side > 0 for side in sides):
        sizes = tuple(map(int, sides))
        if len(sizes) == 2:
            return (1, *sizes), False
        if sizes[0] in _CHANNELS:
            return (sizes[0], sizes[1], sizes[2]), False
        if sizes[2] in _CHANNELS:
            return (sizes[2], sizes[0], sizes[1]), True
    raise InputError(
        f"image_shape must be (h, w), (c, h, w) or (h, w, c) with 1 or 3 channels, got {shown(image_shape)}"
    )


@dataclass(frozen=True)
class Layout:
    """How a row is an image.

    Attributes:
        shape: (c, h, w) of the images.
        features: Number of values of a row; pixels beyond them are 0.
        last: Whether the channels of a row that came as a row are its last axis.
    """

    shape: Shape
    features: int
    last: bool = False

    def images(self, rows: npt.NDArray[Any], *, flat: bool) -> npt.NDArray[Any]:
        """The images (n, c, h, w) of rows; `flat` if they came as rows."""
        channels, height, width = self.shape
        if flat and self.last:
            return np.ascontiguousarray(np.moveaxis(rows.reshape(len(rows), height, width, channels), 3, 1))
        padding = channels * height * width - self.features
        rows = np.pad(rows, ((0, 0), (0, padding))) if padding else rows
        return np.ascontiguousarray(rows).reshape(len(rows), *self.shape)


def layout_of(features: int, seen: Shape | None, stated: tuple[Shape, bool] | None, model: Shape | None) -> Layout:
    """The layout of training data.

    Args:
        features: Number of values of a row.
        seen: Shape of the images, if the data are images.
        stated: The stated shape of rows.
        model: Shape of the model's images; None: a model is to be trained.

    Raises:
        InputError: They do not fit each other.
    """
    named, last = stated or (None, False)
    known = [(name, shape) for name, shape in (("the model", model), ("image_shape", named), ("X", seen)) if shape]
    if not known:
        side = max(2, math.isqrt(features - 1) + 1)
        return Layout((1, side, side), features)
    (name, shape), *others = known
    for other, different in others:
        if different != shape:
            raise InputError(f"{other} has images of {_text(different)}, but {name} of {_text(shape)}")
    if math.prod(shape) != features:
        pixels = f"{math.prod(shape)} features, the pixels of images of {_text(shape)} of {name}"
        raise InputError(f"X must have {pixels}, got {features} feature(s)")
    return Layout(shape, features, last)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class Scale:
    """The map of values to [0, 1].

    Attributes:
        low: Value of black.
        high: Value of white.
        learned: Whether the range is that of the training data.
        kind: Type of the training data.
    """

    low: float
    high: float
    learned: bool
    kind: np.dtype[Any]

    @classmethod
    def of(cls, rows: npt.NDArray[Any], value_range: Any) -> "Scale":
        """The scale of training data.

        Args:
            rows: The training data.
            value_range: What the user states, (low, high), or None.

        Raises:
            InputError: The range is no range.
        """
        if value_range is not None:
            ends = value_range if isinstance(value_range, (tuple, list)) and len(value_range) == 2 else (0, 0)
            if not (all(map(checks.is_finite, ends)) and 0 < float(ends[1]) - float(ends[0]) < math.inf):
                raise InputError(f"value_range must be (low, high) with low < high, got {shown(value_range)}")
            return cls(float(ends[0]), float(ends[1]), False, rows.dtype)
        if rows.dtype == np.uint8:
            return cls(0.0, 255.0, True, rows.dtype)
        low, high = float(rows.min()), float(rows.max())
        if rows.dtype.kind == "f" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        elif low == high:  # constant data, which tell no scale
            high = low + max(1.0, abs(low))
        if not math.isfinite(high - low):
            raise InputError(f"the values of X must span a finite range, got {low:g} to {high:g}")
        return cls(low, high, True, rows.dtype)

    def unit(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows as float32 in [0, 1], or as uint8 if black is 0 and white 255.

        Raises:
            InputError: A value is outside the stated range, or 8-bit data are mixed with others.
        """
        if self.learned and (rows.dtype == np.uint8) != (self.kind == np.uint8):
            raise InputError(
                f"X is {rows.dtype}, but was {self.kind} when fitting: expected one type, or value_range=(low, high)"
            )
        if rows.dtype == np.uint8 and (self.low, self.high) == (0, 255):
            return rows
        unit: Float64 = (rows.astype(np.float64) - self.low) / (self.high - self.low)
        if not self.learned and (unit.min() < 0 or unit.max() > 1):
            raise InputError(
                f"X must lie in value_range, {self.low:g} to {self.high:g}, got {rows.min():g} to {rows.max():g}"
            )
        return np.clip(unit, 0, 1).astype(np.float32)


def levels(unit: Float32 | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images in [0, 1] as the 256 levels that a training reads."""
    if unit.dtype != np.uint8:
        unit = np.rint(unit * np.float32(255))
    return unit.astype(np.uint8, copy=False)
