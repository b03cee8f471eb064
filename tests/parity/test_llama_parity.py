"""Against transformers' own Llama: an independent implementation of everything but the sharing."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mobillama.model import MobiLlamaConfig, MobiLlamaForCausalLM
from mobillama.model.sharing import ffn_of_layer

LAYERS = 5
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-5,
}


def make_pair(scheme, **changes):
    """Return a MobiLlama and a Llama that has a copy of its layer's FFN in every layer."""
    torch.manual_seed(0)
    table = ffn_of_layer(scheme, LAYERS)
    ours = MobiLlamaForCausalLM(MobiLlamaConfig(ffn_of_layer=table, **{**SIZES, **changes})).eval()
    llama = LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()
    weights = ours.state_dict()
    for layer, ffn in enumerate(table):
        for part in ("gate_proj", "up_proj", "down_proj"):
            weights[f"model.layers.{layer}.mlp.{part}.weight"] = weights[f"model.ffns.{ffn}.{part}.weight"]
    llama.load_state_dict({name: tensor for name, tensor in weights.items() if ".ffns." not in name})
    return ours, llama


@pytest.fixture
def input_ids():
    torch.set_num_threads(1)
    return torch.randint(3, SIZES["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scheme", ["none", "all", "pairs", "cycle:2", "sandwich"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_equal_llamas_to_the_last_bit(input_ids, scheme, kv_heads, attention):
    ours, llama = make_pair(scheme, num_key_value_heads=kv_heads, attn_implementation=attention)
    assert torch.equal(ours(input_ids).logits, llama(input_ids).logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}},
        {"hidden_act": "gelu"},
    ],
    ids=["tied", "rope", "gelu"],
)
def test_options_of_llama_mean_the_same_here(input_ids, changes):
    ours, llama = make_pair("none", **changes)
    assert torch.equal(ours(input_ids).logits, llama(input_ids).logits)


def test_bfloat16_logits_and_gradients_equal_llamas(input_ids):
    ours, llama = (model.to(torch.bfloat16).train() for model in make_pair("none"))
    losses = [model(input_ids, labels=input_ids).loss for model in (ours, llama)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for layer, ffn in zip(llama.model.layers, ours.model.ffns, strict=True):
        assert torch.equal(layer.mlp.gate_proj.weight.grad, ffn.gate_proj.weight.grad)
    assert torch.equal(ours.model.embed_tokens.weight.grad, llama.model.embed_tokens.weight.grad)


def test_padding_and_packed_documents_are_treated_as_llama_does(input_ids):
    ours, llama = make_pair("none")
    mask = torch.ones_like(input_ids)
    mask[1, :4] = 0
    assert torch.equal(ours(input_ids, mask).logits, llama(input_ids, mask).logits)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None].expand(2, -1)
    packed = {"position_ids": positions, "use_cache": False}
    assert torch.equal(ours(input_ids, **packed).logits, llama(input_ids, **packed).logits)


def test_generation_equals_llamas(input_ids):
    ours, llama = make_pair("none")
    options = {
        "attention_mask": torch.ones_like(input_ids),
        "max_new_tokens": 10,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    assert torch.equal(ours.generate(input_ids, **options), llama.generate(input_ids, **options))
