"""Promises about an image's neighbours: randomized smoothing and Lipschitz certificates."""

from fastdc.certification.base_classifiers import (
    AbstractBase,
    Copy,
    DiffusionBase,
    Feed,
    FunctionBase,
    Vote,
    check_base,
)
from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.certificates import Certificates
from fastdc.certification.confidence import certified_radius, clopper_pearson
from fastdc.certification.estimation import (
    ALPHA,
    COPIES,
    TARGET_COPIES,
    TOLERANCE,
    AbstractEstimation,
    Anytime,
    Fixed,
    Pilot,
    Predict,
    Target,
)
from fastdc.certification.estimation_words import ESTIMATIONS, estimation_of
from fastdc.certification.intervals import Estimate, mean, paired_difference, share, wilson_interval
from fastdc.certification.lipschitz import LipschitzCertificates, certify_errors, certify_table
from fastdc.certification.lipschitz_radii import BoundedErrors
from fastdc.certification.record_writer import ENVIRONMENT, RecordWriter
from fastdc.certification.records import UNKNOWN, Records, read_records, records_of
from fastdc.certification.smoothing import (
    SELECTION_COPIES,
    CertificateStream,
    CertifyProgress,
    OnCertifyProgress,
    Smoothing,
    certify_images,
    certify_prepared,
)
from fastdc.certification.summary import (
    certified_curve,
    compare,
    comparison_table,
    default_radii,
    mcnemar,
    names_of,
    summarize,
    summary_table,
)

__all__ = [
    "ABSTAIN",
    "ALPHA",
    "COPIES",
    "ENVIRONMENT",
    "ESTIMATIONS",
    "SELECTION_COPIES",
    "TARGET_COPIES",
    "TOLERANCE",
    "UNKNOWN",
    "AbstractBase",
    "AbstractEstimation",
    "Anytime",
    "BoundedErrors",
    "Certificate",
    "CertificateStream",
    "Certificates",
    "CertifyProgress",
    "Copy",
    "DiffusionBase",
    "Estimate",
    "Feed",
    "Fixed",
    "FunctionBase",
    "LipschitzCertificates",
    "OnCertifyProgress",
    "Pilot",
    "Predict",
    "RecordWriter",
    "Records",
    "Smoothing",
    "Target",
    "Vote",
    "certified_curve",
    "certified_radius",
    "certify_errors",
    "certify_images",
    "certify_prepared",
    "certify_table",
    "check_base",
    "clopper_pearson",
    "compare",
    "comparison_table",
    "default_radii",
    "estimation_of",
    "mcnemar",
    "mean",
    "names_of",
    "paired_difference",
    "read_records",
    "records_of",
    "share",
    "summarize",
    "summary_table",
    "wilson_interval",
]
