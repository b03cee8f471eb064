"""Number formats while training: fp32 weights, and what forward and backward passes compute in."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mobillama.model import MobiLlamaForCausalLM

from .objectives import Batch, Objective
from .parallel import language_of, release
from .state import TrainingState


@dataclass(frozen=True)
class Precision:
    """How held-out text is measured, with the fp32 weights themselves."""

    name: str
    device: torch.device

    def context(self) -> AbstractContextManager[object]:
        """Return the context that forward passes run in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.name == "bf16" else nullcontext()


class Passes(Protocol):
    """Forward and backward passes that leave their gradients in the fp32 weights of a state."""

    def begin(self) -> None:
        """Take up the weights as they are now."""
        ...

    def forward(self, objective: Objective, batch: Batch) -> Tensor:
        """Return the sum of losses, to call ``backward`` on."""
        ...

    def collect(self) -> None:
        """Add the gradients of the backward pass to those of the fp32 weights."""
        ...


class DirectPasses:
    """Passes through the weights themselves, in fp32; where they are sharded, as they are gathered."""

    def __init__(self, state: TrainingState):
        self.state = state

    def begin(self) -> None:
        """Do nothing: the weights are the ones to use."""

    def forward(self, objective: Objective, batch: Batch) -> Tensor:
        """Return the sum of losses."""
        return self.state.apply(objective, batch)[0]

    def collect(self) -> None:
        """Free what was gathered; gradients are in place."""
        release(self.state.model)


class CopyPasses:
    """Passes through a bf16 copy of the model, renewed once a step.

    Against autocast this saves a cast at every layer boundary, since hidden states stay bf16 as well,
    and gradients of several micro-batches still add up in fp32.
    """

    def __init__(self, state: TrainingState):
        self.model = copy.deepcopy(state.model).to(torch.bfloat16)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if state.world.device.type == "cpu":
            from .attention import SHORT_CAUSAL

            language_of(self.model).set_attn_implementation(SHORT_CAUSAL)
        self.copies: list[Tensor] = list(self.model.parameters())
        self.weights: list[Tensor] = list(state.model.parameters())

    def begin(self) -> None:
        """Round the fp32 weights into the copy."""
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.weights)  # pyright: ignore[reportPrivateImportUsage]

    def forward(self, objective: Objective, batch: Batch) -> Tensor:
        """Return the sum of losses."""
        return objective(self.model, batch)[0]

    @torch.no_grad()
    def collect(self) -> None:
        """Move the copy's gradients to the fp32 weights."""
        for copied, weight in zip(self.copies, self.weights, strict=True):
            if copied.grad is None:
                continue
            if weight.grad is None:
                weight.grad = copied.grad.float()
            else:
                weight.grad += copied.grad
            copied.grad = None


def passes(state: TrainingState, name: str) -> tuple[Passes, MobiLlamaForCausalLM]:
    """Return how a state's forward and backward passes run, and the model they run through."""
    if name == "bf16" and state.world.size == 1:
        through_copy = CopyPasses(state)
        return through_copy, through_copy.model
    return DirectPasses(state), state.model
