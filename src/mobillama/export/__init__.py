"""From a checkpoint to one file for a device: quantisation, the GGUF writer, the stock-Llama layout."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .quantise import Report, quantize

__all__ = ["Report", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import quantise

    return getattr(quantise, name)
