"""Cells that denoise an image before its looks begin, for methods that need that (``diffusion.noisy_methods``).

They are no look of the ledger's: a look compares errors of candidate classes at a prefix of the plan, while a denoising
cell has no error, lies at the row after the plan's last, and may be of "no class", which is no candidate. They share
steps with ordinary cells all the same.
"""

import numpy as np

from fastdc.engine.requests import Cells
from fastdc.support import Int32


class DenoisingCells:
    """The denoising cells of the requests in flight.

    Args:
        classes: Classes that an image is denoised under, as the network numbers them; empty: nothing is denoised.
        row: Index of the coefficient row that denoises.
        capacity: Number of places.

    Attributes:
        flying: Cells proposed that have not ended.
    """

    def __init__(self, classes: tuple[int, ...], row: int, capacity: int) -> None:
        self._template = np.array([(0, label, row) for label in classes], np.int32).reshape(-1, 3)
        self._waiting: Cells = np.zeros((0, 3), np.int32)
        self._missing = np.zeros(capacity, np.int32)  # cells that each place still waits for
        self.flying = 0

    @property
    def per_image(self) -> int:
        """Cells per image; 0 if nothing is denoised."""
        return len(self._template)

    @property
    def waiting(self) -> int:
        """Cells that can be proposed now."""
        return len(self._waiting)

    def open(self, place: int) -> None:
        """Adds the cells of the image at a place."""
        self._missing[place] = len(self._template)
        self._waiting = np.concatenate([self._waiting, self._template + np.array([place, 0, 0], np.int32)])

    def propose(self, room: int) -> Cells:
        """At most `room` cells for the next step."""
        cells, self._waiting = self._waiting[:room], self._waiting[room:]
        self.flying += len(cells)
        return cells

    def observe(self, places: Int32) -> list[int]:
        """Takes cells that have ended, by their places; returns the places whose images are denoised now."""
        self.flying -= len(places)
        np.subtract.at(self._missing, places, 1)
        return sorted(set(places[self._missing[places] == 0].tolist()))
