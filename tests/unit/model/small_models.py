"""Small models that the tests of this package build."""

import torch

from mobillama.model import MobiLlamaConfig, MobiLlamaForCausalLM

VOCABULARY = 97


def make_config(**changes) -> MobiLlamaConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return MobiLlamaConfig(**{**sizes, **changes})


def make_model(**changes) -> MobiLlamaForCausalLM:
    torch.manual_seed(0)
    return MobiLlamaForCausalLM(make_config(**changes)).eval()
