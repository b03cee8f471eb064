"""Number formats while training: fp32 weights, with matrix products in fp32 or, under autocast, in bf16."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """How forward passes compute on a device. Autocast casts a shared FFN once a pass, not once a layer."""

    name: str
    device: torch.device

    def context(self) -> AbstractContextManager[object]:
        """Return the context that forward passes run in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.name == "bf16" else nullcontext()
