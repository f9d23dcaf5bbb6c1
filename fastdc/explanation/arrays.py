"""The numbers of explanations: error maps with their uncertainty, and how the classes did; one per image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from fastdc.explanation.error_maps import BANDS
from fastdc.explanation.paired_pixels import half_width
from fastdc.explanation.region import Region, region_of
from fastdc.inference import Classification, class_keys
from fastdc.support import (
    Float32,
    Float64,
    Int64,
    Mask,
    checks,
    chosen_rows,
    plain,
    shown,
)

PIXELS, WAVELET, LATENTS = "pixels", "pixels, from Haar coefficients", "latents, upsampled"
PER_IMAGE = ("images", "classes", "against", "maps", "standard_errors", "significant", "channels", "bands",
              "pair_errors", "class_draws", "evaluations", "turned")  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class ImageExplanation:
    """The explanation of one image.

    Attributes:
        index: Index of the image among the images given.
        label: The answer, and its name and probability.
        explained: The class that is explained; `against` is the other one. Names are in `names`.
        names: Names of the class that is explained and of the one against it.
        map: float32 (h, w), signed: positive pixels speak for the class that is explained.
        standard_error: float32 (h, w), NaN if it is not known.
        significant: bool (h, w).
        channels: float32 (c, h, w), the map of each channel.
        bands: float32 (B, h, w), the part of each band of noise levels in the map.
        pair_errors: float32 (2, J), errors of both classes at each draw.
        errors: Mean error of each class by name, as in ``fastdc.ImageResult``.
        probabilities: Probability of each class by name.
        race: Draws at which each class was evaluated before it was dropped, by name; those with the most were not.
        gap_half_width: Half width of the 95 % interval of `gap` over the noise; NaN of a single observation.
        turned: Whether the class that was named against it is its own, so that its runner-up took the place.
        evaluations: Network evaluations spent on the image, for the answer and for the map.
        space: Where the map was made, as in :class:`ExplanationArrays`.
        image: Its name, such as the path of its file; None for an image in memory.
    """

    index: int
    label: int
    name: str
    probability: float
    explained: int
    against: int
    names: tuple[str, str]
    map: Float32
    standard_error: Float32
    significant: Mask
    channels: Float32
    bands: Float32
    pair_errors: Float32
    errors: dict[str, float]
    probabilities: dict[str, float]
    race: dict[str, int]
    gap_half_width: float
    turned: bool
    evaluations: int
    space: str
    image: str | None = None

    @property
    def region_for(self) -> Region:
        """Where pixels are significant for the class that is explained."""
        return region_of(self.map, self.significant)

    @property
    def region_against(self) -> Region:
        """Where pixels are significant for the class against it."""
        return region_of(-self.map, self.significant)

    @property
    def gap(self) -> float:
        """The mean of the map: how much larger the mean error of the class against is (but see `maps`)."""
        return float(self.map.mean(dtype=np.float64))

    @property
    def undecided(self) -> bool | None:
        """Whether the difference of errors is within its noise: the other class is as good; None: not known."""
        difference = (self.pair_errors[1].astype(np.float64) - self.pair_errors[0]).mean()
        return None if np.isnan(self.gap_half_width) else bool(abs(difference) <= self.gap_half_width)

    @property
    def smallest_difference(self) -> float:
        """The smallest difference of errors that may fill a figure: smaller ones are noise, or rounding."""
        rounding = 1e-4 * float(np.abs(self.pair_errors).mean(dtype=np.float64))
        return max(rounding, float(np.nan_to_num(self.gap_half_width)), 1e-30)

    def to_dict(self) -> dict[str, Any]:
        """All but arrays as JSON values."""
        known = {} if self.image is None else {"image": self.image}
        spans = {name: float(part.mean(dtype=np.float64)) for name, part in zip(BANDS, self.bands, strict=False)}
        entry = {
            "index": self.index,
            **known,
            "label": self.label,
            "name": self.name,
            "probability": self.probability,
            "explained": self.names[0],
            "against": self.names[1],
            "turned": self.turned,
            "gap": self.gap,
            "gap_half_width": None if np.isnan(self.gap_half_width) else self.gap_half_width,
            "undecided": self.undecided,
            "for": self.region_for.to_dict(),
            "opposed": self.region_against.to_dict(),
            "bands": spans,
            "space": self.space,
            "evaluations": self.evaluations,
            "probabilities": self.probabilities,
            "errors": self.errors,
            "race": self.race,
        }
        made: dict[str, Any] = plain(entry)
        return made

    def __repr__(self) -> str:
        return (
            f"ImageExplanation(index={self.index}, {shown(self.names[0])} against {shown(self.names[1])}, "
            f"{100 * self.region_for.share:.3g} % of pixels for, {100 * self.region_against.share:.3g} % against, "
            f"evaluations={self.evaluations})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class ExplanationArrays(Sequence[ImageExplanation]):
    """Explanations of m images; a sequence of one :class:`ImageExplanation` per image.

    ``made[3]`` is the explanation of one image, and ``made[:10]``, ``made[rows]`` or ``made[mask]`` is an Explanation
    of several.

    Attributes:
        answers: The classification: labels, probabilities, errors, how far each class came.
        images: uint8, or float32 in [0, 1], (m, c, h, w), the images, resized if they were.
        classes: int64 (m,), the class that is explained.
        against: int64 (m,), the class against it.
        maps: float32 (m, h, w) of the images' size: positive pixels speak for the class that is explained. The mean
            over pixels is the difference of the two mean errors; from Haar coefficients for the loss l2 alone.
        standard_errors: float32 (m, h, w), standard error of `maps`; NaN with fewer than two independent draws.
        significant: bool (m, h, w), pixels whose difference is not noise; ``test`` says what is promised.
        channels: float32 (m, c, h, w), the map of each channel, whose mean is `maps`.
        bands: float32 (m, B, h, w), the part of each band of noise levels (``BANDS``, from the lowest) in the map.
        edges: float64 (B + 1,), noise-to-signal ratios between which their draws lie.
        pair_errors: float32 (m, 2, J), errors of both classes at each draw.
        ratio: float64 (J,), noise-to-signal ratio of each draw.
        class_draws: int64 (m, K), draws at which each class was evaluated for the answer; of several prompts of a
            class, the most.
        evaluations: int64 (m,), network evaluations spent on each image, for the answer and for the map.
        turned: bool (m,), images whose class is the one that was named against them: `against` is their runner-up.
        test: alpha, control, count of observations, and smooth, see :func:`explain`.
        space: Where maps were made: "pixels", "pixels, from Haar coefficients" (the network's residuals were brought
            back to pixels), or "latents, upsampled": each value of a latent covers a block of pixels. They are not
            decoded: a difference of errors is no latent.
        seconds: Wall time.
    """

    answers: Classification
    images: npt.NDArray[Any]
    classes: Int64
    against: Int64
    maps: Float32
    standard_errors: Float32
    significant: Mask
    channels: Float32
    bands: Float32
    edges: Float64
    pair_errors: Float32
    ratio: Float64
    class_draws: Int64
    evaluations: Int64
    turned: Mask
    test: dict[str, Any]
    space: str
    seconds: float

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K class names."""
        return self.answers.class_names

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything that reproduces the explanation."""
        return {**self.answers.provenance, "explanation": {**self.test, "space": self.space}}

    def __len__(self) -> int:
        """m, the number of images."""
        return len(self.classes)

    def __iter__(self) -> Iterator[ImageExplanation]:
        return (self._image(row) for row in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> ImageExplanation: ...
    @overload
    def __getitem__(self, key: slice | npt.ArrayLike) -> Self: ...
    def __getitem__(self, key: Any) -> "ImageExplanation | Self":
        rows = chosen_rows(key, len(self))
        if isinstance(rows, int):
            return self._image(rows)
        return replace(self, answers=self.answers[rows], **{name: getattr(self, name)[rows] for name in PER_IMAGE})

    def interval(self, level: float = 0.95) -> tuple[Float32, Float32]:
        """Ends of the confidence interval of each pixel's value, float32 (m, h, w) each; of Student's t.

        It is an interval for each pixel alone; :attr:`significant` is about all pixels of an image.

        Args:
            level: Probability with which an interval holds the value, in (0, 1).

        Raises:
            InputError: The level is out of range.
        """
        half = half_width(self.test["count"], checks.fraction("level", level)) * self.standard_errors
        return (self.maps - half).astype(np.float32), (self.maps + half).astype(np.float32)

    def gap_half_widths(self) -> Float64:
        """Half width of the 95 % interval of each difference of errors, float64 (m,); NaN of a single observation.

        It is about the noise, by Student's t over the draws.
        """
        if (count := self.test["count"]) < 2:
            return np.full(len(self), np.nan)
        differences = self.pair_errors[:, 1].astype(np.float64) - self.pair_errors[:, 0]
        observed = differences.reshape(len(self), count, differences.shape[1] // count).mean(axis=2)
        return np.asarray(half_width(count) * observed.std(axis=1, ddof=1) / np.sqrt(count))

    @cached_property
    def _half_widths(self) -> Float64:
        return self.gap_half_widths()

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return class_keys(self.class_names)

    def _image(self, row: int) -> ImageExplanation:
        answer = self.answers[row]
        arrays = {name: getattr(self, name)[row] for name in ("significant", "channels", "bands", "pair_errors")}
        own, other = int(self.classes[row]), int(self.against[row])
        return ImageExplanation(
            index=answer.index,
            label=answer.label,
            name=answer.name,
            probability=answer.probability,
            explained=own,
            against=other,
            names=(self._keys[own], self._keys[other]),
            map=self.maps[row],
            standard_error=self.standard_errors[row],
            **arrays,
            errors=answer.errors,
            probabilities=answer.probabilities,
            race=dict(zip(self._keys, self.class_draws[row].tolist(), strict=True)),
            gap_half_width=float(self._half_widths[row]),
            turned=bool(self.turned[row]),
            evaluations=int(self.evaluations[row]),
            space=self.space,
            image=answer.image,
        )
