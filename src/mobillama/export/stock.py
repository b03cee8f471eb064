"""The stock-Llama layout: the FFN written out for each layer, so that llama.cpp can load it."""

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedConfig


def layer_ffn(
    weights: dict[str, Tensor], config: PreTrainedConfig, layer: int
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield llama.cpp's name, the checkpoint's name and the matrix of a layer's gate, up and down.

    The layer's low-rank delta and gain are folded in. A matrix without either is yielded as it is,
    the same object for every layer that shares it.
    """
    ffn, prefix = config.ffn_of_layer[layer], f"model.layers.{layer}"
    gain = weights.get(f"{prefix}.ffn_gain")
    for part in ("gate", "up", "down"):
        weight = f"model.ffns.{ffn}.{part}_proj.weight"
        matrix = weights[weight]
        if config.ffn_delta_rank:
            a, b = (weights[f"{prefix}.ffn_delta.{part}_{side}"].float() for side in "ab")
            matrix = matrix.float() + b @ a
        if part == "down" and gain is not None:
            matrix = matrix.float() * gain.float()  # the gain scales down_proj's inputs: its columns
        yield f"blk.{layer}.ffn_{part}.weight", weight, matrix
