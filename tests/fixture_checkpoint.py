"""A tiny checkpoint with a real tokenizer, as training writes one, for tests of what reads checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mobillama.core.records import write_manifest
from mobillama.model import MobiLlamaConfig, MobiLlamaForCausalLM

TEXT = Path(json.__file__).read_text(encoding="utf-8")
END_OF_TEXT = "<|endoftext|>"
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def write_checkpoint(directory: Path, **options: Any) -> MobiLlamaForCausalLM:
    """Write a model of random, well spread weights to ``directory`` and return it."""
    torch.manual_seed(0)
    model = MobiLlamaForCausalLM(MobiLlamaConfig(**{**SIZES, **options})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "gain" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, 1.5 / weight.shape[-1] ** 0.5)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    write_manifest(directory, "checkpoint", step=7, run="tiny", corpus="c" * 64, parent=None)
    return model


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE learnt from a module of the standard library."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
