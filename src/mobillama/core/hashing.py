"""Content hashes: BLAKE3 to find a changed bit fast, SHA-256 where others must check it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FileHashes:
    """One file's size in bytes and its two digests, lower-case hexadecimal."""

    size_bytes: int
    sha256: str
    blake3: str


def hash_file(path: Path) -> FileHashes:
    """Return size, SHA-256 and BLAKE3 of ``path``, read once in constant memory."""
    sha, fast, size_bytes = hashlib.sha256(), blake3(), 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            sha.update(block)
            fast.update(block)
            size_bytes += len(block)
    return FileHashes(size_bytes, sha.hexdigest(), fast.hexdigest())


def total_bytes(directory: Path) -> int:
    """Return the bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def blake3_file(path: Path) -> str:
    """Return the BLAKE3 digest of ``path``, memory-mapped, on one core."""
    hasher = blake3()
    hasher.update_mmap(path)
    return hasher.hexdigest()


def sha256_text(text: str) -> str:
    """Return the SHA-256 of ``text`` as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """Return the one JSON spelling of ``value`` that hashes are taken over (sorted, no spaces)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
