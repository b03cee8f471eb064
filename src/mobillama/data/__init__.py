"""From documents to token shards, and from shards to the samples of a run. NumPy only, no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .corpus import Corpus, Document, HeldoutDocument
    from .order import SampleOrder, rank_slice
    from .preparation import prepare
    from .samples import Samples, Span

# Loaded on first use, so that recipes load without Arrow and the preparation libraries.
_HOME = {
    "Corpus": "corpus",
    "Document": "corpus",
    "HeldoutDocument": "corpus",
    "SampleOrder": "order",
    "rank_slice": "order",
    "prepare": "preparation",
    "Samples": "samples",
    "Span": "samples",
}
__all__ = ["Corpus", "Document", "HeldoutDocument", "SampleOrder", "Samples", "Span", "prepare", "rank_slice"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
