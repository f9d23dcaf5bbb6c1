"""The version of fastdc, looked up on first use."""

from fastdc.support.distribution import find_version

__version__ = find_version()
