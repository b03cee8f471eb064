"""Read safetensors files with NumPy alone, and believe nothing a header says before checking it."""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

# The format's own limit (safetensors' Rust reader refuses longer headers too).
HEADER_LIMIT_BYTES = 100_000_000
CHUNK_VALUES = 1 << 22
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# bfloat16 and float8 have no NumPy type; they are read as their bits.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1",
    "F8_E5M2": "u1",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its type as safetensors spells it, its shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=np.int64))


class TensorFile:
    """A safetensors file whose header has been checked: no tensor lies outside it or over another.

    Raises:
        UserError: the file is not safetensors, or its header lies.
    """

    def __init__(self, path: Path):
        self.path = path
        header, self.data_start, data_bytes = read_header(path)
        self.metadata = cast(dict[str, str], header.pop("__metadata__", {}))
        try:
            self.tensors = {name: self._tensor(entry) for name, entry in header.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged safetensors header ({error}); do not use it") from None
        end = 0
        for name, tensor in sorted(
            self.tensors.items(), key=lambda item: (item[1].start, item[1].size_bytes)
        ):
            if tensor.start - self.data_start != end:
                raise UserError(f"{path}: tensor {name} overlaps or leaves a hole; do not use it")
            end += tensor.size_bytes
        if end != data_bytes:
            raise UserError(
                f"{path}: {data_bytes} bytes of tensors, {end} named in the header; do not use it"
            )

    def _tensor(self, entry: Any) -> Tensor:
        shape = tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
            raise ValueError("shapes and offsets must be whole numbers")
        tensor = Tensor(entry["dtype"], shape, self.data_start + start, stop - start)
        # Python's integers: a product of hostile shapes must not wrap around to the right answer.
        values = 1
        for extent in shape:
            values *= extent
        if values * np.dtype(DTYPES[tensor.dtype]).itemsize != tensor.size_bytes:
            raise ValueError(f"shape {list(shape)} of {tensor.dtype} does not fill {tensor.size_bytes} bytes")
        return tensor

    def raw(self, name: str) -> NDArray[Any]:
        """Return the tensor's stored values, memory-mapped; bfloat16 and float8 as their bits."""
        tensor = self.tensors[name]
        kind = np.dtype(DTYPES[tensor.dtype])
        if tensor.size == 0:
            return np.zeros(tensor.shape, kind)
        return np.memmap(self.path, dtype=kind, mode="r", offset=tensor.start, shape=tensor.shape)

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield the tensor's values in order as flat float32 pieces of at most ``CHUNK_VALUES``."""
        dtype, raw = self.tensors[name].dtype, self.raw(name).reshape(-1)
        if dtype.startswith("F8"):
            raise UserError(f"{self.path}: tensor {name} is {dtype}, which is not read here")
        for start in range(0, raw.size, CHUNK_VALUES):
            piece = raw[start : start + CHUNK_VALUES]
            if dtype == "BF16":
                yield (piece.astype(np.uint32) << 16).view(np.float32)
            else:
                yield piece.astype(np.float32)


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return a safetensors file's header, where its data start, and how many bytes of data follow.

    Raises:
        UserError: the length or the JSON of the header cannot be true.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size_bytes
        if length > min(HEADER_LIMIT_BYTES, size_bytes - 8):
            raise UserError(
                f"{path}: claims a header of {length:,} bytes in a file of {size_bytes:,}; do not use it"
            )
        try:
            header: Any = json.loads(file.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: its header is not JSON; not safetensors, do not use it")
    return cast(dict[str, Any], header), 8 + length, size_bytes - 8 - length


def model_files(folder: Path) -> list[TensorFile]:
    """Return the weight files of a Hugging Face model folder: one, or the shards its index names.

    Raises:
        UserError: there are none, or the index names a file outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [TensorFile(folder / WEIGHTS)]
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"{folder}: no {WEIGHTS} here; give a model folder")
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: not a weight index ({error})") from None
    if outside := sorted(name for name in names if Path(name).name != name):
        raise UserError(f"{index}: names {outside[0]!r}, outside its own folder; do not use it")
    return [TensorFile(folder / name) for name in sorted(names)]


def model_tensors(folder: Path) -> Mapping[str, TensorFile]:
    """Return, for each weight of a model folder, the file that holds it."""
    return {name: file for file in model_files(folder) for name in file.tensors}
