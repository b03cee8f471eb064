"""GPTQ inside ggml's blocks: each column's rounding error is made up for by the columns after it.

Source: Frantar et al. 2022 (arXiv 2210.17323), algorithm 1. Differences: columns keep their
order, because a block's 32 values must stay neighbours; scales are searched by weighted error
when a block is reached, on the values as they then are.
"""

import torch
from torch import Tensor

from .blocks import BLOCK, BlockFormat

# Columns whose corrections are gathered before the rest of the matrix is touched.
LAZY_COLUMNS = 128
DAMPING = 0.01


def quantise(matrix: Tensor, hessian: Tensor, block_format: BlockFormat) -> tuple[Tensor, Tensor]:
    """Return levels (rows, columns) and scales (rows, columns / 32).

    Arguments:
        matrix: (rows, columns) float32.
        hessian: (columns, columns) float32, the mean of `x x^T` over the matrix's inputs.
    """
    rest = matrix.clone()
    rows, columns = rest.shape
    importance = hessian.diagonal().clone()
    factor = inverse_factor(hessian)  # upper triangular
    levels = torch.empty_like(rest)
    scales = torch.empty(rows, columns // BLOCK)
    for begin in range(0, columns, LAZY_COLUMNS):
        end = min(begin + LAZY_COLUMNS, columns)
        errors = torch.empty(rows, end - begin)
        for column in range(begin, end):
            block = column // BLOCK
            if column % BLOCK == 0:
                values = rest[:, column : column + BLOCK].contiguous()
                scales[:, block] = block_format.fit(values, importance[None, column : column + BLOCK])
            value, scale = rest[:, column : column + 1], scales[:, block]
            level = block_format.levels(value, scale)
            levels[:, column : column + 1] = level
            error = (value - level * scale[:, None]) / factor[column, column]
            errors[:, column - begin : column - begin + 1] = error
            rest[:, column:end] -= error * factor[column, column:end]
        rest[:, end:] -= errors @ factor[begin:end, end:]
    return levels, scales


def inverse_factor(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped Hessian's inverse."""
    damped = hessian.double()
    damping = DAMPING * damped.diagonal().mean().clamp_min(1e-12)
    damped = damped + damping * torch.eye(len(damped), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
