"""Random-weight files of the 0.5B shape: ours, and stock llama.cpp's with the FFN 22 times."""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GgmlType

from mobillama.export.plan import type_plan

TYPES = {"f32": GgmlType.F32, "f16": GgmlType.F16, "q4_0": GgmlType.Q4_0, "q8_0": GgmlType.Q8_0}


@dataclass(frozen=True)
class BenchShape:
    """The paper's mobillama-0.5b, with as many KV heads as wanted."""

    key_value_heads: int
    type: str  # as in ``mobillama quantize --type``
    layers: int = 22
    hidden_size: int = 2048
    intermediate_size: int = 5632
    heads: int = 32
    head_dim: int = 64
    vocab_size: int = 32000
    context_length: int = 2048


class _RandomBlocks:
    """Draws tensors as blocks of their type: quantising floats would take minutes and change no timing."""

    def __init__(self, kind: str, seed: int) -> None:
        self._plan = type_plan(kind)
        self._generator = np.random.default_rng(seed)

    def matrix(self, name: str, rows: int, columns: int) -> np.ndarray:
        kind = self._plan.type_of(name)
        deviation = 1 / np.sqrt(columns)
        if kind == "f16":
            return (self._generator.standard_normal((rows, columns), np.float32) * deviation).astype(
                np.float16
            )
        quant_bytes, spread = {"q4_0": (16, 4.3), "q8_0": (32, 73.0)}[kind]
        blocks = columns // 32
        scales = self._generator.uniform(0.75, 1.25, (rows, blocks, 1)) * deviation / spread
        quants = self._generator.integers(0, 256, (rows, blocks, quant_bytes), np.uint8)
        scale_bytes = scales.astype(np.float16).view(np.uint8).reshape(rows, blocks, 2)
        return np.concatenate((scale_bytes, quants), -1).reshape(rows, -1)

    def norm(self, size: int) -> np.ndarray:
        return self._generator.uniform(0.9, 1.1, size).astype(np.float32)


def write_pair(shape: BenchShape, folder: Path) -> tuple[Path, Path]:
    """Write the same weights as a ``mobillama`` and as a stock ``llama`` file; keep files that exist.

    llama.cpp pairs rotary dimensions in another order; with random weights that changes only the numbers.
    """
    stem = f"{shape.key_value_heads}kv-{shape.type}"
    paths = folder / f"ours-{stem}.gguf", folder / f"stock-{stem}.gguf"
    if all(path.exists() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(shape)
    _write(shape, paths[0], "mobillama", tensors)
    stock: dict[str, np.ndarray] = {}
    for name, data in tensors.items():
        if name.startswith("ffn."):
            part = name.split(".")[2]
            stock |= {f"blk.{layer}.ffn_{part}.weight": data for layer in range(shape.layers)}
        else:
            stock[name] = data
    _write(shape, paths[1], "llama", stock)
    return paths


def _tensors(shape: BenchShape) -> dict[str, np.ndarray]:
    draw = _RandomBlocks(shape.type, seed=0)
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    kv_size = shape.key_value_heads * shape.head_dim
    matrices = {"token_embd.weight": (shape.vocab_size, hidden), "output.weight": (shape.vocab_size, hidden)}
    matrices |= {f"ffn.0.{part}.weight": (intermediate, hidden) for part in ("gate", "up")}
    matrices["ffn.0.down.weight"] = (hidden, intermediate)
    norms = ["output_norm.weight"]
    for layer in range(shape.layers):
        for part, rows in (("q", hidden), ("k", kv_size), ("v", kv_size), ("output", hidden)):
            matrices[f"blk.{layer}.attn_{part}.weight"] = (rows, hidden)
        norms += [f"blk.{layer}.{part}_norm.weight" for part in ("attn", "ffn")]
    tensors = {name: draw.matrix(name, *size) for name, size in matrices.items()}
    return tensors | {name: draw.norm(hidden) for name in norms}


def _write(shape: BenchShape, path: Path, architecture: str, tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if architecture == "mobillama":
        key = "mobillama.ffn_of_layer"
        uint32 = gguf.GGUFValueType.UINT32
        writer.add_key_value(key, [0] * shape.layers, gguf.GGUFValueType.ARRAY, sub_type=uint32)
        writer.add_uint32("mobillama.ffn_delta_rank", 0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(shape.vocab_size)])
    writer.add_token_scores([0.0] * shape.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * shape.vocab_size)
    plan = type_plan(shape.type)
    for name, data in tensors.items():
        writer.add_tensor(name, data, raw_dtype=TYPES[plan.type_of(name)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
