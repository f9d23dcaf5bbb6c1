"""What a model without error scores under the scoring that was released with the compositional evaluation.

    python models/make_scenes.py DATA && python bench/released_scoring.py DATA

The model answers a text that is true of the image, the first or second object or either statement of the relation, if
there is one among the candidates, and any candidate at random otherwise. Under the paper's protocol it is always right.
No network is run.
"""

from typing import Any

import numpy as np

from common import parser, print_table, save
from fastdc.matching import RELEASED, Answered, Cell, Comparison, Matched, Trials, read_layout

OPPOSITE = {"left": "right", "right": "left"}


def true_texts(task: str, group: str) -> set[str]:
    """The texts that are true of the images of a pair's folder."""
    words = group.split("_")
    if task == "two_object":
        return {f"a photo of a {words[0]} {words[1]}", f"a photo of a {words[2]} {words[3]}"}
    first, relation, second = words
    said = ((first, relation, second), (second, OPPOSITE[relation], first))
    return {f"a photo of a {a} to the {to} of a {b}" for a, to, b in said}


def perfect(cell: Cell, trials: Trials, seed: int = 0) -> Answered:
    """The answers of the model without error."""
    rng = np.random.default_rng(seed)
    answers = []
    for i in range(len(trials)):
        true = true_texts(cell.task, trials.ids[i].split("/")[2])
        texts = trials.texts_of(i)
        right = [place for place, text in enumerate(texts) if text in true]
        answers.append(rng.choice(right or len(texts)))
    rows = np.arange(len(trials))
    scores = tuple(np.zeros(len(one)) for one in trials.candidates)
    return Answered(cell, trials, Matched("perfect", rows, scores, np.array(answers), np.ones_like(rows), 0.0))


def main() -> None:
    """Scores the model under both protocols."""
    options = parser(__doc__, "released_scoring")
    options.add_argument("data", help="folder of make_scenes.py")
    asked = options.parse_args()
    rows: list[dict[str, Any]] = []
    for compat in (None, RELEASED):
        cells = read_layout(asked.data, tasks=["two_object", "relational"], compat=compat)
        for score in Comparison.of([perfect(*one) for one in cells.items()]).scores:
            groups = len(set(cells[score.cell].groups))
            found = {"cell": str(score.cell), "scoring": compat or "paper", "groups": groups, "images": score.images}
            rows.append({**found, "accuracy": score.accuracy.value, **score.kinds})
    columns = ["cell", "scoring", "groups", "images", "accuracy"]
    shown = [[*(str(row[name]) for name in columns[:-1]), f"{100 * row['accuracy']:.1f}"] for row in rows]
    print_table("A model without error", columns, shown)
    save(asked.out, {"rows": rows})


if __name__ == "__main__":
    main()
