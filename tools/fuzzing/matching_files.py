"""Targets that read the compositional evaluation: tables of candidates, and answers that a folder keeps."""

from pathlib import Path

import numpy as np

from fastdc.matching import Cell, Entrant, Matched, OnMatched, Trials, compose, read_layout
from fuzzing.mutations import change_json, change_table
from fuzzing.target import Target

_PAIR = b""",prompt,class_name,classidx,kind
0,a photo of a red cube,red cube,0,right
1,a photo of a blue cube,blue cube,1,colour
2,"a photo of a red, cone",red cone,2,
"""


def candidates(scratch: Path) -> Target:
    """Tables of a pair's candidates."""
    for folder in ("two_object/val/red_cube_blue_sphere/red cube", "two_object_prompts/two_obj_val"):
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    (scratch / "two_object/val/red_cube_blue_sphere/red cube/0.png").touch()
    file = scratch / "two_object_prompts/two_obj_val/red_cube_blue_sphere.csv"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return read_layout(scratch, settings=["zsl"])

    return Target([_PAIR], read, change_table)


class _First:
    """A matcher whose answer is the first text."""

    name = "first"

    def match(self, trials: Trials, progress: OnMatched | None = None) -> Matched:
        """Scores all texts alike but the first."""
        scores = tuple(-np.arange(len(one), dtype=np.float64) for one in trials.candidates)
        rows = np.arange(len(trials))
        return Matched(self.name, rows, scores, np.zeros_like(rows), np.ones_like(rows), 0.5, {"seed": 0})


def answers(scratch: Path) -> Target:
    """Answers that a folder keeps."""
    images = np.zeros((3, 1, 2, 2), np.uint8)
    cells = {Cell("single", "val"): Trials.of(images, [["a", "b"], ["b", "c", "a"], ["c", "a"]])}
    file = scratch / "answers" / "first" / "single_val_zsl.json"
    compose([Entrant.of(_First(), cells, {"seed": 0})], out=scratch)
    seed = file.read_bytes()

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return compose([Entrant.of(_First(), cells, {"seed": 0})], out=scratch).to_dict()

    return Target([seed], read, change_json)


TARGETS = {"candidates": candidates, "answers": answers}
