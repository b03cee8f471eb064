"""Attention for short sequences on a CPU: two batched matrix products around a softmax.

PyTorch's fused kernel walks blocks of keys so as never to hold the scores. Up to a few hundred
positions the scores are small, and plain products, which run at the processor's full rate, take half
the time for forward and backward together.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHORT_CAUSAL = "mobillama_short_causal"
MOST_POSITIONS = 512
"""Longer sequences leave the scores to the fused kernel: their size grows with the square."""


def short_causal_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Return causal attention of (B, H, T, E) queries over (B, K, T, E) keys and values, as (B, T, H, E).

    Anything but a plain causal sequence - a mask, a cache - goes to PyTorch's own kernel.
    """
    batch, heads, length, size = query.shape
    if attention_mask is not None or key.shape[2] != length or length > MOST_POSITIONS:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **arguments)
    kv_heads = key.shape[1]
    # The heads that share a key head are rows of one product, so keys and values are never repeated.
    rows = query.reshape(batch * kv_heads, heads // kv_heads * length, size)
    keys, values = (part.reshape(batch * kv_heads, length, size) for part in (key, value))
    future = future_mask(length, heads // kv_heads, query.dtype)
    scores = torch.baddbmm(future, rows, keys.transpose(1, 2), alpha=scaling)  # (B K, H/K T, T)
    mixed = torch.bmm(torch.softmax(scores, dim=-1), values).view(batch, heads, length, size)
    return mixed.transpose(1, 2).contiguous(), None


@lru_cache(maxsize=4)
def future_mask(length: int, heads_per_key: int, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores so that no position sees a later one, (heads_per_key * T, T)."""
    one_head = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
    return one_head.repeat(heads_per_key, 1)


AttentionInterface.register(SHORT_CAUSAL, short_causal_attention)
AttentionMaskInterface.register(SHORT_CAUSAL, sdpa_mask)
