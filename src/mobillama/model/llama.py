"""Between Llama and MobiLlama: make layers share FFNs that they had each of their own, and the way back.

A shared FFN starts as the mean of the FFNs it replaces, as the one of them nearest to all, or as the least
squares fit of their outputs on calibration text. What it misses can be given back to each layer as low-rank
deltas; at full rank they make the model exactly what it was.

Hidden units of FFNs trained apart are in no common order, so a mean of them is far from any: expect such a
model to need healing (`mobillama train` with `objective = "distill"`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mobillama.core.errors import UserError

from .configuration import MobiLlamaConfig
from .modeling import MobiLlamaForCausalLM

Start = Literal["mean", "nearest", "least-squares"]
STARTS: tuple[Start, ...] = ("mean", "nearest", "least-squares")
PARTS = ("gate_proj", "up_proj", "down_proj")
# Of the mean diagonal: keeps the normal equations solvable where calibration leaves directions unseen.
RIDGE = 1e-4
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Moments:
    """Second moments of what one layer's FFN reads on calibration text.

    Attributes:
        outer: of its input, (hidden_size, hidden_size): what gate and up projections see.
        inner: of its inner activations, (intermediate_size, intermediate_size): what `down_proj` sees.
    """

    outer: Tensor
    inner: Tensor

    def of(self, part: str) -> Tensor:
        """Return the moments of what a projection reads."""
        return self.inner if part == "down_proj" else self.outer


def share(
    model: MobiLlamaForCausalLM,
    table: Sequence[int],
    *,
    start: Start = "mean",
    delta_rank: int = 0,
    moments: Sequence[Moments] | None = None,
) -> MobiLlamaForCausalLM:
    """Return a model like `model`, whose layers own their FFNs, with FFNs shared as `table` says.

    Arguments:
        table: which FFN each layer is to use.
        start: what a shared FFN starts as; `least-squares` needs `moments` of every layer.
        delta_rank: of each layer's own addition, the best of that rank; 0 for none.

    Raises:
        UserError: the model already shares, or has deltas or gains of its own.
    """
    config = model.config
    layers = config.num_hidden_layers
    if config.ffn_of_layer != list(range(layers)) or config.ffn_delta_rank or config.ffn_gains:
        raise UserError("only a model with one plain FFN a layer can be made to share them")
    if start == "least-squares" and moments is None:
        raise UserError("least squares fits outputs on text; give calibration text")
    settings = config.to_dict() | {"ffn_of_layer": list(table), "ffn_delta_rank": delta_rank}
    shared_config = MobiLlamaConfig(**settings)
    weights = {name: tensor for name, tensor in model.state_dict().items() if ".ffns." not in name}
    for ffn in range(shared_config.num_ffns):
        users = [layer for layer in range(layers) if table[layer] == ffn]
        own = {part: [ffn_weight(model, layer, part) for layer in users] for part in PARTS}
        for part, merged in start_of(own, start, moments and [moments[layer] for layer in users]).items():
            kept = merged.to(own[part][0].dtype)
            weights[f"model.ffns.{ffn}.{part}.weight"] = kept
            if delta_rank:
                for layer, weight in zip(users, own[part], strict=True):
                    name = f"model.layers.{layer}.ffn_delta.{part.removesuffix('_proj')}"
                    a, b = low_rank(weight.float() - kept.float(), delta_rank)
                    weights |= {f"{name}_a": a.to(kept.dtype), f"{name}_b": b.to(kept.dtype)}
    shared = MobiLlamaForCausalLM(shared_config).to(dtype=model.dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]
    shared.load_state_dict(weights)
    return shared.eval()


def ffn_weight(model: MobiLlamaForCausalLM, ffn: int, part: str) -> Tensor:
    """Return one of an FFN's three matrices."""
    return model.state_dict()[f"model.ffns.{ffn}.{part}.weight"]


