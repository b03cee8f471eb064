"""Which tensor of a checkpoint becomes which of the device file, and in which type."""

import re
from dataclasses import dataclass

from mobillama.core.errors import UserError, did_you_mean

TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "ffn_gain": "ffn_gain.weight",
}


@dataclass(frozen=True)
class TypePlan:
    """The types of the matrices, by what they do.

    Attributes:
        embeddings: the token table and the vocabulary head.
        attention: q, k, v and o of every layer.
        ffn: the FFNs.
    """

    embeddings: str
    attention: str
    ffn: str

    def type_of(self, name: str) -> str:
        """Return the type of a tensor of the device file: q4_0, q8_0, f16 or f32."""
        if name.endswith(("norm.weight", "ffn_gain.weight")):
            return "f32"
        if ".ffn_delta." in name:
            return "f16"
        if name.startswith(("token_embd", "output")):
            return self.embeddings
        return self.attention if ".attn_" in name else self.ffn


TYPES = {
    "mixed": TypePlan(embeddings="q8_0", attention="q4_0", ffn="q4_0"),
    "q4_0": TypePlan("q4_0", "q4_0", "q4_0"),
    "q8_0": TypePlan("q8_0", "q8_0", "q8_0"),
    "f16": TypePlan("f16", "f16", "f16"),
}


def type_plan(name: str) -> TypePlan:
    """Return the plan of a ``--type``.

    Raises:
        UserError: there is no such type.
    """
    if name not in TYPES:
        raise UserError(
            f"--type {name} is unknown{did_you_mean(name, TYPES)}; choose one of {', '.join(TYPES)}"
        )
    return TYPES[name]


def device_name(weight: str) -> str:
    """Return the device file's name for a weight of a checkpoint.

    Raises:
        UserError: the weight is not part of this architecture.
    """
    if weight in TOP:
        return TOP[weight]
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", weight):
        layer, rest = match.groups()
        if rest in IN_LAYER:
            return f"blk.{layer}.{IN_LAYER[rest]}"
        if rest.startswith("ffn_delta."):
            return f"blk.{layer}.{rest}.weight"
    if match := re.fullmatch(r"model\.ffns\.(\d+)\.(gate|up|down)_proj\.weight", weight):
        return f"ffn.{match[1]}.{match[2]}.weight"
    raise UserError(f"{weight}: not a weight of this architecture; convert the model first")
