"""Where the significant pixels of a map lie, in numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastdc.support import Floats, Int64, Mask


@dataclass(frozen=True)
class Region:
    """The significant pixels of one sign.

    Attributes:
        share: Share of all pixels, in [0, 1].
        weight: Sum of the map over them, divided by the number of all pixels: their part in the difference of errors.
        box: Rows and columns that hold all of them: top, left, bottom, right, the last two excluded; None: there are
            none.
        peak: Row and column of the largest value among them.
        areas: Number of areas that they form; pixels that touch, also by a corner, are of one area.
        largest: Share of the pixels of the largest area.
        largest_box: Rows and columns that hold the largest area, as in `box`.
        spread: Whether that box is more than half of the image, so that it tells no place.
    """

    share: float
    weight: float
    box: tuple[int, int, int, int] | None
    peak: tuple[int, int] | None
    areas: int = 0
    largest: float = 0.0
    largest_box: tuple[int, int, int, int] | None = None
    spread: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.largest_box is None or self.peak is None:
            return "none"
        top, left, bottom, right = self.largest_box
        most = "row {}, column {}".format(*self.peak)
        place = f"in rows {top}-{bottom - 1}, columns {left}-{right - 1}"
        where = "spread over the image" if self.spread else place
        parts = "" if self.areas == 1 else f" in {self.areas} areas, the largest {100 * self.largest:.3g} %"
        return f"{100 * self.share:.3g} % of pixels{parts}, {where}, most at {most}"


def region_of(values: Floats, significant: Mask) -> Region:
    """The significant pixels of a map (h, w) that are positive.

    Example:
        >>> from fastdc.explanation import region_of
        >>> str(region_of(np.array([[0.0, 2.0], [-1.0, 1.0]]), np.array([[False, True], [True, False]])))
        '25 % of pixels, in rows 0-0, columns 1-1, most at row 0, column 1'
    """
    from scipy import ndimage  # which takes a while to load

    chosen = significant & (values > 0)
    rows, columns = np.nonzero(chosen)
    if len(rows) == 0:
        return Region(0.0, 0.0, None, None)
    best = int(np.argmax(values[rows, columns]))
    weight = float(values[rows, columns].sum(dtype=np.float64)) / values.size
    areas, count = ndimage.label(chosen, structure=np.ones((3, 3)))
    sizes = np.bincount(areas[rows, columns])
    largest = np.nonzero(areas == sizes.argmax())
    held = _box(*largest)
    return Region(
        share=float(chosen.mean()),
        weight=weight,
        box=_box(rows, columns),
        peak=(int(rows[best]), int(columns[best])),
        areas=int(count),
        largest=float(sizes.max() / values.size),
        largest_box=held,
        spread=(held[2] - held[0]) * (held[3] - held[1]) > values.size / 2,
    )


def _box(rows: Int64, columns: Int64) -> tuple[int, int, int, int]:
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1
