"""ggml's block formats q4_0 and q8_0: 32 values, one half-precision scale, rounded so that little is lost.

A block stores integers `level` and one `scale`; its values are `scale * level`. ggml's own
rounding puts the largest value exactly on the last level. Here the scale is searched: several
are tried, each is refined by least squares for the levels it gives, and the one with the least
weighted squared error after its own rounding to half precision is kept. ggml's scale is among
those tried, so the error is never larger than with it.

Source: ggml's `block_q4_0` and `block_q8_0` layouts; the search follows the idea of its
`make_qx_quants`, but compares the true error of what is stored.
"""

from dataclasses import dataclass

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

BLOCK = 32

# So many blocks are searched at once: their values and a few copies stay in a core's second-level cache.
CHUNK_BLOCKS = 2048


@dataclass(frozen=True)
class BlockFormat:
    """One way to store 32 values.

    Attributes:
        low, high: the least and greatest level.
        divisors: the levels, whole or not, that the largest value is tried to be put on.
    """

    name: str
    type: GGMLQuantizationType
    low: int
    high: int
    divisors: tuple[float, ...]

    def fit(self, values: Tensor, importance: Tensor | None = None) -> Tensor:
        """Return the best scale (N,) of each block; every scale is exact in half precision.

        Arguments:
            values: (N, 32) float32.
            importance: (N, 32) or (1, 32), what a squared error at each value costs; 1 if not given.
        """
        weights = torch.ones_like(values[:1]) if importance is None else importance
        chunks = [
            self._fit(chunk, weights if len(weights) == 1 else weights[start : start + CHUNK_BLOCKS])
            for start, chunk in zip(
                range(0, len(values), CHUNK_BLOCKS), values.split(CHUNK_BLOCKS), strict=True
            )
        ]
        return torch.cat(chunks)

    def _fit(self, values: Tensor, weights: Tensor) -> Tensor:
        largest = values.gather(1, values.abs().argmax(dim=1, keepdim=True)).squeeze(1)  # (N,)
        best = half(largest / self.low)
        least = self.error(values, best, weights)
        for divisor in self.divisors:
            levels = self.levels(values, largest / divisor)
            weighted = weights * levels
            refined = half((weighted * values).sum(1) / (weighted * levels).sum(1).clamp_min(1e-30))
            error = self.error(values, refined, weights)
            better = error < least
            best, least = torch.where(better, refined, best), torch.where(better, error, least)
        return best

    def levels(self, values: Tensor, scales: Tensor) -> Tensor:
        """Return the nearest level, as float32, of values (N, ...) by the scale (N,) of each row."""
        inverse = torch.where(scales == 0, 0, 1 / scales)
        return (values * inverse.unsqueeze(1)).round_().clamp_(self.low, self.high)

    def error(self, values: Tensor, scales: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted squared error (N,) of storing ``values`` by ``scales``."""
        missed = values - self.levels(values, scales) * scales.unsqueeze(1)
        return (weights * missed * missed).sum(1)

    def pack(self, levels: Tensor, scales: Tensor) -> Tensor:
        """Return the bytes (N, size) of blocks, from levels (N, 32) and scales (N,)."""
        scale_bytes = scales.to(torch.float16).unsqueeze(1).view(torch.uint8)  # (N, 2)
        if self is Q8_0:
            return torch.cat([scale_bytes, levels.to(torch.int8).view(torch.uint8)], dim=1)
        nibbles = (levels - self.low).to(torch.uint8)
        # A byte holds value i in its low half and value i + 16 in its high half.
        return torch.cat([scale_bytes, nibbles[:, :16] | (nibbles[:, 16:] << 4)], dim=1)

    def quantise(self, matrix: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return levels (rows, columns) and scales (rows, columns / 32) of a float32 matrix.

        Arguments:
            importance: (columns,), the mean square of the input that meets each column.
        """
        rows, columns = matrix.shape
        values = matrix.reshape(-1, BLOCK)
        weights = None
        if importance is not None:
            weights = importance.reshape(1, -1, BLOCK).expand(rows, -1, -1).reshape(-1, BLOCK)
        scales = self.fit(values, weights)
        levels = torch.cat(
            [
                self.levels(chunk, scale)
                for chunk, scale in zip(values.split(CHUNK_BLOCKS), scales.split(CHUNK_BLOCKS), strict=True)
            ]
        )
        return levels.reshape(rows, columns), scales.reshape(rows, columns // BLOCK)


def half(scales: Tensor) -> Tensor:
    """Return scales as half precision will hold them, in float32."""
    return scales.to(torch.float16).to(torch.float32)


def dequantise(levels: Tensor, scales: Tensor) -> Tensor:
    """Return the float32 matrix (rows, columns) that levels and scales stand for."""
    return (levels.unflatten(1, (-1, BLOCK)) * scales.unsqueeze(2)).flatten(1)


Q4_0 = BlockFormat(
    "q4_0",
    GGMLQuantizationType.Q4_0,
    low=-8,
    high=7,
    divisors=(-9.4, -8.9, -8.4, -8.0, -7.6, -7.3, -7.0, -6.7, -6.4, -6.0),
)
# Level -128 is left unused, as ggml does: kernels take absolute values in 8 bits.
Q8_0 = BlockFormat(
    "q8_0",
    GGMLQuantizationType.Q8_0,
    low=-127,
    high=127,
    divisors=(-127.4, -126.2, -125.0, -123.8, -122.6, -121.4, -120.2, -119.0),
)
FORMATS = {format.name: format for format in (Q4_0, Q8_0)}
