"""The release's attention, to repeat its logits: `attn_implementation="official_bf16"`.

The released code casts queries, keys and values to bf16 whatever the model's type, and ignores the
padding mask. Against attention in fp32 its logits differ by about 3e-3.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "official_bf16"


def official_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Return causal attention in bf16, (B, T, heads, head_dim) in the query's type; padding counts as text.

    Arguments:
        query: (B, heads, T, head_dim); key and value (B, KV heads, past + T, head_dim).
    """
    q, k, v = (states.to(torch.bfloat16) for states in (query, key, value))
    length, whole = q.shape[2], k.shape[2]
    # Aligned at the end, as flash attention has it: the last token sees everything.
    mask = None
    if length != whole:
        mask = torch.ones(length, whole, dtype=torch.bool, device=q.device).tril(whole - length)
    grouped = module.num_key_value_groups > 1
    states = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
    )
    return states.to(query.dtype).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the name known to transformers."""
    AttentionInterface.register(NAME, official_attention)
