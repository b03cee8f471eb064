"""The command line: one verb for each arrow of the data's way."""

from .app import main

__all__ = ["main"]
