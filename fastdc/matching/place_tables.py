"""Tables of errors whose classes are places: class a of an image is its a-th candidate, whichever text that is.

Images with a few candidates of thousands of texts then have a table as wide as the longest list, and all that works on
tables, such as calibration, works on them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastdc.inference import ErrorTable
from fastdc.support import Int32


def table_of_places(table: ErrorTable, own: Sequence[Int32]) -> ErrorTable:
    """A full run's table whose classes are the places of each image's candidates."""
    counts = np.zeros((len(own), max(map(len, own))), np.int32)
    values = []
    packed, classes = table.packed()
    for i, one in enumerate(own):
        counts[i, : len(one)] = table.draws
        found = packed.rows(i, i + 1).values.reshape(-1, table.draws)
        values.append(found[np.searchsorted(classes[i, : len(one)], one)].ravel())
    names = tuple(f"candidate {a}" for a in range(counts.shape[1]))
    return replace(table, counts=counts, values=np.concatenate(values), class_names=names)


def joined_places(parts: Sequence[ErrorTable], names: Sequence[str], *, null: bool) -> ErrorTable:
    """The tables of consecutive images with the same columns; with `null`, each image's last candidate comes last."""
    width = len(names)
    counts = np.zeros((sum(map(len, parts)), width), np.int32)
    at = 0
    for part in parts:
        counts[at : at + len(part), : part.counts.shape[1]] = part.counts
        at += len(part)
    if null:
        last = np.count_nonzero(counts, axis=1) - 1
        counts[np.arange(at), last], counts[:, -1] = 0, counts[:, 0]
    first = parts[0]
    return replace(
        first,
        counts=counts,
        values=np.concatenate([part.values for part in parts]),
        streams=np.concatenate([part.streams for part in parts]),
        class_names=tuple(names),
    )
