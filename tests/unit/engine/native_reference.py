"""Tiny random device files, and a NumPy model of the engine's arithmetic that shares no code with it."""

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GgmlType

BLOCK = 32
TYPES = {"f16": GgmlType.F16, "q4_0": GgmlType.Q4_0, "q8_0": GgmlType.Q8_0}


@dataclass(frozen=True)
class TinyShape:
    """A model small enough that a test of all its parts takes milliseconds."""

    vocab_size: int = 100
    hidden_size: int = 64
    intermediate_size: int = 96
    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 32
    ffn_of_layer: tuple[int, ...] = (0, 0, 0)
    delta_rank: int = 0
    gains: bool = False
    tied: bool = False
    context_length: int = 512


@dataclass
class FileTensor:
    """A tensor's type, its bytes in the file, and what those bytes mean."""

    type: GgmlType
    data: np.ndarray
    values: np.ndarray  # float64


@dataclass
class ModelFile:
    """A device file in memory."""

    shape: TinyShape
    tensors: dict[str, FileTensor] = field(default_factory=dict)

    @classmethod
    def random(cls, shape: TinyShape, types: str, seed: int = 0) -> "ModelFile":
        """Draw weights of one type, or of all three in turn when ``types`` is "mixed"."""
        generator = np.random.default_rng(seed)
        file = cls(shape)
        cycle = list(TYPES) if types == "mixed" else [types]

        def matrix(name: str, rows: int, columns: int, kind: str | None = None) -> None:
            values = generator.normal(0, 1.5 / np.sqrt(columns), (rows, columns)).astype(np.float32)
            kind = kind or cycle[len(file.tensors) % len(cycle)]
            data = gguf.quants.quantize(values, TYPES[kind])
            meaning = gguf.quants.dequantize(data, TYPES[kind]).astype(np.float64)
            file.tensors[name] = FileTensor(TYPES[kind], data, meaning)

        def vector(name: str, size: int) -> None:
            values = generator.uniform(0.5, 1.5, size).astype(np.float32)
            file.tensors[name] = FileTensor(GgmlType.F32, values, values.astype(np.float64))

        s = shape
        matrix("token_embd.weight", s.vocab_size, s.hidden_size)
        for ffn in sorted(set(s.ffn_of_layer)):
            matrix(f"ffn.{ffn}.gate.weight", s.intermediate_size, s.hidden_size)
            matrix(f"ffn.{ffn}.up.weight", s.intermediate_size, s.hidden_size)
            matrix(f"ffn.{ffn}.down.weight", s.hidden_size, s.intermediate_size)
        for layer in range(len(s.ffn_of_layer)):
            name = f"blk.{layer}"
            vector(f"{name}.attn_norm.weight", s.hidden_size)
            vector(f"{name}.ffn_norm.weight", s.hidden_size)
            matrix(f"{name}.attn_q.weight", s.heads * s.head_dim, s.hidden_size)
            matrix(f"{name}.attn_k.weight", s.key_value_heads * s.head_dim, s.hidden_size)
            matrix(f"{name}.attn_v.weight", s.key_value_heads * s.head_dim, s.hidden_size)
            matrix(f"{name}.attn_output.weight", s.hidden_size, s.heads * s.head_dim)
            if s.gains:
                vector(f"{name}.ffn_gain.weight", s.intermediate_size)
            if s.delta_rank:
                for part, rows, columns in (
                    ("gate", s.intermediate_size, s.hidden_size),
                    ("up", s.intermediate_size, s.hidden_size),
                    ("down", s.hidden_size, s.intermediate_size),
                ):
                    matrix(f"{name}.ffn_delta.{part}_a.weight", s.delta_rank, columns, "f16")
                    matrix(f"{name}.ffn_delta.{part}_b.weight", rows, s.delta_rank, "f16")
        vector("output_norm.weight", s.hidden_size)
        if not s.tied:
            matrix("output.weight", s.vocab_size, s.hidden_size)
        return file

    def write(self, path: Path) -> Path:
        """Write the file with the ``gguf`` package."""
        s = self.shape
        writer = gguf.GGUFWriter(path, "mobillama")
        writer.add_block_count(len(s.ffn_of_layer))
        writer.add_context_length(s.context_length)
        writer.add_embedding_length(s.hidden_size)
        writer.add_feed_forward_length(s.intermediate_size)
        writer.add_vocab_size(s.vocab_size)
        writer.add_head_count(s.heads)
        writer.add_head_count_kv(s.key_value_heads)
        writer.add_key_length(s.head_dim)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        writer.add_key_value(
            "mobillama.ffn_of_layer",
            list(s.ffn_of_layer),
            gguf.GGUFValueType.ARRAY,
            sub_type=gguf.GGUFValueType.UINT32,
        )
        writer.add_uint32("mobillama.ffn_delta_rank", s.delta_rank)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def token_errors(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return each token's largest difference, relative to its largest expected logit."""
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max(-1) / np.abs(expected).max(-1)


def round_to_scale(x: np.ndarray, levels: int) -> np.ndarray:
    """Round the last axis to multiples of its largest magnitude over ``levels``."""
    scale = np.abs(x).max(-1, keepdims=True) / levels
    scale[scale == 0] = 1
    return np.rint(x / scale) * scale


def to_int8_blocks(x: np.ndarray, block: int) -> np.ndarray:
    """Round each block of the last axis to 255 levels, as the engine does before integer products."""
    return round_to_scale(x.reshape(*x.shape[:-1], -1, block), 127).reshape(x.shape)


def reference_logits(file: ModelFile, tokens: np.ndarray, kv_type: str) -> np.ndarray:
    """Return the logits of every token, (T, V), summed in float64."""
    s, t = file.shape, file.tensors

    def multiply(name: str, x: np.ndarray) -> np.ndarray:
        tensor = t[name]
        return (x if tensor.type == GgmlType.F16 else to_int8_blocks(x, BLOCK)) @ tensor.values.T

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * t[name].values

    def cached(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float64) if kv_type == "f16" else to_int8_blocks(x, s.head_dim)

    def rotate(x: np.ndarray) -> np.ndarray:  # (T, heads, head_dim)
        half = s.head_dim // 2
        angle = np.arange(len(x))[:, None, None] * 10000.0 ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate(
            (a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)), -1
        )

    def attention(layer: str, x: np.ndarray) -> np.ndarray:
        q = rotate(multiply(f"{layer}.attn_q.weight", x).reshape(len(x), s.heads, s.head_dim))
        k = cached(rotate(multiply(f"{layer}.attn_k.weight", x).reshape(len(x), -1, s.head_dim)))
        v = cached(multiply(f"{layer}.attn_v.weight", x).reshape(len(x), -1, s.head_dim))
        if kv_type == "q8_0":
            q = to_int8_blocks(q, s.head_dim)
        out = np.empty_like(q)
        for head in range(s.heads):
            kv = head * s.key_value_heads // s.heads
            scores = q[:, head] @ k[:, kv].T / np.sqrt(s.head_dim)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            total = weights.sum(-1, keepdims=True)
            if kv_type == "q8_0":  # probabilities times value scales become whole numbers of 14 bits
                value_scales = np.abs(v[:, kv]).max(-1) / 127
                weights = round_to_scale(weights * value_scales, 128 * 128 - 1) / value_scales
            out[:, head] = weights / total @ v[:, kv]
        return multiply(f"{layer}.attn_output.weight", out.reshape(len(x), -1))

    def ffn(layer: str, name: str, x: np.ndarray) -> np.ndarray:
        def project(part: str, y: np.ndarray) -> np.ndarray:
            out = multiply(f"{name}.{part}.weight", y)
            if s.delta_rank:
                delta = f"{layer}.ffn_delta.{part}"
                out = out + multiply(f"{delta}_b.weight", multiply(f"{delta}_a.weight", y))
            return out

        gate = project("gate", x)
        hidden = gate / (1 + np.exp(-gate)) * project("up", x)
        if s.gains:
            hidden = hidden * t[f"{layer}.ffn_gain.weight"].values
        return project("down", hidden)

    h = t["token_embd.weight"].values[tokens]
    for i, shared in enumerate(s.ffn_of_layer):
        h = h + attention(f"blk.{i}", norm(f"blk.{i}.attn_norm.weight", h))
        h = h + ffn(f"blk.{i}", f"ffn.{shared}", norm(f"blk.{i}.ffn_norm.weight", h))
    return multiply("token_embd.weight" if s.tied else "output.weight", norm("output_norm.weight", h))
