"""From a run directory to one HTML page that works offline: curves, samples, timeline, provenance."""

from .page import write

__all__ = ["write"]
