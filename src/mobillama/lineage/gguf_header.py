"""Read what a GGUF file says of itself, with the standard library alone and nothing believed unchecked.

Source: the GGUF specification of ggml, version 3 (version 2 differs in nothing that is read here).
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError

# Numbers of the specification's value types.
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9
# ggml's tensor types: name, values a block, bytes a block.
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip
MAX_DIMENSIONS = 4
SHOWN_ITEMS = 64


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file: its type's name, its shape (fastest dimension first) and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    size_bytes: int | None


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a file, long arrays cut to a count, and its tensors by name."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class Cursor:
    """A place in the file's bytes that only moves forward, never past the end: no count can lead out."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if size > len(self.data) - self.at:
            raise ValueError("it ends inside its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        """Return the next number of a ``struct`` format."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """Return the next string."""
        return self.take(self.number("<Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Return the next metadata value; of a long array only how long it is."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"value type {kind} is unknown")
        inner = self.number("<I")
        if inner in SCALARS:
            size = struct.calcsize(SCALARS[inner])
            items = self.number("<Q")
            if items > SHOWN_ITEMS:
                self.take(items * size)
                return f"{items:,} numbers"
            return [self.number(SCALARS[inner]) for _ in range(items)]
        if inner != STRING:
            raise ValueError("it nests arrays")
        texts = [self.text() for _ in range(self.number("<Q"))]
        return texts if len(texts) <= SHOWN_ITEMS else f"{len(texts):,} strings"


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the metadata and tensors of a GGUF file.

    Raises:
        UserError: it is not GGUF, or its header cannot be true.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path}: not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = Cursor(data)
            try:
                return parse(cursor)
            except (ValueError, struct.error) as error:
                raise UserError(f"{path}: damaged GGUF header: {error}; do not use it") from None


def parse(cursor: Cursor) -> GgufHeader:
    """Parse a header from its first byte."""
    cursor.take(4)
    version = cursor.number("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not read here")
    tensor_count, value_count = cursor.number("<Q"), cursor.number("<Q")
    metadata = {}
    for _ in range(value_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    tensors = dict(parse_tensor(cursor) for _ in range(tensor_count))
    if len(tensors) != tensor_count:
        raise ValueError("two tensors have one name")
    return GgufHeader(version, metadata, tensors)


def parse_tensor(cursor: Cursor) -> tuple[str, GgufTensor]:
    """Parse one entry of the tensor table; its data must lie inside the file."""
    name, dimensions = cursor.text(), cursor.number("<I")
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    size = 1
    for extent in shape:
        size *= extent
    dtype, block, block_bytes = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
    size_bytes = size // block * block_bytes if block_bytes else None
    if offset + (size_bytes or 0) > len(cursor.data):
        raise ValueError(f"tensor {name} lies outside it")
    return name, GgufTensor(dtype, shape, size, size_bytes)
