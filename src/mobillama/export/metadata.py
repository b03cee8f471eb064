"""The keys of a device file: shape, tokenizer, chat template, provenance."""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedConfig

from mobillama.core.errors import UserError
from mobillama.core.records import LEDGER, MANIFEST, Ledger, manifest_hash, read_manifest
from mobillama.engine import read_chat_template


def write_shape(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the model's sizes as llama.cpp spells them, below the writer's architecture."""
    rope: dict[str, Any] = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"rope_type {rope['rope_type']} cannot be written to a device file; only default can")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))


def write_tokenizer(writer: GGUFWriter, directory: Path, config: PreTrainedConfig) -> None:
    """Write the standard tokenizer keys, the whole ``tokenizer.json`` and the chat template.

    Raises:
        UserError: there is no tokenizer, or one of a kind these keys cannot say.
    """
    path = tokenizer_path(directory)
    text = path.read_text(encoding="utf-8")
    definition = json.loads(text)
    model = definition["model"]
    if model.get("type") != "BPE":
        raise UserError(f"{path}: a {model.get('type')} tokenizer; only BPE can be written to a device file")
    tokens, types = vocabulary(definition, config.vocab_size)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        # The SentencePiece way: merges are tried by score, and ids are in order of merging.
        writer.add_token_scores([-float(rank) for rank in range(len(tokens))])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(
            [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        )
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    settings = read_json(directory / "tokenizer_config.json")
    for key, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        if (spelling := settings.get(key)) is not None:
            content = spelling["content"] if isinstance(spelling, dict) else spelling
            if content in tokens:
                add(tokens.index(content))
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    writer.add_string("tokenizer.huggingface.json", text)
    if template := read_chat_template(directory):
        writer.add_chat_template(template)


def write_vision(writer: GGUFWriter, directory: Path) -> None:
    """Write which token stands for an image, if the model sees; its vision half is a file of its own."""
    if (token := read_json(directory / "config.json").get("image_token_index")) is not None:
        writer.add_uint32("mobillama.vision.image_token", token)


def tokenizer_path(directory: Path) -> Path:
    """Return the ``tokenizer.json`` of a model folder.

    Raises:
        UserError: there is none.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{directory}: no tokenizer.json here; copy it beside the weights")
    return path


def vocabulary(definition: dict[str, Any], size: int) -> tuple[list[str], list[TokenType]]:
    """Return the spelling and the kind of each of ``size`` ids; ids the tokenizer lacks are unused."""
    tokens = [f"[UNUSED{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    known = {**definition["model"]["vocab"]}
    special = {entry["id"]: entry for entry in definition.get("added_tokens", [])}
    known |= {entry["content"]: number for number, entry in special.items()}
    for spelling, number in known.items():
        if number >= size:
            raise UserError(f"the tokenizer has token {number}, the model {size} logits; they do not match")
        tokens[number] = spelling
        is_byte = len(spelling) == 6 and spelling.startswith("<0x")
        types[number] = TokenType.BYTE if is_byte else TokenType.NORMAL
        if number in special:
            control = special[number]["special"]
            types[number] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    return tokens, types


def provenance(directory: Path) -> dict[str, str | int]:
    """Return what a checkpoint says about where it came from, for the device file's keys."""
    found: dict[str, str | int] = {}
    if (directory / MANIFEST).is_file():
        record = read_manifest(directory)
        found["checkpoint"] = manifest_hash(directory)
        for key in ("corpus", "run", "step"):
            if record.get(key) is not None:
                found[key] = record[key]
    recipe = directory.parent.parent / "run.toml"
    if directory.parent.name == "checkpoints" and recipe.is_file():
        Ledger(recipe.with_name(LEDGER)).require_intact()
        found["recipe"] = recipe.read_text(encoding="utf-8")
    return found


def write_provenance(writer: GGUFWriter, facts: dict[str, str | int]) -> None:
    """Write where the weights came from."""
    for key, value in facts.items():
        name = f"mobillama.provenance.{key}"
        if isinstance(value, int):
            writer.add_uint64(name, value)
        else:
            writer.add_string(name, value)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, empty if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
