"""Code that every wing uses and that knows nothing of diffusion: exceptions, checks, array types, packages, files."""

from typing import TYPE_CHECKING

from fastdc.support import telemetry
from fastdc.support.exceptions import (
    BackendError,
    BundleError,
    FastdcError,
    InputError,
    Interrupted,
    MissingDependencyError,
    PromptWarning,
)
from fastdc.support.flag import Flag
from fastdc.support.lazy_names import lazy_names
from fastdc.support.messages import one_line, printable, shorten
from fastdc.support.optional import check_installed, installed, require, version_of
from fastdc.support.shown import shown
from fastdc.support.strict_json import strict_json
from fastdc.support.suggestions import did_you_mean

# Before any library can be imported by way of fastdc.
telemetry.switch_off()

if TYPE_CHECKING:
    from fastdc.support import checks, html_pages
    from fastdc.support.arrays import Float32, Float64, Floats, Int32, Int64, Mask
    from fastdc.support.atomic_files import replace_folder, sync_folder, temporary_folder, whole_file, write_whole
    from fastdc.support.cache_folders import cache_folder
    from fastdc.support.daemon_threads import DEVICE_THREAD, GRACE, DaemonThreads, calls_left, interruptible
    from fastdc.support.distribution import DISTRIBUTION, install_hint
    from fastdc.support.pixel_values import FITS, UsualWindow, as_array, as_pixels, full_scale
    from fastdc.support.process_locks import ProcessLock
    from fastdc.support.processes import check_process, fork_safe_lock
    from fastdc.support.tables import (
        SHOWN_ROWS,
        Columns,
        aligned,
        chosen_ids,
        chosen_rows,
        data_frame,
        html_table,
        plain,
        save_table,
    )
    from fastdc.support.version import __version__
else:  # NumPy and other modules that take a while, on first use
    __getattr__ = lazy_names(
        __name__,
        {
            **dict.fromkeys(("Float32", "Float64", "Floats", "Int32", "Int64", "Mask"), "arrays"),
            **dict.fromkeys(
                ("replace_folder", "sync_folder", "temporary_folder", "whole_file", "write_whole"), "atomic_files"
            ),
            "cache_folder": "cache_folders",
            **dict.fromkeys(
                ("DEVICE_THREAD", "GRACE", "DaemonThreads", "calls_left", "interruptible"), "daemon_threads"
            ),
            **dict.fromkeys(("DISTRIBUTION", "install_hint"), "distribution"),
            **dict.fromkeys(("FITS", "UsualWindow", "as_array", "as_pixels", "full_scale"), "pixel_values"),
            "html_pages": "html_pages",
            "ProcessLock": "process_locks",
            **dict.fromkeys(("check_process", "fork_safe_lock"), "processes"),
            **dict.fromkeys(
                (
                    "SHOWN_ROWS",
                    "Columns",
                    "aligned",
                    "chosen_ids",
                    "chosen_rows",
                    "data_frame",
                    "html_table",
                    "plain",
                    "save_table",
                ),
                "tables",
            ),
            "__version__": "version",
        },
    )

__all__ = [
    "DEVICE_THREAD",
    "DISTRIBUTION",
    "FITS",
    "GRACE",
    "SHOWN_ROWS",
    "BackendError",
    "BundleError",
    "Columns",
    "DaemonThreads",
    "FastdcError",
    "Flag",
    "Float32",
    "Float64",
    "Floats",
    "InputError",
    "Int32",
    "Int64",
    "Interrupted",
    "Mask",
    "MissingDependencyError",
    "ProcessLock",
    "PromptWarning",
    "UsualWindow",
    "__version__",
    "aligned",
    "as_array",
    "as_pixels",
    "cache_folder",
    "calls_left",
    "check_installed",
    "check_process",
    "checks",
    "chosen_ids",
    "chosen_rows",
    "data_frame",
    "did_you_mean",
    "fork_safe_lock",
    "full_scale",
    "html_pages",
    "html_table",
    "install_hint",
    "installed",
    "interruptible",
    "lazy_names",
    "one_line",
    "plain",
    "printable",
    "replace_folder",
    "require",
    "save_table",
    "shorten",
    "shown",
    "strict_json",
    "sync_folder",
    "temporary_folder",
    "version_of",
    "whole_file",
    "write_whole",
]
