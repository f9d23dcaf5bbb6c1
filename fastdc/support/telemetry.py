"""Telemetry of other libraries: switched off when fastdc is imported. A value that the user has set stays.

ONNX Runtime 1.29 and newer write a device id below the home directory on import and queue events about the machine and
the models. Hugging Face's libraries name the machine's software in requests. fastdc itself sends nothing.
"""

import os

SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables that the libraries read when they are imported."""


def switch_off() -> None:
    """Sets the variables that are not set, for this process and its children.

    Example:
        >>> import os
        >>> os.environ["ORT_DISABLE_TELEMETRY"]
        '1'
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
