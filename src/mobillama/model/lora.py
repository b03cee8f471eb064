"""Low-rank adapters while training; a checkpoint has them added to the weights, under the stock names."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .modeling import low_rank

SCALE = 2.0
"""LLaVA's: alpha twice the rank."""
A, B = ".lora_a", ".lora_b"


class LoRALinear(nn.Linear):
    """A linear layer whose weight stays as it is and learns an addition ``SCALE * b @ a``.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; ``b`` starts at zero, so nothing changes at first.
    """

    def __init__(self, inner: nn.Linear, rank: int):
        super().__init__(inner.in_features, inner.out_features, bias=inner.bias is not None, device="meta")
        self.weight, self.bias = inner.weight, inner.bias
        self.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, inner.in_features))
        self.lora_b = nn.Parameter(torch.zeros(inner.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) of (..., in_features) states."""
        return super().forward(input) + SCALE * low_rank(input, self.lora_a, self.lora_b)


def add_lora(model: nn.Module, rank: int) -> None:
    """Freeze a model and let every linear layer inside it learn an addition of some rank."""
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, LoRALinear(child, rank))


def is_adapter(name: str) -> bool:
    """Tell whether a weight is a part of an addition, by its name."""
    return name.endswith((A, B))


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by stock names, each with its addition."""
    whole = {name: weight for name, weight in weights.items() if not is_adapter(name)}
    for name, a in weights.items():
        if name.endswith(A):
            layer = name.removesuffix(A)
            whole[f"{layer}.weight"] = whole[f"{layer}.weight"] + SCALE * weights[layer + B] @ a
    return whole


def unmerged(
    weights: Mapping[str, Tensor], names: Iterable[str], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what to set weights to, to go on from a checkpoint of ``merged`` weights.

    Layers that learn an addition keep their own weight, which it was added to; the two parts of the addition
    are in the ``state``, as ``adapter.NAME``.
    """
    own = {name.removesuffix(A) + ".weight" for name in names if name.endswith(A)}
    return {
        name: state[f"adapter.{name}"] if is_adapter(name) else weights[name]
        for name in names
        if name not in own
    }
