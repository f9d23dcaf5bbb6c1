"""What is promised about an image's neighbours: randomized smoothing and Lipschitz certificates."""

from fastdc.certification.base_classifiers import AbstractBase, Copy, DiffusionBase, Feed, FunctionBase, Vote
from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.confidence import certified_radius, clopper_pearson
from fastdc.certification.estimation import AbstractEstimation, Anytime, Fixed, Pilot, Predict, Target, check_estimation
from fastdc.certification.lipschitz import (
    BoundedErrors,
    LipschitzCertificates,
    bounded_errors,
    certify_errors,
    certify_table,
)
from fastdc.certification.noisy_copies import noisy_copies, one_copy_each
from fastdc.certification.record_writer import ENVIRONMENT, RecordWriter
from fastdc.certification.records import (
    FORMAT,
    HEADER,
    MAX_BYTES,
    UNKNOWN,
    VERSION,
    Records,
    check_indices,
    manifest_path,
    parse_records,
    read_manifest,
    read_records,
    record_line,
)
from fastdc.certification.smoothing import CertifyProgress, OnCertifyProgress, Smoothing, certify_images
from fastdc.certification.summary import (
    check_radii,
    compare,
    comparison_table,
    default_radii,
    names_of,
    plot_curves,
    summarize,
    table,
)

__all__ = [
    "ABSTAIN",
    "ENVIRONMENT",
    "FORMAT",
    "HEADER",
    "MAX_BYTES",
    "UNKNOWN",
    "VERSION",
    "AbstractBase",
    "AbstractEstimation",
    "Anytime",
    "BoundedErrors",
    "Certificate",
    "CertifyProgress",
    "Copy",
    "DiffusionBase",
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
    "bounded_errors",
    "certified_radius",
    "certify_errors",
    "certify_images",
    "certify_table",
    "check_estimation",
    "check_indices",
    "check_radii",
    "clopper_pearson",
    "compare",
    "comparison_table",
    "default_radii",
    "manifest_path",
    "names_of",
    "noisy_copies",
    "one_copy_each",
    "parse_records",
    "plot_curves",
    "read_manifest",
    "read_records",
    "record_line",
    "summarize",
    "table",
]
