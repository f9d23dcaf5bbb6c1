"""All fuzz targets by name. Each is a function from a scratch folder to a :class:`Target`."""

from collections.abc import Callable
from pathlib import Path

from fuzzing import calls, data_files, matching_files, model_files, record_files
from fuzzing.target import Target

TARGETS: dict[str, Callable[[Path], Target]] = {
    **data_files.TARGETS,
    **record_files.TARGETS,
    **model_files.TARGETS,
    **matching_files.TARGETS,
    **calls.TARGETS,
}
