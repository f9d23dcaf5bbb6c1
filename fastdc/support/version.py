"""The version of fastdc, read from the installed package. It is written once, in pyproject.toml."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fastdc")
except PackageNotFoundError:  # imported from a source folder that was never installed
    __version__ = "0+unknown"
