"""Between Llama and MobiLlama: make layers share FFNs that they had each of their own, and the way back.

A shared FFN starts as the mean of the FFNs it replaces, as the one of them nearest to all, or as that mean
with its `down_proj` fitted to their outputs on calibration text. What it misses can be given back to each
layer as low-rank deltas; at full rank they make the model exactly what it was.

Hidden units of FFNs trained apart are in no common order and cancel in a mean, so they are matched first.
Even so such a model needs healing (`mobillama train` with `objective = "distill"`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

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
Matrices = dict[str, Tensor]
"""An FFN: `gate_proj`, `up_proj` (inner, hidden) and `down_proj` (hidden, inner), float32."""


def share(
    model: MobiLlamaForCausalLM,
    table: Sequence[int],
    *,
    start: Start = "mean",
    delta_rank: int = 0,
    batches: Iterable[Tensor] | None = None,
) -> MobiLlamaForCausalLM:
    """Return a model like `model`, whose layers own their FFNs, with FFNs shared as `table` says.

    Arguments:
        table: which FFN each layer is to use.
        start: what a shared FFN starts as.
        delta_rank: of each layer's own addition, the best of that rank; 0 for none.
        batches: token ids (B, T) of calibration text, which `least-squares` needs.

    Raises:
        UserError: the model already shares, or has deltas or gains of its own.
    """
    config = model.config
    layers = range(config.num_hidden_layers)
    if config.ffn_of_layer != list(layers) or config.ffn_delta_rank or config.ffn_gains:
        raise UserError("only a model with one plain FFN a layer can be made to share them")
    if start == "least-squares" and batches is None:
        raise UserError("least squares fits outputs on text; give calibration text")
    settings = config.to_dict() | {"ffn_of_layer": list(table), "ffn_delta_rank": delta_rank}
    shared = MobiLlamaForCausalLM(MobiLlamaConfig(**settings)).to(dtype=model.dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]
    old, weights = model.state_dict(), shared.state_dict()
    weights |= {name: tensor for name, tensor in old.items() if ".ffns." not in name}
    own: list[Matrices] = [
        {part: old[f"model.ffns.{layer}.{part}.weight"].float() for part in PARTS} for layer in layers
    ]
    starts: dict[int, Matrices] = {}
    for ffn in set(table):
        users = [layer for layer in layers if table[layer] == ffn]
        starts[ffn], ordered = start_of([own[layer] for layer in users], start)
        own = [ordered[users.index(layer)] if layer in users else own[layer] for layer in layers]

    def write(parts: Sequence[str]) -> None:
        for ffn in starts:
            for part in parts:
                weights[f"model.ffns.{ffn}.{part}.weight"].copy_(starts[ffn][part])
        for layer in layers if delta_rank else ():
            for part in parts:
                kept = weights[f"model.ffns.{table[layer]}.{part}.weight"].float()
                name = f"model.layers.{layer}.ffn_delta.{part.removesuffix('_proj')}"
                for end, factor in zip("ab", low_rank(own[layer][part] - kept, delta_rank), strict=True):
                    weights[f"{name}_{end}"].copy_(factor)
        shared.load_state_dict(weights)

    write(PARTS)
    if start == "least-squares":
        assert batches is not None
        fit_down(model, shared, starts, batches)
        write(("down_proj",))
    return shared.eval()


def start_of(own: Sequence[Matrices], start: Start) -> tuple[Matrices, Sequence[Matrices]]:
    """Return what a shared FFN starts as, and the FFNs it replaces, their hidden units in its order."""
    chosen = nearest(own)
    if start == "nearest":
        return own[chosen], own
    own = [in_order_of(own[chosen], matrices) for matrices in own]
    return {part: mean_of_their_length([matrices[part] for matrices in own]) for part in PARTS}, own


def mean_of_their_length(matrices: Sequence[Tensor]) -> Tensor:
    """Return the mean of matrices, made as long as they are: of n unlike ones it is shorter by sqrt(n)."""
    stacked = torch.stack(tuple(matrices))
    mean = stacked.mean(0)
    length = stacked.flatten(1).norm(dim=1).mean()
    return mean * (length / mean.norm().clamp_min(torch.finfo(torch.float32).tiny))


def in_order_of(reference: Matrices, own: Matrices) -> Matrices:
    """Return an FFN that computes the same, with each hidden unit at the place of the reference's likest.

    A unit may stand anywhere, and what goes into it through `up_proj` and out through `down_proj` may both
    change sign.

    Source: Ainsworth et al. 2022 (arXiv 2209.04836), matching of weights, for a gated FFN.
    """
    from scipy.optimize import linear_sum_assignment

    carried = reference["up_proj"] @ own["up_proj"].T + reference["down_proj"].T @ own["down_proj"]
    likeness = reference["gate_proj"] @ own["gate_proj"].T + carried.abs()  # (inner, inner)
    places, order = (torch.from_numpy(ids) for ids in linear_sum_assignment(likeness.cpu(), maximize=True))
    sign = torch.where(carried[places, order] < 0, -1.0, 1.0)
    return {
        "gate_proj": own["gate_proj"][order],
        "up_proj": own["up_proj"][order] * sign[:, None],
        "down_proj": own["down_proj"][:, order] * sign,
    }


def nearest(own: Sequence[Matrices]) -> int:
    """Return which FFN is nearest to all of them: squared distances, relative to the norms."""
    distances = torch.zeros(len(own))
    for part in PARTS:
        flat = torch.stack([matrices[part].flatten() for matrices in own])
        distances += torch.cdist(flat, flat).square().sum(1).cpu() / flat.square().sum().cpu()
    return int(distances.argmin())


@torch.inference_mode()
def fit_down(
    model: MobiLlamaForCausalLM,
    shared: MobiLlamaForCausalLM,
    starts: dict[int, Matrices],
    batches: Iterable[Tensor],
) -> None:
    """Set the `down_proj` of each of `starts` to that which best gives the FFN outputs of `model` on text.

    Least squares over all layers that use an FFN, each reading what it reads in `model`, with its own deltas
    of gate and up projection. Normal equations, with a ridge towards what `down_proj` was.
    """
    inner = model.config.intermediate_size
    left = {ffn: torch.zeros(inner, inner, dtype=torch.float64, device=model.device) for ffn in starts}
    right = {
        ffn: torch.zeros_like(start["down_proj"].T, dtype=torch.float64) for ffn, start in starts.items()
    }

    def adder(layer: int) -> Callable[..., None]:
        ffn, delta = shared.config.ffn_of_layer[layer], shared.model.layers[layer].ffn_delta
        reader: Any = shared.model.ffns[ffn]

        def add(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            states = reader.inner_states(inputs[0], delta).flatten(0, -2).double()
            left[ffn] += states.T @ states
            right[ffn] += states.T @ output.flatten(0, -2).double()

        return add

    hooks = [ffn.register_forward_hook(adder(layer)) for layer, ffn in enumerate(model.model.ffns)]
    try:
        for input_ids in batches:
            model(input_ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for ffn, start in starts.items():
        ridge = RIDGE * left[ffn].diagonal().mean()
        right[ffn] += ridge * start["down_proj"].T
        left[ffn].diagonal().add_(ridge)
        start["down_proj"] = torch.linalg.solve(left[ffn], right[ffn]).T.float()


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
