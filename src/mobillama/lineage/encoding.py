"""Lossless compression of weights: byte planes under zstd, against the same tensor one checkpoint earlier.

Neighbouring checkpoints differ little, so the difference of two values' bit patterns, taken as integers, is
small: its high bytes are nearly all zero. A plane is all first bytes of a tensor, then all second bytes, and
so on; signs, exponents and high mantissa bits end up together and compress, random low bits are stored.
"""

import json
import re
import struct
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from mobillama.core.errors import UserError

LEVEL = 1
"""Of zstd: higher levels gained under 0.5 % on real checkpoints and cost several times the time."""
SAMPLE_VALUES = 1 << 18
HEADER_LIMIT_BYTES = 1 << 16
HASH = re.compile("[0-9a-f]{64}")
Bits = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Header:
    """How a payload is decoded: width of a value, the object it differs from, and each plane's size."""

    itemsize: int
    size_bytes: int
    base: str | None
    planes: list[int]


def encode(values: Bits, base: Bits | None, base_name: str | None) -> bytes:
    """Return ``values`` compressed, against ``base`` where a sample of both says that this is smaller.

    Arguments:
        values: (N,) unsigned integers, the bits of a tensor or of any file.
        base: (N,) of the same width, or None.
        base_name: the object that holds ``base``, to find it when decoding.
    """
    if base is not None:
        sample = slice(0, SAMPLE_VALUES)
        plain, differing = compressed(values[sample]), compressed(difference(values[sample], base[sample]))
        if sum(map(len, plain)) <= sum(map(len, differing)):
            base = None
    planes = compressed(values if base is None else difference(values, base))
    header = Header(
        values.itemsize, values.nbytes, None if base is None else base_name, [len(p) for p in planes]
    )
    text = json.dumps(asdict(header)).encode()
    return struct.pack("<I", len(text)) + text + b"".join(planes)


def read_header(data: bytes) -> tuple[Header, int]:
    """Return an encoded object's header and where its planes start.

    Raises:
        UserError: this is no encoded object, or it claims what it cannot hold.
    """
    try:
        (length,) = struct.unpack_from("<I", data)
        if length > min(HEADER_LIMIT_BYTES, len(data) - 4):
            raise ValueError("its header is too long")
        header = Header(**json.loads(data[4 : 4 + length]))
        if header.itemsize != len(header.planes) or sum(header.planes) != len(data) - 4 - length:
            raise ValueError("its planes do not fill it")
        if header.base is not None and not HASH.fullmatch(header.base):
            raise ValueError("what it was packed against is no hash")
    except (ValueError, TypeError, struct.error) as error:
        raise UserError(f"not a packed object: {error}") from None
    return header, 4 + length


def decode(data: bytes, base: Bits | None) -> Bits:
    """Return the values that ``encode`` was given.

    Raises:
        UserError: the data is damaged, or ``base`` is not what it was encoded against.
    """
    header, start = read_header(data)
    count = header.size_bytes // header.itemsize
    try:
        planes = np.empty((header.itemsize, count), np.uint8)
        for number, size in enumerate(header.planes):
            plane = zstandard.ZstdDecompressor().decompress(data[start : start + size], max_output_size=count)
            planes[number] = np.frombuffer(plane, np.uint8)
            start += size
    except (zstandard.ZstdError, ValueError, MemoryError) as error:
        raise UserError(f"damaged packed object: {error}") from None
    values = np.ascontiguousarray(planes.T).reshape(-1).view(width(header.itemsize))
    if header.base is None:
        return values
    if base is None or base.shape != values.shape or base.itemsize != values.itemsize:
        raise UserError("damaged packed object: it was packed against another tensor")
    return restored(values, base)


def compressed(values: Bits) -> list[bytes]:
    """Return each byte plane of the values under zstd; the work runs outside Python's lock."""
    planes = values.view(np.uint8).reshape(-1, values.itemsize)
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    return [compressor.compress(np.ascontiguousarray(plane).data) for plane in planes.T]


def difference(values: Bits, base: Bits) -> Bits:
    """Return the differences of bit patterns, small ones of either sign as small numbers (zigzag)."""
    signed = (values - base).view(width(values.itemsize, signed=True))
    return ((signed << 1) ^ (signed >> (8 * values.itemsize - 1))).view(values.dtype)


def restored(differences: Bits, base: Bits) -> Bits:
    """Undo ``difference``."""
    one = differences.dtype.type(1)
    return base + ((differences >> one) ^ (~(differences & one) + one))


def width(itemsize: int, *, signed: bool = False) -> np.dtype[Any]:
    """Return the integer type of so many bytes.

    Raises:
        UserError: there is none.
    """
    if itemsize not in (1, 2, 4, 8):
        raise UserError(f"damaged packed object: values of {itemsize} bytes")
    return np.dtype(f"<{'i' if signed else 'u'}{itemsize}")
