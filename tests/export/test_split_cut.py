"""The minimum cut, against every set of nodes there is."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from fastdc.export.split_cut import Candidate, best_ahead

SOURCES = ("x",)


def worth(
    chosen: tuple[int, ...], candidates: list[Candidate], prices: dict[str, int | None], needed: list[str]
) -> int | None:
    """The definition: work saved less what is fetched; None for a set that is not allowed."""
    made = {name for i in chosen for name in candidates[i].makes} | set(SOURCES)
    if any(name not in made for i in chosen for name in candidates[i].reads):
        return None
    behind = [name for i, node in enumerate(candidates) if i not in chosen for name in node.reads]
    fetched = [prices.get(name) for name in {*behind, *needed} & made]
    if None in fetched:
        return None
    return sum(candidates[i].work for i in chosen) - sum(price or 0 for price in fetched)


@pytest.mark.parametrize("seed", range(60))
def test_best_of_all_sets(seed: int) -> None:
    """Random graphs of up to nine nodes with one or two outputs each: no allowed set is worth more, none is smaller."""
    rng = np.random.default_rng(seed)
    candidates: list[Candidate] = []
    names = list(SOURCES)
    prices: dict[str, int | None] = {"x": int(rng.integers(0, 4))}
    for index in range(int(rng.integers(1, 10))):
        reads = tuple(str(name) for name in rng.choice(names, size=min(len(names), int(rng.integers(1, 4)))))
        makes = tuple(f"v{index}.{k}" for k in range(int(rng.integers(1, 3))))
        candidates.append(Candidate(int(rng.integers(0, 6)), reads, makes))
        names += makes
        prices.update({name: None if rng.random() < 0.2 else int(rng.integers(0, 8)) for name in makes})
    needed = [str(name) for name in rng.choice(names, size=min(3, len(names)), replace=False)]
    got = best_ahead(candidates, prices, sources=SOURCES, needed=needed)
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(len(candidates)), size) for size in range(len(candidates) + 1)
    )
    worths = {chosen: worth(chosen, candidates, prices, needed) for chosen in sets}
    allowed = {chosen: value for chosen, value in worths.items() if value is not None}
    best = max(allowed.values())
    assert allowed.get(tuple(got)) == best
    assert len(got) == min(len(chosen) for chosen, value in allowed.items() if value == best)


def test_a_long_chain() -> None:
    """Five hundred nodes, where the cheapest value to fetch is in the middle."""
    chain = [Candidate(1, (f"v{i}",), (f"v{i + 1}",)) for i in range(500)]
    prices = {f"v{i}": 10 if i == 300 else 5000 for i in range(501)}
    assert best_ahead(chain, prices, sources=("v0",), needed=["v500"]) == list(range(300))


def test_work_that_saves_nothing_stays() -> None:
    """A reshape at the frontier, as large after as before."""
    nodes = [Candidate(9, ("x",), ("a",)), Candidate(0, ("a",), ("b",))]
    assert best_ahead(nodes, {"x": 4, "a": 2, "b": 2}, sources=("x",), needed=["b"]) == [0]
