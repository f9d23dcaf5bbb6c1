"""scikit-learn's own checks, over an estimator that trains and over one with a model that exists."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from sklearn.utils.estimator_checks import parametrize_with_checks

from fastdc.estimator import DiffusionClassifierEstimator

# A network that trains in 0.1 s: fits are what these checks spend their time on.
TINY = {"width": 16, "steps": 60, "batch": 64, "lr": 1e-2, "warmup": 10, "ema": 0.9, "dropout": 0.0, "threads": 1}

OTHER_FEATURES = "a model of 8x8 images takes rows of 64 features, and the check makes rows of 1 to 20"
FAILS_WITH_A_MODEL = dict.fromkeys(
    (
        "check_classifier_data_not_an_array",
        "check_classifiers_classes",
        "check_classifiers_train",
        "check_decision_proba_consistency",
        "check_dict_unchanged",
        "check_dont_overwrite_parameters",
        "check_dtype_object",
        "check_estimators_dtypes",
        "check_estimators_fit_returns_self",
        "check_estimators_nan_inf",
        "check_estimators_overwrite_params",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit2d_predict1d",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_fit_score_takes_y",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in",
        "check_n_features_in_after_fitting",
        "check_pipeline_consistency",
        "check_positive_only_tag_during_fit",
        "check_readonly_memmap_input",
        "check_supervised_y_2d",
    ),
    OTHER_FEATURES,
)

ESTIMATORS = (
    DiffusionClassifierEstimator(train=TINY, calibrate=False, load={"threads": 1}),
    DiffusionClassifierEstimator("digits-mlp", calibrate=False, load={"threads": 1}),
)


def expected(estimator: DiffusionClassifierEstimator) -> dict[str, str]:
    return {} if estimator.model is None else FAILS_WITH_A_MODEL


@parametrize_with_checks(list(ESTIMATORS), expected_failed_checks=expected)  # type: ignore[untyped-decorator]
def test_scikit_learn_finds_an_estimator(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
