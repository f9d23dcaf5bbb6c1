"""Rules: what is evaluated next. A rule hands out cells (image, class, draw) and is told their errors.

The engine asks any rule for cells until a step is full, whatever images they belong to; that is all a rule has to know
of batches. :class:`FullRule` evaluates everything; rules that stop early follow the same protocol.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Cells = npt.NDArray[np.int32]
"""int32 (m, 3): image, class, draw."""


class AbstractRule(Protocol):
    """Decides which cells are evaluated, in which order."""

    @property
    def remaining(self) -> int:
        """Cells that may still be proposed, at most; 0 when the run is over once all proposed cells are observed."""

    def propose(self, room: int) -> Cells:
        """Up to `room` (> 0) cells that were not proposed before; none: nothing to do until more errors are known."""

    def observe(self, cells: Cells, errors: npt.NDArray[np.float32]) -> None:
        """The errors (m,) of proposed cells, in any order of steps."""


class FullRule:
    """Every class of every image under every draw, once.

    Classes run fastest, then draws, then images: neighbours share (image, draw), whose noise the kernels make once.

    Args:
        n_images: n.
        n_classes: K.
        draws: J.
    """

    def __init__(self, n_images: int, n_classes: int, draws: int) -> None:
        self._n_classes = n_classes
        self._draws = draws
        self._next = 0
        self._total = n_images * n_classes * draws

    @property
    def remaining(self) -> int:
        """See :class:`AbstractRule`."""
        return self._total - self._next

    def propose(self, room: int) -> Cells:
        """See :class:`AbstractRule`."""
        index = np.arange(self._next, min(self._next + room, self._total), dtype=np.int64)
        self._next += len(index)
        cells = np.empty((len(index), 3), np.int32)
        cells[:, 0] = index // (self._n_classes * self._draws)
        cells[:, 1] = index % self._n_classes
        cells[:, 2] = index // self._n_classes % self._draws
        return cells

    def observe(self, cells: Cells, errors: npt.NDArray[np.float32]) -> None:
        """Nothing depends on the errors."""
