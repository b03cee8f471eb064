"""Where documents come from: the files a recipe names, what one task reads, bytes out of any compression."""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from mobillama.core.errors import UserError

from . import stdlib
from .recipe import CorpusSection, SubsetSection

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """One file to read: its name relative to where its source starts, and where it lies."""

    name: str
    path: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Unit:
    """What one task reads: a part of one source, small enough for one process."""

    source: int
    """Which of ``corpus.subsets``."""
    files: tuple[InputFile, ...] = ()
    hub_shard: int = 0
    hub_shards: int = 1

    @property
    def size_bytes(self) -> int:
        """Bytes on disk; 1 for what is streamed, whose size is not known before."""
        return sum(file.size_bytes for file in self.files) or 1


def plan_units(section: CorpusSection) -> list[Unit]:
    """Return what the tasks of the reading stage read, in recipe order; depends on the inputs alone.

    Raises:
        UserError: a path that names nothing.
    """
    return [
        unit
        for number, source in enumerate(section.subsets)
        for unit in (
            hub_units(number, source)
            if source.kind == "hub"
            else packed(number, input_files(source, section.root), section.shard_bytes)
        )
    ]


def input_files(source: SubsetSection, root: Path) -> list[InputFile]:
    """Return the files of a source, sorted by name within each path the recipe gives."""
    if source.kind == "stdlib":
        folder = stdlib.folder()
        return [describe(folder / name, name) for name in stdlib.module_files()]
    found: dict[str, InputFile] = {}
    for given in source.paths:
        base = root / given
        matches = sorted(root.glob(given)) if any(mark in given for mark in "*?[") else [base]
        if source.kind == "directory":
            matches = [path for folder in matches for path in sorted(folder.glob(source.pattern))]
        files = [path for path in matches if path.is_file()]
        if not files:
            what = f"holds no file that matches {source.pattern!r}" if base.is_dir() else "no such file"
            raise UserError(f"{base}: {what} (subset {source.name}); mend its paths or set corpus.root")
        for path in files:
            name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
            found.setdefault(name, describe(path, name))
    return list(found.values())


def describe(path: Path, name: str) -> InputFile:
    """Return what identifies a file between two attempts at one preparation."""
    status = path.stat()
    return InputFile(name, str(path.absolute()), status.st_size, status.st_mtime_ns)


def packed(source: int, files: list[InputFile], limit_bytes: int) -> Iterator[Unit]:
    """Yield units of consecutive files, each at most ``limit_bytes`` on disk or a single file."""
    batch: list[InputFile] = []
    for file in files:
        if batch and sum(member.size_bytes for member in batch) + file.size_bytes > limit_bytes:
            yield Unit(source, tuple(batch))
            batch = []
        batch.append(file)
    if batch:
        yield Unit(source, tuple(batch))


def hub_units(number: int, source: SubsetSection) -> list[Unit]:
    """Return one unit for each shard of a Hugging Face data set."""
    from .hub import shard_count

    count = shard_count(source)
    return [Unit(number, hub_shard=shard, hub_shards=count) for shard in range(count)]


class TruncatedError(Exception):
    """Compressed data that ends early or is damaged; says which."""


def open_bytes(path: str) -> BinaryIO:
    """Open a file for reading through gzip, xz or Zstandard, as its name ends; plain otherwise.

    Reading raises TruncatedError where the compressed data stops making sense.
    """
    makers: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
        ".gz": gzip_blocks,
        ".xz": xz_blocks,
        ".zst": zstd_blocks,
    }
    raw = Path(path).open("rb")  # noqa: SIM115 - the caller closes it through the wrapper
    maker = makers.get(Path(path).suffix)
    return raw if maker is None else io.BufferedReader(_Blocks(raw, maker(raw)), READ_BYTES)


def gzip_blocks(raw: BinaryIO) -> Iterator[bytes]:
    """Yield decompressed blocks of a gzip file."""
    try:
        with gzip.open(raw) as file:
            while block := file.read(READ_BYTES):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TruncatedError(f"gzip data is damaged or cut off ({error})") from None


def xz_blocks(raw: BinaryIO) -> Iterator[bytes]:
    """Yield decompressed blocks of an xz file."""
    try:
        with lzma.open(raw) as file:
            while block := file.read(READ_BYTES):
                yield block
    except (EOFError, lzma.LZMAError) as error:
        raise TruncatedError(f"xz data is damaged or cut off ({error})") from None


def zstd_blocks(raw: BinaryIO) -> Iterator[bytes]:
    """Yield decompressed blocks of a Zstandard file, frame after frame.

    Not ``stream_reader``: it ends quietly where a frame is cut off.
    """
    decompressor, inside, pending = zstandard.ZstdDecompressor(), None, b""
    try:
        while pending or (pending := raw.read(READ_BYTES)):
            inside = inside or decompressor.decompressobj()
            yield inside.decompress(pending)
            pending = inside.unused_data
            if inside.eof:
                inside = None
    except zstandard.ZstdError as error:
        raise TruncatedError(f"Zstandard data is damaged ({error})") from None
    if inside is not None:
        raise TruncatedError("Zstandard data is cut off")


class _Blocks(io.RawIOBase):
    """An iterator of byte blocks as a raw stream."""

    def __init__(self, raw: BinaryIO, blocks: Iterator[bytes]):
        self._raw = raw
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
