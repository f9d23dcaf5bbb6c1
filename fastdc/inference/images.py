"""User images into model images: checked once, at the entrance, before any work starts.

A user's image is uint8 in 0 ... 255 or float in [0, 1]; the network's is float32 in its own range
(:class:`fastdc.bundle.PixelRange`). :class:`Images` keeps both views, and the noise stream of each image.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model, PixelRange
from fastdc.inference.class_names import class_indices
from fastdc.inference.options import ImageOptions
from fastdc.support import Float32, InputError, Int64, UsualWindow, as_array, as_pixels, chosen_ids

_AT_ONCE = 2**29  # bytes of images that are mapped to the model's range at once
_PART = 2**22  # values that are mapped at a time for their streams


@dataclass(frozen=True, eq=False)
class Images:
    """Images that were checked, in both of their scales, with their noise streams.

    Attributes:
        given: uint8, or float32 in [0, 1], (n, c, h, w): the user's images.
        samples: float32 (n, c, h, w) in the model's value range; if they are large, mapped as they are taken, so that
            levels should not be changed while a run goes on.
        streams: int64 (n,), names the noise of each image.
        ids: n names, such as the path of each image's file; None unless all images came from files.
    """

    given: npt.NDArray[Any] = field(repr=False)
    samples: "Float32 | MappedImages" = field(repr=False)
    streams: Int64
    ids: tuple[str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.given)

    @property
    def x(self) -> Float32:
        """All images in the model's value range, float32 (n, c, h, w)."""
        return self.samples[:]

    @property
    def unit(self) -> Float32:
        """The images in [0, 1], float32 (n, c, h, w): what a prefilter and a foreign classifier see."""
        return _unit(self.given)

    def take(self, rows: Int64) -> "Images":
        """Some of the images.

        Args:
            rows: Their indices.

        Example:
            >>> from fastdc.inference import Images
            >>> len(Images.of(images, clf.model).take(np.array([3, 5])))
            2
        """
        given = self.given[rows]
        samples = self.samples
        some = samples[rows] if isinstance(samples, np.ndarray) else MappedImages(given, samples.pixels)
        return Images(given, some, self.streams[rows], chosen_ids(self.ids, rows))

    @classmethod
    def of(
        cls,
        images: Any,
        model: Model,
        streams: Any = None,
        *,
        bounded: bool = True,
        **reading: Unpack[ImageOptions],
    ) -> "Images":
        """Whatever a user has in hand as images of a model: every method that takes images reads them here.

        An array (n, c, h, w) of the model's shape is taken as it is. All else goes through :func:`fastdc.data.prepare`:
        pictures and files are resized, arrays in memory only brought into this order.

        Args:
            images: What :func:`fastdc.data.prepare` takes, or images that were checked for the same model.
            model: The model.
            streams: Noise stream of each image, n whole numbers in [0, 2^56); None: :func:`streams_of`.
            bounded: Whether float images outside [0, 1] are refused. An optimizer may step outside for a moment.
            **reading: How images are read, see :class:`fastdc.Options`.

        Example:
            >>> from fastdc.inference import Images
            >>> Images.of(images, clf.model).x.shape
            (20, 1, 8, 8)

        Raises:
            InputError: Wrong type, shape, range, NaN, or no image.
        """
        if isinstance(images, Images):
            if images.given.shape[1:] != model.image_shape:
                raise InputError(f"images were checked for the shape {images.given.shape[1:]}, not {model.image_shape}")
            return images if streams is None else replace(images, streams=check_streams(streams, len(images)))
        given, ids = _checked(images, model, bounded=bounded, **reading)
        mapped = MappedImages(given, model.pixels)
        samples = mapped if 4 * given.size > _AT_ONCE else mapped[:]
        return cls(given, samples, _streams(samples) if streams is None else check_streams(streams, len(given)), ids)

    def on(self, pixels: PixelRange) -> Float32:
        """The images in another range of pixel values, float32 (n, c, h, w)."""
        return pixels.from_unit(self.unit)


@dataclass(frozen=True, eq=False)
class MappedImages:
    """Images in a model's value range, mapped some at a time: in float32 all of them would take four times the memory.

    Attributes:
        given: uint8, or float32 in [0, 1], (n, c, h, w).
        pixels: The model's range of pixel values.
    """

    given: npt.NDArray[Any]
    pixels: PixelRange

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.given)

    def __getitem__(self, rows: slice | Int64) -> Float32:
        """Some of the images, float32 (k, c, h, w)."""
        return np.ascontiguousarray(self.pixels.from_unit(_unit(self.given[rows])))


