"""The model: configuration, sharing schemes, modeling, presets and accounting.

Importing this package registers MobiLlama with transformers' Auto classes, without importing torch
before somebody needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import registration

if TYPE_CHECKING:
    from .configuration import MobiLlamaConfig
    from .modeling import MobiLlamaForCausalLM, MobiLlamaModel
    from .recipe import ModelSection
    from .session import TorchSession

HOMES = {
    "MobiLlamaConfig": "configuration",
    "MobiLlamaModel": "modeling",
    "MobiLlamaForCausalLM": "modeling",
    "ModelSection": "recipe",
    "TorchSession": "session",
}

__all__ = ["MobiLlamaConfig", "MobiLlamaForCausalLM", "MobiLlamaModel", "ModelSection", "TorchSession"]

registration.register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
