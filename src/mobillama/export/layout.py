"""What the stock-Llama layout does to rows, apart from how weights are rounded. No torch."""

import numpy as np
from numpy.typing import NDArray

STOCK_ARCHITECTURE = "llama"


def permuted(rows: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Return the rows of q or k in llama.cpp's order: rotary pairs side by side, not half a head apart.

    Rows are moved whole, so they may be values or quantised bytes.
    """
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
