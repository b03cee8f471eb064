"""Tensors that tell of a full disk when they are written."""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class Written(np.ndarray):
    """An array whose ``tofile`` is Python's own write.

    NumPy's writes through a C stream: on a full disk its error has no number, and in the last buffer
    there is none, so that a file with a hole would pass for whole (NumPy 2.4; gguf's writer calls it).
    """

    def tofile(self, fid: BinaryIO, sep: str = "", format: str = "") -> None:  # type: ignore[override]
        """Write the values' bytes in row order."""
        fid.write(np.ascontiguousarray(self).data)


def written(values: NDArray[Any]) -> Written:
    """Return a view of ``values`` to hand to gguf's writer."""
    return values.view(Written)
