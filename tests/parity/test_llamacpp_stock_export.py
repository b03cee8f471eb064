"""The stock export in stock llama.cpp against torch: the same weights, two implementations."""

import numpy as np
import pytest
import torch
from fixture_checkpoint import TEXT, write_checkpoint

from mobillama.export import quantize

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the bench extra)")


def llama(path, **options):
    return llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ffn_of_layer": [0, 0, 1, 1], "num_key_value_heads": 4},
        {"ffn_delta_rank": 4, "ffn_gains": True},
        {"tie_word_embeddings": True},
    ],
    ids=["shared", "pairs, all heads", "deltas and gains", "tied"],
)
def test_logits_of_the_f16_export_agree_with_torch(tmp_path, options):
    model = write_checkpoint(tmp_path / "c", **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    model.save_pretrained(tmp_path / "c")
    quantize(tmp_path / "c", tmp_path / "s.gguf", type="f16", stock_llama=True)
    stock = llama(tmp_path / "s.gguf")
    tokens = list(np.random.default_rng(0).integers(1, 320, 60))
    stock.eval([int(token) for token in tokens])
    theirs = np.asarray(stock.scores[: len(tokens)])
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([[int(token) for token in tokens]])).logits[0].numpy()
    # Weights are equal to the bit, but llama.cpp rounds the activations to half precision (2**-11 each)
    # before every f16 matrix, 28 times in these 4 layers, and folded deltas are rounded once more.
    assert np.abs(theirs - ours).max() < 1e-2 * np.abs(ours).max()


def test_llamacpp_splits_text_into_the_same_tokens(tmp_path):
    from tokenizers import Tokenizer

    write_checkpoint(tmp_path / "c")
    quantize(tmp_path / "c", tmp_path / "s.gguf", type="f16", stock_llama=True)
    stock = llama(tmp_path / "s.gguf")
    ours = Tokenizer.from_file(str(tmp_path / "c" / "tokenizer.json"))
    text = TEXT[:2000] + "\n\n  日本語 🦙 can't 12345"
    assert stock.tokenize(text.encode(), add_bos=False) == ours.encode(text).ids
