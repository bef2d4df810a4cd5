"""Reproducible research on training-data poisoning: attacks, a defence, and their records."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("poisonkit")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.1.0"
