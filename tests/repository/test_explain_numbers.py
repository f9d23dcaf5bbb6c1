"""The tables of docs/explain.md are those of bench/results."""

import json
import re
from typing import Any

import pytest

from helpers.paths import ROOT

MASKS = ("pointing game", "IoU, area of the mask", "average precision", "energy inside")
CURVES = tuple(f"{curve} to healthy, {who}" for who in ("diffusion", "CNN") for curve in ("deletion", "insertion"))
EDITS = ("nothing", "sdedit", "ddim", "heun")
JUDGED = {
    "the diffusion classifier says healthy": "flipped, diffusion",
    "the CNN says healthy": "flipped, CNN",
    "factual reconstruction keeps its class, diffusion": "factual kept, diffusion",
    "the same, CNN": "factual kept, CNN",
    "SSIM with the truth": "SSIM to the truth",
    "mean absolute difference from the truth": "L1 to the truth",
}


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def method_of(row: str) -> str:
    """The name that a row of the page has in the results."""
    name = row.removeprefix("CNN: ").split(", ")[0]
    if name in ("gradient", "integrated gradients", "occlusion"):
        return f"{name.replace(' ', '_')}, {'CNN' if row.startswith('CNN') else 'same classifier'}"
    return {"brightness against the surroundings": "brightness"}.get(name, name)


def cells() -> list[tuple[str, dict[str, float]]]:
    """Each cell of the tables on phantoms, and its result."""
    maps, edits = results("explain")["maps"], results("phantom_edits")
    text = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8").split("### On phantoms")[1]
    found = []
    for line in text.splitlines():
        name, *values = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or not re.search(r"\d", " ".join(values)):
            continue
        if name in JUDGED:
            own = [(edits[edit].get(JUDGED[name])) for edit in EDITS]
        elif name.startswith("counterfactual, "):
            own = [edits[name.split("`")[1]][measure] for measure in MASKS]
        else:
            row = maps[method_of(name)]
            later = text.index(line) > text.index("What the classifiers say")
            own = [row[measure] for measure in (CURVES if later else MASKS)]
        found += [(f"{name}: {value}", one) for value, one in zip(values, own, strict=True) if value]
    return found


def test_cells_are_results() -> None:
    pairs = cells()
    assert len(pairs) == 4 * 12 + 4 * 5 + 22
    for cell, one in pairs:
        numbers = re.findall(r"\d+(?:\.\d+)?", cell.rsplit(": ", 1)[1])
        for number, part in zip(numbers, ("mean", "low", "high"), strict=False):
            digits = len(number.partition(".")[2])
            assert float(number) == pytest.approx(one[part], abs=0.501 * 10**-digits + 5e-5), cell
