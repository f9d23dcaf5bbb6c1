"""Where the significant pixels of a map lie, in numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastdc.support import Floats, Mask


@dataclass(frozen=True)
class Region:
    """The significant pixels of one sign.

    Attributes:
        share: Share of all pixels, in [0, 1].
        weight: Sum of the map over them, divided by the number of all pixels: their part in the difference of errors.
        box: Rows and columns that hold all of them: top, left, bottom, right, the last two excluded; None: there are
            none.
        peak: Row and column of the largest value among them.
    """

    share: float
    weight: float
    box: tuple[int, int, int, int] | None
    peak: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.box is None or self.peak is None:
            return "none"
        top, left, bottom, right = self.box
        most = "row {}, column {}".format(*self.peak)
        where = f"rows {top}-{bottom - 1}, columns {left}-{right - 1}"
        return f"{100 * self.share:.3g} % of pixels, most at {most}, in {where}"


def region_of(values: Floats, significant: Mask) -> Region:
    """The significant pixels of a map (h, w) that are positive.

    Example:
        >>> from fastdc.explanation import region_of
        >>> str(region_of(np.array([[0.0, 2.0], [-1.0, 1.0]]), np.array([[False, True], [True, False]])))
        '25 % of pixels, most at row 0, column 1, in rows 0-0, columns 1-1'
    """
    chosen = significant & (values > 0)
    rows, columns = np.nonzero(chosen)
    if len(rows) == 0:
        return Region(0.0, 0.0, None, None)
    best = int(np.argmax(values[rows, columns]))
    box = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
    weight = float(values[rows, columns].sum(dtype=np.float64)) / values.size
    return Region(float(chosen.mean()), weight, box, (int(rows[best]), int(columns[best])))