def _streams(samples: "Float32 | MappedImages") -> Int64:
    """The default noise stream of each image, int64 (n,)."""
    together = max(1, _PART // samples[:1].size)
    parts = [streams_of(samples[start : start + together]) for start in range(0, len(samples), together)]
    return np.concatenate(parts)


def images_with_labels(
    images: Any, labels: Any, model: Model, streams: Any = None, **reading: Unpack[ImageOptions]
) -> tuple[Images, Int64]:
    """Images of a model and their true classes.

    Args:
        images: See :meth:`Images.of`.
        labels: True classes, n indices or names; None: those of a labelled folder or an .npz file.
        model: The model.
        streams: Noise stream of each image, n whole numbers in [0, 2^56); None: :func:`streams_of`.
        **reading: How images are read, see :class:`fastdc.Options`.

    Returns:
        The images, and int64 (n,), the class of each.

    Example:
        >>> from fastdc.inference import images_with_labels
        >>> images_with_labels(images[:2], ["7", 3], clf.model)[1]
        array([7, 3])

    Raises:
        InputError: Images cannot be used, or labels do not fit or are missing.
    """
    if labels is None:
        from fastdc.data import load_with_labels  # which loads Pillow

        through = seen_through(model, reading)
        loaded, truth = load_with_labels(images, model.image_shape, classes=model.class_names, **through)
        return replace(Images.of(loaded.images, model, streams, layout="NCHW"), ids=loaded.ids), truth
    truth, ready = class_indices(labels, model, "labels"), Images.of(images, model, streams, **reading)
    if len(truth) != len(ready):
        raise InputError(f"labels must be one for each of {len(ready)} images, got {len(truth)}")
    return ready, truth


def to_model_range(images: Any, model: Model, **reading: Unpack[ImageOptions]) -> Float32:
    """Images for a model's network, float32 (n, c, h, w) in the model's value range: ``Images.of(images, model).x``.

    Args:
        images: See :meth:`Images.of`.
        model: The model.
        **reading: How images are read, see :class:`fastdc.Options`.

    Example:
        >>> from fastdc.inference import to_model_range
        >>> x = to_model_range(images, clf.model)
        >>> (float(x.min()), float(x.max()))
        (-1.0, 1.0)

    Raises:
        InputError: Wrong type, shape, range, NaN, or no image.
    """
    return np.ascontiguousarray(model.pixels.from_unit(_unit(_checked(images, model, **reading)[0])))


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


def _checked(
    images: Any, model: Model, *, bounded: bool = True, **reading: Unpack[ImageOptions]
) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    """The images (n, c, h, w) as uint8, or as float32, in [0, 1] if `bounded`; and their names."""
    plain = reading.get("window") is None and reading.get("max_pixels") is None
    array = _exact(images, model.image_shape, reading.get("layout")) if plain else None
    reading = seen_through(model, reading)
    usual = reading.get("window")
    if array is not None and isinstance(usual, UsualWindow) and _is_windowed(array, usual, bounded=bounded):
        array = None
    ids = None
    if array is None:
        from fastdc.data import prepare_named  # which loads Pillow

        array, ids = prepare_named(images, model.image_shape, resize=False, bounded=bounded, **reading)
    return as_pixels(array, bounded=bounded), ids


def seen_through(model: Model, reading: ImageOptions) -> ImageOptions:
    """How images are read: through the window of the model if the user gives none, and fitted as its images were.

    Args:
        model: The model.
        reading: The user's options.

    Example:
        >>> from fastdc.inference import seen_through
        >>> seen_through(clf.model, {"window": None})  # this model has no window, and crops
        {'window': None}
    """
    if model.fit != "crop" and reading.get("fit") is None:
        reading = {**reading, "fit": model.fit}
    if model.window is None or reading.get("window") is not None:
        return reading
    return {**reading, "window": UsualWindow(*model.window)}


def _is_windowed(array: npt.NDArray[Any], usual: UsualWindow, *, bounded: bool) -> bool:
    """Whether images in memory take the window of a model."""
    if array.dtype.kind != "f":
        return array.dtype.kind in "iu" and array.dtype != np.uint8
    return bounded and not usual.leaves(float(array.min()), float(array.max()))


def _exact(images: Any, shape: tuple[int, int, int], layout: str | None) -> npt.NDArray[Any] | None:
    """Images that are an array (n, c, h, w) already, or one image (c, h, w): a view of them; None for all others.

    If c = h = w > 1, nobody can see which axis is which, unless the layout is stated.
    """
    array = as_array(images)
    if array is None or layout not in (None, "NCHW") or (layout is None and 1 < shape[0] == shape[1] == shape[2]):
        return None
    if array.shape == shape:
        return array[None]
    if array.ndim != 4 or array.shape[1:] != shape:
        return None
    if len(array) == 0:
        raise InputError("images is empty: expected at least one image")
    return array


def _unit(checked: npt.NDArray[Any]) -> Float32:
    """Checked images as float32 in [0, 1]."""
    if checked.dtype == np.uint8:
        return checked.astype(np.float32) / np.float32(255)
    return checked
