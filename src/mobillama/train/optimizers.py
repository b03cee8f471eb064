"""Optimizers: AdamW for everything, or Muon for the matrices inside layers and FFNs."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from .recipe import OptimizerSection


@dataclass
class Optimizers:
    """The optimizers of one model, stepped together; each group keeps its own top learning rate."""

    members: list[torch.optim.Optimizer]

    def __post_init__(self) -> None:
        for group in self.groups():
            group.setdefault("top_lr", group["lr"])

    def groups(self) -> list[dict]:
        """Return the parameter groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its top."""
        for group in self.groups():
            group["lr"] = group["top_lr"] * factor

    def step(self) -> None:
        """Update all weights and forget the gradients."""
        for member in self.members:
            member.step()
            member.zero_grad(set_to_none=True)


def build(
    model: nn.Module, section: OptimizerSection, rates: Mapping[str, float] = MappingProxyType({})
) -> Optimizers:
    """Return the optimizers of a model.

    Arguments:
        rates: AdamW's learning rate of parts that have their own, by the beginning of their weights' names.

    Matrices decay; norms, gains and embeddings do not. With ``muon``, matrices of layers and FFNs are
    Muon's, and embeddings, head and vectors stay AdamW's. Muon's learning rate is scaled to match the
    size of AdamW's updates, so that one number serves all shapes.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv 2502.16982) for the scaling.
    """
    every = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    named = [(name, weight) for name, weight in every if not name.startswith(tuple(rates))]

    def chosen(in_ffn: bool, inner_matrix: bool) -> list[nn.Parameter]:
        return [
            weight
            for name, weight in named
            if is_inner_matrix(name, weight) == inner_matrix and (".ffns." in name) == in_ffn
        ]

    factor = section.ffn_lr_factor
    plain = [weight for weight in chosen(False, False) if weight.ndim < 2]
    tables = [weight for weight in chosen(False, False) if weight.ndim >= 2]
    outer = [group(plain, section.lr, 0.0), group(tables, section.lr, section.weight_decay)]
    for prefix, lr in rates.items():
        own = [weight for name, weight in every if name.startswith(prefix)]
        outer += [
            group([weight for weight in own if weight.ndim < 2], lr, 0.0),
            group([weight for weight in own if weight.ndim >= 2], lr, section.weight_decay),
        ]
    adamw = {"betas": section.betas, "eps": section.eps, "fused": True}
    if section.kind == "adamw":
        inner = [
            group(chosen(False, True), section.lr, section.weight_decay),
            group(chosen(True, True), section.lr * factor, section.weight_decay),
        ]
        return Optimizers([torch.optim.AdamW(kept(outer + inner), lr=section.lr, **adamw)])
    inner = [
        group(chosen(False, True), section.muon_lr, section.weight_decay),
        group(chosen(True, True), section.muon_lr * factor, section.weight_decay),
    ]
    muon = torch.optim.Muon(
        kept(inner), lr=section.muon_lr, momentum=section.muon_momentum, adjust_lr_fn="match_rms_adamw"
    )
    return Optimizers([torch.optim.AdamW(kept(outer), lr=section.lr, **adamw), muon])


def is_inner_matrix(name: str, weight: nn.Parameter) -> bool:
    """Return whether a weight is a matrix inside the stack, not the embedding or the head."""
    return weight.ndim == 2 and (".layers." in name or ".ffns." in name)


def group(weights: list[nn.Parameter], lr: float, weight_decay: float) -> dict:
    """Return one parameter group."""
    return {"params": weights, "lr": lr, "weight_decay": weight_decay}


def kept(groups: list[dict]) -> list[dict]:
    """Return the groups that hold anything."""
    return [entry for entry in groups if entry["params"]]
