"""Named sizes: the paper's models, its baselines, and two small ones of ours."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Everything about a model's shape but the vocabulary, which comes from the corpus."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    ffn_sharing: str = "all"
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048


# Source: arXiv 2402.16840, table 1 and section 4, and the released configurations. Where they differ
# (0.8B, KV heads), the sizes here are those that the released weights have. The paper gives no head
# count for the narrow baseline; 32 heads would be 32 wide, so it has 16 as wide as the others'.
PRESETS = {
    "mobillama-0.5b": Preset(2048, 5632, 22, 32, 32),
    "mobillama-0.8b": Preset(2560, 10240, 22, 32, 32),
    "large-base-1.2b": Preset(2048, 5632, 22, 32, 32, ffn_sharing="none"),
    "baseline1-0.5b": Preset(1024, 5632, 22, 16, 16, ffn_sharing="none"),
    "baseline2-0.5b": Preset(2048, 5632, 8, 32, 32, ffn_sharing="none"),
    # 1.8 M stored with a vocabulary of 4,096: learns to spell in minutes on a laptop's CPU.
    "tiny": Preset(192, 768, 6, 6, 2, tie_word_embeddings=True, max_position_embeddings=512),
    # 32 M stored with a vocabulary of 32,000: an evening on a CPU, minutes on a GPU.
    "small": Preset(512, 2048, 16, 8, 4, tie_word_embeddings=True),
}
