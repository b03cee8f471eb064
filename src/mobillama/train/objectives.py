"""What the loop minimises: an objective turns a batch into a sum of losses and the number of predictions."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Batch = dict[str, Tensor]


class Objective(Protocol):
    """Return (sum of losses in nats, number of predictions) of one micro-batch; both are scalars."""

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]: ...


class NextToken:
    """Cross-entropy of each next token, with an optional z-loss.

    Source: z-loss as in Chowdhery et al. 2022 (PaLM), section 5.
    """

    def __init__(self, z_loss: float = 0.0):
        self.z_loss = z_loss

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        hidden = model.model(
            input_ids=batch["input_ids"], position_ids=batch.get("position_ids"), use_cache=False
        )
        states = hidden.last_hidden_state.flatten(0, 1)  # (B * T, hidden_size)
        labels = batch["labels"].flatten()
        counted = (labels != -100).sum()
        if not self.z_loss:
            # The loss without ever holding all logits.
            losses = functional.linear_cross_entropy(
                states, model.lm_head.weight.to(states.dtype), labels, reduction="sum"
            )
            return losses, counted
        logits = model.lm_head(states).float()
        log_partition = torch.logsumexp(logits, dim=-1)
        losses = functional.cross_entropy(logits, labels, reduction="sum")
        return losses + self.z_loss * log_partition.square().sum(), counted
