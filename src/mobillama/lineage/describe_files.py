"""Descriptions of model files that anyone may have made: safetensors, GGUF, Hugging Face folders."""

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.hashing import total_bytes
from mobillama.core.records import Problem
from mobillama.core.tensors import INDEX, WEIGHTS, Tensor, TensorFile, model_files
from mobillama.report.page import count, size

from .gguf_header import GgufHeader, GgufTensor, read_gguf_header
from .inspect import Description
from .verify import PICKLES

SHOWN_TENSORS = 3


def foreign(path: Path) -> Description:
    """Return the description of a file or folder that carries no record of ours.

    Raises:
        UserError: it is nothing that is known here, or its header lies.
    """
    if path.is_dir():
        return model_folder(path)
    if path.suffix == ".safetensors":
        return safetensors(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return gguf(path)
    if path.suffix in PICKLES or zipfile.is_zipfile(path):
        summary = "Perhaps a pickle: loading one runs the code in it, so it was not opened."
        return Description(str(path), "pickle", summary, path.stat().st_size)
    raise UserError(
        f"{path}: not an artifact of mobillama, safetensors, GGUF or a model folder; nothing is known of it"
    )


def safetensors(path: Path) -> Description:
    """Describe one safetensors file by its checked header."""
    file = TensorFile(path)
    return Description(
        str(path),
        "safetensors file",
        f"{len(file.tensors):,} tensors, {count(values_of([file]))} values.",
        path.stat().st_size,
        facts=tensor_facts(file.tensors),
        configuration=dict(file.metadata),
    )


def gguf(path: Path) -> Description:
    """Describe one GGUF file by its checked header."""
    header = read_gguf_header(path)
    return Description(
        str(path),
        "GGUF file",
        gguf_summary(header),
        path.stat().st_size,
        facts=tensor_facts(header.tensors),
        configuration={key: shortened(value) for key, value in header.metadata.items()},
    )


def gguf_summary(header: GgufHeader) -> str:
    """Return one line on the model in a GGUF file."""
    architecture = header.metadata.get("general.architecture", "unknown architecture")
    layers = header.metadata.get(f"{architecture}.block_count")
    sharing = header.metadata.get(f"{architecture}.ffn_of_layer")
    shape = ffns_text(layers, len(set(sharing))) if isinstance(sharing, list) else f"{layers} layers"
    values = count(sum(tensor.size for tensor in header.tensors.values()))
    return f"{architecture}, {values} values in {len(header.tensors)} tensors, {shape}."


def ffns_text(layers: int | None, ffns: int | None) -> str:
    """Return how many layers use how many FFNs."""
    if not ffns:
        return f"{layers} layers"
    return f"{layers} layers with {ffns} {'FFN' if ffns == 1 else 'FFNs'}"


def model_folder(path: Path) -> Description:
    """Describe a Hugging Face model folder without loading the model."""
    config_path = path / "config.json"
    if not config_path.is_file():
        raise UserError(f"{path}: no run.toml, manifest.json or config.json here; nothing is known of it")
    try:
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
        architecture = config.get("model_type", "unknown")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{config_path}: not a model configuration ({error})") from None
    weights = model_files(path) if any((path / name).is_file() for name in (WEIGHTS, INDEX)) else []
    tensors = {name: tensor for file in weights for name, tensor in file.tensors.items()}
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    problems = [str(Problem(path / name, "may be a pickle; it was not opened")) for name in pickles]
    layers = config.get("num_hidden_layers", "unknown")
    return Description(
        str(path),
        "Hugging Face model folder",
        f"{architecture}, {layers} layers, {count(values_of(weights))} stored values.",
        total_bytes(path),
        facts=tensor_facts(tensors) | kv_head_facts(config, weights),
        configuration=config,
        notes=problems,
    )


def kv_head_facts(config: dict[str, Any], weights: list[TensorFile]) -> dict[str, str]:
    """Say when the key projection's shape contradicts the configured number of key-value heads."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    for file in weights:
        for name, tensor in file.tensors.items():
            if name.endswith(".k_proj.weight") and heads and hidden and len(tensor.shape) == 2:
                stored = tensor.shape[0] * heads // hidden
                claimed = config.get("num_key_value_heads", heads)
                if stored != claimed:
                    return {"KV heads": f"{stored} by the shape of {name}; the configuration says {claimed}"}
                return {}
    return {}


def tensor_facts(tensors: Mapping[str, Tensor | GgufTensor]) -> dict[str, str]:
    """Return values by type and the largest tensors."""
    by_type: Counter[str] = Counter()
    for tensor in tensors.values():
        by_type[tensor.dtype] += tensor.size
    largest = sorted(tensors.items(), key=lambda item: -item[1].size)[:SHOWN_TENSORS]
    facts = {"types": ", ".join(f"{dtype} {count(values)}" for dtype, values in by_type.most_common())}
    if largest:
        facts["largest"] = ", ".join(f"{name} {'x'.join(map(str, t.shape))}" for name, t in largest)
    return facts


def values_of(files: list[TensorFile]) -> int:
    """Return how many values some files store."""
    return sum(tensor.size for file in files for tensor in file.tensors.values())


def shortened(value: Any, limit: int = 120) -> Any:
    """Return a metadata value, a long text cut: a whole tokenizer may lie in one."""
    if isinstance(value, str) and len(value) > limit:
        return f"{value[:limit]}... ({size(len(value.encode()))})"
    return value
