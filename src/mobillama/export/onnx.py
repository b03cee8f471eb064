"""A model as an ONNX graph of one step with its cache, every shared FFN stored once.

Inputs and outputs are named as Optimum's exports are: `input_ids` (B, T), `attention_mask` (B, past + T),
`past_key_values.N.{key,value}` and `present.N.{key,value}` (B, KV heads, positions, head_dim), `logits`
(B, T, vocab_size). A sequence begins with a past of no positions. Everything is float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobillama.core import atomic
from mobillama.core.errors import UserError, require_extra
from mobillama.core.making import write_made_manifest
from mobillama.core.quiet import quiet
from mobillama.model import MobiLlamaForCausalLM, checkpoint
from mobillama.model.convert import TOKENIZER_FILES, origin
from mobillama.model.loading import load_language_model

from .metadata import provenance

KIND = "onnx model"
GRAPH = "model.onnx"
# A protobuf message ends at 2 GiB; larger weights go into a file beside the graph.
MOST_BYTES_INSIDE = 1_800_000_000
EXAMPLE_BATCH, EXAMPLE_PAST, EXAMPLE_TOKENS = 2, 5, 3  # all different: equal sizes would be taken for one


class Past:
    """Keys and values of earlier positions, as the attention layers ask for them."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.layers = list(zip(tensors[0::2], tensors[1::2], strict=True))

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append new positions to a layer's and return all of them."""
        past_keys, past_values = self.layers[layer]
        self.layers[layer] = (torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2))
        return self.layers[layer]

    def tensors(self) -> list[Tensor]:
        """Return keys and values, layer by layer."""
        return [tensor for layer in self.layers for tensor in layer]


class Product(nn.Module):
    """A linear layer whose weight lies as it is multiplied, (in, out).

    Lying as PyTorch has it, the graph would transpose it in every layer that uses it, and a runtime that
    computes constants beforehand would hold a shared FFN once for each of them.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.T.contiguous(), requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """Return (..., out) of states (..., in)."""
        return states @ self.weight


class DecodingStep(nn.Module):
    """A language model as a function of tokens and past to logits and present."""

    def __init__(self, model: MobiLlamaForCausalLM) -> None:
        super().__init__()
        self.model = model
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, Product(module))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B, T, vocab_size) and each layer's keys and values with the new positions."""
        cache, length, whole = Past(past), input_ids.shape[1], attention_mask.shape[1]
        rows = torch.arange(whole - length, whole).unsqueeze(1)
        earlier = torch.arange(whole) <= rows  # (T, past + T)
        seen = earlier & (attention_mask > 0)[:, None, None, :]
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)  # (B, 1, T, past + T)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, whole - length :]
        hidden: Any = self.model.model(
            input_ids=input_ids, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True,
        ).last_hidden_state  # fmt: skip
        return self.model.lm_head(hidden), *cache.tensors()


def export_onnx(model: str | Path, destination: Path) -> Path:
    """Write a model of ours as a folder with `model.onnx`, tokenizer and manifest, and return the folder.

    Raises:
        UserError: there is no such model, it is not ours, or the folder is not empty.
    """
    require_extra("onnx", "onnx", "onnxscript")
    if destination.exists() and any(destination.iterdir()):
        raise UserError(f"{destination}: is not empty; give a folder that does not exist")
    folder = checkpoint.locate(model)
    checkpoint.require_intact(folder)
    loaded = load_language_model(folder, device="cpu", dtype=torch.float32)
    if not isinstance(loaded, MobiLlamaForCausalLM):
        raise UserError(f"{folder}: a model of another kind; make it ours first with mobillama convert")
    with atomic.atomic_directory(destination) as partial:
        write_graph(loaded, partial / GRAPH, provenance(folder))
        for name in ("config.json", *TOKENIZER_FILES):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        write_made_manifest(partial, KIND, **origin(model, folder))
    return destination


def write_graph(model: MobiLlamaForCausalLM, path: Path, facts: dict[str, str | int]) -> None:
    """Write the graph, with where it came from and which layer uses which FFN in its metadata."""
    config = model.config
    large = sum(weight.nbytes for weight in model.parameters()) > MOST_BYTES_INSIDE
    cached = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    shape = (EXAMPLE_BATCH, config.num_key_value_heads, EXAMPLE_PAST, config.head_dim)
    examples = (
        torch.zeros(EXAMPLE_BATCH, EXAMPLE_TOKENS, dtype=torch.long),
        torch.ones(EXAMPLE_BATCH, EXAMPLE_PAST + EXAMPLE_TOKENS, dtype=torch.long),
        *(torch.zeros(shape) for _ in cached),
    )
    sizes = {
        "input_ids": {0: "batch", 1: "tokens"},
        "attention_mask": {0: "batch", 1: "positions"},
        "past": tuple({0: "batch", 2: "past"} for _ in cached),
    }
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            DecodingStep(model).eval(),
            examples,
            input_names=["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in cached)],
            output_names=["logits", *(f"present.{name}" for name in cached)],
            dynamic_shapes=sizes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter's stack traces, with this machine's paths
    told = program.model.metadata_props
    told |= {f"mobillama.provenance.{key}": str(value) for key, value in facts.items()}
    told["mobillama.ffn_of_layer"] = json.dumps(config.ffn_of_layer)
    program.save(path, external_data=large)