def start_of(
    own: dict[str, list[Tensor]], start: Start, moments: Sequence[Moments] | None
) -> dict[str, Tensor]:
    """Return the three float32 matrices a shared FFN starts as, from those of the layers that use it."""
    if start == "nearest":
        chosen = nearest(own)
        return {part: matrices[chosen].float() for part, matrices in own.items()}
    if start == "mean":
        return {part: torch.stack([m.float() for m in matrices]).mean(0) for part, matrices in own.items()}
    assert moments is not None
    return {
        part: least_squares(matrices, [moment.of(part) for moment in moments])
        for part, matrices in own.items()
    }


def nearest(own: dict[str, list[Tensor]]) -> int:
    """Return which layer's FFN is nearest to all of them: squared distances, relative to the norms."""
    count = len(own[PARTS[0]])
    distances = torch.zeros(count)
    for matrices in own.values():
        flat = torch.stack([matrix.float().flatten() for matrix in matrices])
        distances += torch.cdist(flat, flat).square().sum(1) / flat.square().sum()
    return int(distances.argmin())


def least_squares(matrices: Sequence[Tensor], moments: Sequence[Tensor]) -> Tensor:
    """Return the matrix W of least summed |W x - W_l x|^2 over what each layer l reads.

    Its normal equations: W sum(C_l) = sum(W_l C_l), with C_l the second moments of layer l.
    """
    total = torch.stack([moment.double() for moment in moments]).sum(0)
    right = sum(matrix.double() @ moment.double() for matrix, moment in zip(matrices, moments, strict=True))
    mean = torch.stack([matrix.double() for matrix in matrices]).mean(0)
    # The ridge pulls towards the mean, which is what unseen directions then get.
    ridge = RIDGE * total.diagonal().mean() * torch.eye(len(total), dtype=torch.float64)
    return torch.linalg.solve(total + ridge, (right + mean @ ridge).T).T.float()


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return a (rank, in) and b (out, rank) with `b @ a` the best approximation of a matrix (out, in).

    Source: Eckart and Young 1936. A rank beyond the matrix's own is filled with zeros.
    """
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[:rank].sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    missing = rank - len(root)
    if missing > 0:
        a, b = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))
    return a.float(), b.float()


@torch.inference_mode()
def measure_moments(model: MobiLlamaForCausalLM, batches: Iterator[Tensor]) -> list[Moments]:
    """Return the second moments of every FFN of a model on token batches (B, T)."""
    config, device = model.config, model.device
    found = [
        Moments(
            *(
                torch.zeros(size, size, device=device)
                for size in (config.hidden_size, config.intermediate_size)
            )
        )
        for _ in range(config.num_ffns)
    ]

    def adder(total: Tensor) -> Callable[..., None]:
        def add(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            states = inputs[0].flatten(0, -2).float()
            total.addmm_(states.T, states)

        return add

    hooks = []
    for moments, ffn in zip(found, model.model.ffns, strict=True):
        hooks.append(ffn.gate_proj.register_forward_pre_hook(adder(moments.outer)))  # pyright: ignore
        hooks.append(ffn.down_proj.register_forward_pre_hook(adder(moments.inner)))  # pyright: ignore
    try:
        for input_ids in batches:
            model(input_ids.to(device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def llama_weights(model: MobiLlamaForCausalLM) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's weights under Llama's names: every layer's FFN whole, its delta and gain folded in."""
    weights, config = model.state_dict(), model.config
    for name, tensor in weights.items():
        if ".ffns." not in name and ".ffn_delta." not in name and ".ffn_gain" not in name:
            yield name, tensor
    for layer, ffn in enumerate(config.ffn_of_layer):
        for part in PARTS:
            matrix = weights[f"model.ffns.{ffn}.{part}.weight"]
            if config.ffn_delta_rank:
                delta = f"model.layers.{layer}.ffn_delta.{part.removesuffix('_proj')}"
                a, b = weights[f"{delta}_a"].float(), weights[f"{delta}_b"].float()
                matrix = (matrix.float() + b @ a).to(matrix.dtype)
            if config.ffn_gains and part == "down_proj":
                matrix = matrix * weights[f"model.layers.{layer}.ffn_gain"]
            yield f"model.layers.{layer}.mlp.{part}.weight", matrix
