"""Trees of classes drawn at random."""

from typing import Any

import numpy as np
from hypothesis import strategies as st


def leaves(node: Any) -> list[int]:
    return [node] if isinstance(node, int) else [leaf for child in node for leaf in leaves(child)]


@st.composite
def nestings(draw: st.DrawFn, *, largest: int = 24) -> list[Any]:
    """Nested lists of any shape that hold 0 ... K - 1 in any order. Nodes may have a single child."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def split(part: list[int], depth: int) -> list[Any]:
        cuts = np.sort(rng.choice(len(part), rng.integers(0, min(len(part), 5)), replace=False))
        children: list[Any] = []
        for piece in np.split(np.array(part), cuts[cuts > 0]):
            classes = piece.tolist()
            deeper = depth < 5 and rng.random() < 0.8
            children += [split(classes, depth + 1)] if deeper else classes
        return children

    return split(rng.permutation(draw(st.integers(1, largest))).tolist(), 0)
