"""A tiny checkpoint of a model that sees, as training writes one, for tests of what uses it."""

import json
from pathlib import Path

import torch
from fixture_checkpoint import END_OF_TEXT, SIZES, write_tokenizer
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from mobillama.core.records import write_manifest
from mobillama.model import MobiLlamaConfig
from mobillama.vision.conversation import TEMPLATES, with_image_token
from mobillama.vision.images import ImageRules
from mobillama.vision.tower import ConvTowerConfig

CLIP = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=28,
    patch_size=7,
)
CONV = ConvTowerConfig(image_size=32, channels=(16, 16, 32))


def write_seeing_checkpoint(directory: Path, *, conv: bool = False) -> LlavaForConditionalGeneration:
    """Write a LLaVA of random, well spread weights to ``directory`` and return it."""
    torch.manual_seed(0)
    tower = CONV if conv else CLIP
    tokens = (tower.image_size // tower.patch_size) ** 2
    write_tokenizer_with_image(directory)
    text = MobiLlamaConfig(**{**SIZES, "vocab_size": SIZES["vocab_size"] + 1})
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=SIZES["vocab_size"],
        image_seq_length=tokens,
        vision_feature_layer=-1 if conv else -2,
        vision_feature_select_strategy="full" if conv else "default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif weight.dim() > 1:
                weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)
    model.save_pretrained(directory)
    ImageRules(image_size=tower.image_size, tokens=tokens, fit="pad").write(directory)
    write_manifest(directory, "checkpoint", step=7, run="seeing", corpus="c" * 64, parent=None)
    return model


def write_tokenizer_with_image(directory: Path) -> None:
    """Write the byte-level BPE of `fixture_checkpoint` with ``<image>`` as its last token, and a template."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory)
    path = directory / "tokenizer.json"
    with_image_token(Tokenizer.from_file(str(path))).save(str(path))
    settings = {
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "add_bos_token": True,
        "chat_template": TEMPLATES["vicuna"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
