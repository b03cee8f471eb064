"""What a model costs, by formula from its configuration alone: parameters, FLOPs, bytes.

Works on a `MobiLlamaConfig` or on anything with its fields, such as a `config.json` read into a
`SimpleNamespace`; torch is not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# Bits a weight takes in the device file: ggml's q8_0 and q4_0 keep a 16-bit scale per 32 weights.
BITS_PER_WEIGHT = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q4_0": 4.5}

# The backward pass multiplies twice where the forward pass multiplies once.
TRAINING_OVER_FORWARD = 3


class Sizes(Protocol):
    """The fields of a configuration that costs follow from."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    ffn_delta_rank: int
    ffn_gains: bool
    tie_word_embeddings: bool

    @property
    def ffn_of_layer(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: stored, by part, and active."""

    embedding: int
    attention: int
    ffns: int
    ffn_extras: int
    norms: int
    head: int
    active: int

    @property
    def stored(self) -> int:
        """All parameters, each once: what a checkpoint holds."""
        return self.embedding + self.attention + self.ffns + self.ffn_extras + self.norms + self.head


def parameters(sizes: Sizes) -> Parameters:
    """Return how many parameters a model stores, and how many each token passes through.

    Active parameters count a shared FFN as often as it is used, and the vocabulary head even where
    its weights are the embedding's; the embedding is looked up, not passed through.
    """
    layers, hidden, vocabulary = (
        sizes.num_hidden_layers,
        sizes.hidden_size,
        sizes.vocab_size * sizes.hidden_size,
    )
    key_value_size = hidden // sizes.num_attention_heads * sizes.num_key_value_heads
    attention = layers * (2 * hidden * hidden + 2 * hidden * key_value_size)
    ffn = 3 * hidden * sizes.intermediate_size
    delta = 3 * sizes.ffn_delta_rank * (hidden + sizes.intermediate_size)
    gain = sizes.intermediate_size if sizes.ffn_gains else 0
    extras = layers * (delta + gain)
    norms = (2 * layers + 1) * hidden
    return Parameters(
        embedding=vocabulary,
        attention=attention,
        ffns=(max(sizes.ffn_of_layer) + 1) * ffn,
        ffn_extras=extras,
        norms=norms,
        head=0 if sizes.tie_word_embeddings else vocabulary,
        active=attention + layers * ffn + extras + norms + vocabulary,
    )


def forward_flops_per_token(sizes: Sizes, context_length: float) -> float:
    """Return the floating-point operations of one token's forward pass.

    Two for each active weight of a matrix, and in each layer two products over the positions the
    token attends to. Norms, activations, softmax and rotary positions are left out; they are below
    one percent at these widths.

    Arguments:
        context_length: positions attended to, the token's own included.
    """
    count = parameters(sizes)
    gains = sizes.num_hidden_layers * sizes.intermediate_size if sizes.ffn_gains else 0
    matrices = count.active - count.norms - gains
    return 2.0 * matrices + 4.0 * sizes.num_hidden_layers * sizes.hidden_size * context_length


def training_flops_per_token(sizes: Sizes, sequence_length: int) -> float:
    """Return the mean operations of one token's forward and backward pass in a causal sequence.

    Position t attends to t positions, (sequence_length + 1) / 2 in the mean. Utilisation figures
    that count the whole square instead, as some do, come out higher. Recomputation under activation
    checkpointing is work, but not useful work, and does not count.
    """
    return TRAINING_OVER_FORWARD * forward_flops_per_token(sizes, (sequence_length + 1) / 2)


def weight_bytes(sizes: Sizes, bits: float = 16.0) -> float:
    """Return the bytes of all stored weights at `bits` each (see `BITS_PER_WEIGHT`)."""
    return parameters(sizes).stored * bits / 8


def cache_bytes_per_token(sizes: Sizes, bits: float = 16.0) -> float:
    """Return the bytes of keys and values that each position adds to the cache."""
    head_size = sizes.hidden_size // sizes.num_attention_heads
    return 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * head_size * bits / 8
