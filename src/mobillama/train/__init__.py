"""Training: one loop for every objective, with checkpoints that repeat and records that tell."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints import last_checkpoint
    from .training import train

# Loaded on first use, so that recipes load without torch.
_HOME = {"last_checkpoint": "checkpoints", "train": "training"}
__all__ = ["last_checkpoint", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
