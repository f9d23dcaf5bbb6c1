"""Images with candidate texts: the question that every matcher is asked.

Two images may have different candidates, and thousands of images may share one text, which is then held once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.support import InputError, Int32, Int64, shown

RIGHT = "right"
"""The kind of the text that describes the image."""


@dataclass(frozen=True, eq=False)
class Trials:
    """n images, each with candidate texts of its own; one of them describes the image.

    Attributes:
        images: n paths of image files, or an array (n, c, h, w) of pixels.
        texts: P different texts.
        candidates: n arrays int32 of positions in `texts`, in the order in which the image's texts were given.
        truth: int64 (n,), the place of the right text among the image's candidates; -1 where it is not known.
        ids: n names of the images.
        groups: n names of groups, such as folders; empty if there are none.
        kinds: For each image, what it means to choose each of its candidates, :data:`RIGHT` for the right one; empty
            if that is not known.
    """

    images: tuple[str, ...] | NDArray[Any]
    texts: tuple[str, ...]
    candidates: tuple[Int32, ...]
    truth: Int64
    ids: tuple[str, ...]
    groups: tuple[str, ...] = ()
    kinds: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(
        cls,
        images: Sequence[str] | Sequence[NDArray[Any]] | NDArray[Any],
        texts: Sequence[Sequence[str]],
        truth: Any = 0,
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[str] = (),
        kinds: Sequence[Sequence[str]] = (),
    ) -> "Trials":
        """Trials from a list of texts for each image.

        Args:
            images: n paths of image files, or an array (n, c, h, w), or n arrays of one shape.
            texts: n lists of one text or more, none of them twice in a list.
            truth: Place of the right text in each list, a whole number for all or (n,); -1: not known.
            ids: n names of the images; None: their paths, or their numbers.
            groups: n names of groups, or none.
            kinds: n lists as long as those of `texts`, or none; that of a wrong text is not :data:`RIGHT`.

        Example:
            >>> from fastdc.matching import Trials
            >>> Trials.of(images[:2], [["a one", "a two"], ["a two", "a six"]]).texts
            ('a one', 'a two', 'a six')

        Raises:
            InputError: Numbers of images, texts and places do not fit, or a list is empty or has a text twice.
        """
        pixels = _pixels(images)
        n = len(images)
        positions: dict[str, int] = {}
        candidates: list[Int32] = []
        for i, own in enumerate(_checked_texts(texts, n)):
            same = i > 0 and own is texts[i - 1]  # as of thousands of images that are asked about thousands of texts
            found = None if same else [positions.setdefault(text, len(positions)) for text in own]
            candidates.append(candidates[-1] if found is None else np.array(found, np.int32))
        for what, given in (("groups", groups if len(groups) else None), ("ids", ids)):
            if given is not None and len(given) != n:
                raise InputError(f"{what} must have an entry for each of {n} images, got {len(given)}")
        places = _checked_truth(truth, candidates)
        if len(kinds):
            _check_kinds(kinds, candidates, places)
        named = tuple(map(str, images)) if pixels is None else tuple(f"image {i}" for i in range(n))
        return cls(
            images=named if pixels is None else pixels,
            texts=tuple(positions),
            candidates=tuple(candidates),
            truth=places,
            ids=named if ids is None else tuple(ids),
            groups=tuple(groups),
            kinds=tuple(tuple(one) for one in kinds),
        )

    def __len__(self) -> int:
        """n, the number of images."""
        return len(self.candidates)

    def texts_of(self, image: int) -> tuple[str, ...]:
        """The candidate texts of an image, in the order in which they were given.

        Example:
            >>> from fastdc.matching import Trials
            >>> Trials.of(images[:1], [["a one", "a seven"]]).texts_of(0)
            ('a one', 'a seven')
        """
        return tuple(self.texts[p] for p in self.candidates[image])

    def take(self, rows: Any) -> "Trials":
        """Some of the images, with their texts.

        Args:
            rows: Indices (m,), a slice or a mask (n,).

        Example:
            >>> from fastdc.matching import Trials
            >>> Trials.of(images[:2], [["a one", "a two"], ["a two", "a six"]]).take([1]).texts
            ('a two', 'a six')
        """
        chosen: list[int] = np.arange(len(self))[rows].tolist()
        every = isinstance(self.images, tuple)
        used = {p: at for at, p in enumerate(dict.fromkeys(int(p) for i in chosen for p in self.candidates[i]))}
        return replace(
            self,
            images=tuple(self.images[i] for i in chosen) if every else np.asarray(self.images)[chosen],
            texts=tuple(self.texts[p] for p in used),
            candidates=tuple(np.array([used[int(p)] for p in self.candidates[i]], np.int32) for i in chosen),
            truth=self.truth[chosen],
            ids=tuple(self.ids[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen) if self.groups else (),
            kinds=tuple(self.kinds[i] for i in chosen) if self.kinds else (),
        )


def _pixels(images: Any) -> NDArray[Any] | None:
    """The images as one array; None if they are paths of files.

    Raises:
        InputError: They are neither.
    """
    if hasattr(images, "__array__") and (found := np.asarray(images)).dtype.kind in "biuf":
        return found
    if isinstance(images, Sequence) and not isinstance(images, str):
        if all(isinstance(one, str | os.PathLike) for one in images):
            return None
        if all(isinstance(one, np.ndarray) and one.shape == images[0].shape for one in images):
            return np.stack(images)
    raise InputError(f"images must be paths of files, or arrays of one shape, got {shown(images)}")


def _checked_texts(texts: Sequence[Sequence[str]], n: int) -> Sequence[Sequence[str]]:
    """The texts of n images, once they are known to be texts.

    Raises:
        InputError: See :meth:`Trials.of`.
    """
    if len(texts) != n:
        raise InputError(f"expected candidate texts for each of {n} images, got {len(texts)} lists")
    for i, own in enumerate(texts):
        if i and own is texts[i - 1]:
            continue
        several = isinstance(own, Sequence | np.ndarray) and not isinstance(own, str) and len(own) > 0
        if not several or not all(isinstance(text, str) and text.strip() for text in own):
            raise InputError(f"image {i}: expected a list of texts that are not empty, got {shown(own)}")
        if len(set(own)) < len(own):
            raise InputError(f"image {i}: expected different texts, got one of them twice: {shown(list(own))}")
    return texts


def _checked_truth(truth: Any, candidates: Sequence[Int32]) -> Int64:
    """The places of the right texts, int64 (n,).

    Raises:
        InputError: See :meth:`Trials.of`.
    """
    n = len(candidates)
    try:
        given = np.asarray(truth)
    except ValueError:
        raise InputError(f"truth must be whole numbers of shape ({n},), got {shown(truth)}") from None
    places = np.broadcast_to(given, (n,)) if given.ndim == 0 else given
    if places.shape != (n,) or not (places.dtype.kind in "iu" or places.size == 0):
        raise InputError(f"truth must be whole numbers of shape ({n},), got {places.dtype} of shape {places.shape}")
    wrong = next((i for i in range(n) if not -1 <= places[i] < len(candidates[i])), None)
    if wrong is not None:
        raise InputError(
            f"image {wrong}: truth must be a place in its {len(candidates[wrong])} texts, got {places[wrong]}"
        )
    return places.astype(np.int64)


def _check_kinds(kinds: Sequence[Sequence[str]], candidates: Sequence[Int32], truth: Int64) -> None:
    """Refuses kinds that do not fit the texts, or call a wrong one right.

    Raises:
        InputError: See above.
    """
    if len(kinds) != len(candidates):
        raise InputError(f"kinds must have an entry for each of {len(candidates)} images, got {len(kinds)}")
    for i, (own, texts) in enumerate(zip(kinds, candidates, strict=True)):
        if len(own) != len(texts):
            raise InputError(f"image {i}: kinds must have an entry for each text, {len(texts)}, got {len(own)}")
        if truth[i] >= 0 and any(kind == RIGHT and at != truth[i] for at, kind in enumerate(own)):
            raise InputError(f"image {i}: expected another kind than {RIGHT!r} for a wrong text")
