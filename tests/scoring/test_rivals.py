"""Other classifiers beside the scored one: pairs by a loop, McNemar's test by statsmodels, areas by scikit-learn."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fastdc.scoring import Score, rival_of, score

metrics = pytest.importorskip("sklearn.metrics")

RNG = np.random.default_rng(6)
LABELS = RNG.integers(0, 3, 200)


def answered(apart: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.7] * 3, 200) + apart * np.eye(3)[LABELS]
    p /= p.sum(axis=1, keepdims=True)
    return p.argmax(axis=1), p


OURS, OTHER = answered(0.5, 1), answered(0.2, 2)


def compared() -> Score:
    own, other = (score(LABELS, p, ["a", "b", "c"]) for _, p in (OURS, OTHER))
    return replace(own, rivals=(rival_of("cnn", LABELS, OURS, OTHER, other, {"epoch": 3}),))


def test_pairs_are_counted_and_tested() -> None:
    (rival,) = compared().rivals
    only = [(a == y and b != y, a != y and b == y) for a, b, y in zip(OURS[0], OTHER[0], LABELS, strict=True)]
    assert (rival.only_scored, rival.only_rival) == tuple(np.sum(only, axis=0))
    mean = (OURS[0] == LABELS).mean() - (OTHER[0] == LABELS).mean()
    assert rival.difference.value == pytest.approx(mean)
    assert rival.difference.low < mean < rival.difference.high
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    table = [[0, rival.only_scored], [rival.only_rival, 0]]
    assert rival.p_value == pytest.approx(tables.mcnemar(table, exact=True).pvalue)


def test_the_difference_of_areas_takes_the_same_images_for_both() -> None:
    (rival,) = compared().rivals
    areas = [[metrics.roc_auc_score(k == LABELS, p[:, k]) for k in range(3)] for _, p in (OURS, OTHER)]
    found = rival.auroc_difference
    assert found.value == pytest.approx(np.mean(areas[0]) - np.mean(areas[1]))
    assert 0 < found.low < found.value < found.high
    same = rival_of("itself", LABELS, OURS, OURS, score(LABELS, OURS[1]), {})
    assert same.auroc_difference == (0.0, 0.0, 0.0)  # resamples of their own would have a width
    assert (same.difference.value, same.p_value) == (0.0, 1.0)
    one = np.zeros(200, np.int64)
    assert np.isnan(rival_of("one", one, OURS, OTHER, score(one, OTHER[1]), {}).auroc_difference.value)


def test_the_pages_show_both() -> None:
    found = compared()
    told = found.to_dict()["baselines"][0]
    assert told["name"] == "cnn"
    assert told["facts"] == {"epoch": 3}
    assert told["accuracy"]["value"] == (OTHER[0] == LABELS).mean()
    json.dumps(told, allow_nan=False)
    page = str(found)
    assert "classifier  accuracy, %" in page
    assert "\nthis model  " in page
    assert "\ncnn  " in page
    assert "McNemar's exact test" in page
    assert "Beside other classifiers" in found._repr_html_()
    assert "other classifiers" not in score(LABELS, OURS[1])._repr_html_()
    assert score(LABELS, OURS[1]).to_dict()["baselines"] == []
