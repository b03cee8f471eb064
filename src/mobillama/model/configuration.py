"""The configuration of a MobiLlama: Llama's fields, and which layer uses which FFN."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from mobillama.core.errors import UserError

from . import sharing

FILLED_IN: Any = None  # by __post_init__, from the other fields


class MobiLlamaConfig(PreTrainedConfig):
    """Sizes and sharing of a model; the defaults are those of MobiLlama 0.5B.

    Arguments beyond Llama's:
        ffn_of_layer: the FFN index of each layer; `[0, 0, ...]` (MobiLlama) where not given.
        ffn_delta_rank: rank of each layer's own low-rank addition to its FFN's matrices; 0 for none.
        ffn_gains: whether each layer has its own gain on the FFN's inner activations.

    Rotary positions are given as `rope_theta=10000.0` or in full as `rope_parameters`.

    Raises:
        UserError: the sizes or the list do not fit together.

    Source: arXiv 2402.16840, section 3; the release's own config says four KV heads where its code
    uses all 32, and so does this default.
    """

    model_type = "mobillama"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # Every layer gathers the same FFN, so its full weights stay between layers.
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "embed_tokens": "free_full_weight",
        "ffns.*": "keep_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }
    # Llama's attention block asks for it; this architecture has no biases.
    attention_bias: ClassVar[bool] = False

    vocab_size: int = 32000
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 22
    num_attention_heads: int = 32
    num_key_value_heads: int = FILLED_IN
    ffn_of_layer: list[int] = FILLED_IN
    ffn_delta_rank: int = 0
    ffn_gains: bool = False
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None
    attention_dropout: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.ffn_of_layer is None:
            self.ffn_of_layer = sharing.one_for_all(self.num_hidden_layers)
        # A Llama configuration names it; here it follows from the sizes.
        head_dim = kwargs.pop("head_dim", None)
        super().__post_init__(**kwargs)
        self.check_sizes(head_dim)

    def check_sizes(self, head_dim: int | None) -> None:
        """Stop where the sizes do not fit together."""
        hidden_size, heads, kv_heads = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if hidden_size % (2 * heads):
            raise UserError(
                f"hidden_size = {hidden_size}: {heads} heads need a multiple of {2 * heads} "
                "(rotary positions turn pairs)"
            )
        if kv_heads < 1 or heads % kv_heads:
            raise UserError(f"num_key_value_heads = {kv_heads} does not divide num_attention_heads = {heads}")
        if head_dim not in (None, self.head_dim):
            raise UserError(
                f"head_dim = {head_dim}: hidden_size / num_attention_heads = {self.head_dim} is used"
            )
        if self.ffn_delta_rank < 0:
            raise UserError(f"ffn_delta_rank = {self.ffn_delta_rank}: give a rank, or 0 for no deltas")
        sharing.require_valid(self.ffn_of_layer, self.num_hidden_layers)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_ffns(self) -> int:
        """How many FFNs the model holds."""
        return max(self.ffn_of_layer) + 1


AutoConfig.register(MobiLlamaConfig.model_type, MobiLlamaConfig, exist_ok=True)
