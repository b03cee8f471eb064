"""Weights to the bytes of a device file, each by the best rounding its type and calibration allow."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from . import gptq, stock
from .blocks import BLOCK, FORMATS, BlockFormat, dequantise
from .calibration import Calibration
from .layout import permuted
from .plan import TypePlan, device_name

PLAIN = {"f32": np.float32, "f16": np.float16}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a device file.

    Attributes:
        data: (rows, bytes) uint8 in a block format, else the values.
        relative_error: what rounding lost: root of squared error over root of squared weights.
    """

    name: str
    type: str
    data: NDArray[np.generic]
    relative_error: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Bytes in the file, without padding."""
        return int(self.data.nbytes)

    @property
    def part(self) -> str:
        """What the tensor is for, as reports group them."""
        if self.name.startswith(("token_embd", "output.")):
            return "embeddings"
        return "FFN" if "ffn" in self.name and "norm" not in self.name else "attention and norms"


@dataclass
class Rounding:
    """Turns weights into stored tensors; remembers what it had to do otherwise than asked."""

    types: TypePlan
    calibration: Calibration | None = None
    notes: list[str] = field(default_factory=list)

    def shared(self, weights: dict[str, Tensor]) -> Iterator[StoredTensor]:
        """Yield every tensor of architecture ``mobillama``: each weight once."""
        for weight, values in weights.items():
            yield self.stored(device_name(weight), values, weight)

    def stock(self, weights: dict[str, Tensor], config: PreTrainedConfig) -> Iterator[StoredTensor]:
        """Yield every tensor of architecture ``llama``: the FFN for each layer, q and k permuted."""
        repeated: dict[int, StoredTensor] = {}
        for weight, values in weights.items():
            if "ffn_delta" in weight or "ffn_gain" in weight or ".ffns." in weight:
                continue
            tensor = self.stored(device_name(weight), values, weight)
            if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
                query = tensor.name.endswith("attn_q.weight")
                heads = config.num_attention_heads if query else config.num_key_value_heads
                data = permuted(tensor.data, heads)
                tensor = StoredTensor(tensor.name, tensor.type, data, tensor.relative_error)
            yield tensor
        for layer in range(config.num_hidden_layers):
            for name, weight, matrix in stock.layer_ffn(weights, config, layer):
                first = repeated.get(id(matrix))
                if first is None:
                    first = self.stored(name, matrix, weight)
                    if matrix is weights[weight]:
                        repeated[id(matrix)] = first
                yield StoredTensor(name, first.type, first.data, first.relative_error)

    def stored(self, name: str, values: Tensor, weight: str) -> StoredTensor:
        """Return a tensor rounded to its planned type; ``weight`` is its name in the checkpoint."""
        type = self.types.type_of(name)
        if type in FORMATS and values.shape[-1] % BLOCK:
            self.notes.append(
                f"{name}: rows of {values.shape[-1]} do not fill blocks of {BLOCK}; kept in f16"
            )
            type = "f16"
        matrix = values.detach().to(torch.float32)
        if type in PLAIN:
            data = matrix.numpy().astype(PLAIN[type])
            return StoredTensor(name, type, data, lost(matrix, torch.from_numpy(data).float()))
        block_format = FORMATS[type]
        levels, scales = self._rounded(matrix, block_format, weight)
        packed = block_format.pack(levels.reshape(-1, BLOCK), scales.flatten())
        data = packed.numpy().reshape(len(matrix), -1)
        return StoredTensor(name, type, data, lost(matrix, dequantise(levels, scales)))

    def _rounded(self, matrix: Tensor, block_format: BlockFormat, weight: str) -> tuple[Tensor, Tensor]:
        hessian = self.calibration.hessian(weight) if self.calibration is not None else None
        if hessian is None:
            return block_format.quantise(matrix)
        return gptq.quantise(matrix, hessian, block_format)


def lost(matrix: Tensor, stored: Tensor) -> float:
    """Return the relative root-mean-square error of ``stored``."""
    return float(
        torch.linalg.vector_norm(matrix - stored) / torch.linalg.vector_norm(matrix).clamp_min(1e-30)
    )
