"""Benchmark items read from whatever files a benchmark is kept in, as the strings they are made of.

JSON Lines, JSON and CSV, plain or packed (.xz, .gz, .bz2), also inside .tar archives. No layout is
known by name: an item is a record, and its texts are all strings in it, at any depth.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mobillama.core.errors import UserError

OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
FORMATS = (".jsonl", ".json", ".csv")
# A first row of names: cells of at most this many words. Questions are longer.
HEADER_WORDS = 3


@dataclass(frozen=True)
class Item:
    """One record of a benchmark: the file it is from, its number there from 1, and its texts."""

    file: str
    number: int
    texts: list[str]


def read_items(path: Path) -> Iterator[Item]:
    """Yield the items of a benchmark file, or of every such file below a folder, in name order.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file_format(file.name)]
    if not files:
        raise UserError(f"{path}: no .jsonl, .json or .csv file here, packed or in a .tar; give a benchmark")
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            for member, stream in opened(file, name):
                for number, texts in enumerate(records(member, stream), start=1):
                    yield Item(member, number, texts)
        except (OSError, EOFError, ValueError, lzma.LZMAError, tarfile.TarError, csv.Error) as error:
            raise UserError(
                f"{file}: cannot be read ({error}); take the benchmark from its source again"
            ) from None


def file_format(name: str) -> str | None:
    """Return ``.jsonl``, ``.json``, ``.csv`` or ``.tar`` as a file's name tells, else None."""
    suffixes = [suffix for suffix in Path(name).suffixes if suffix not in OPENERS]
    return suffixes[-1] if suffixes and suffixes[-1] in (*FORMATS, ".tar") else None


def opened(file: Path, name: str) -> Iterator[tuple[str, BinaryIO]]:
    """Yield each file of a benchmark with its name: itself, or those inside an archive."""
    if file_format(name) == ".tar":
        with tarfile.open(file, "r:*") as archive:
            for member in archive:
                stream = archive.extractfile(member) if file_format(member.name) in FORMATS else None
                if stream is not None:
                    yield f"{name}/{member.name}", stream  # type: ignore[misc]
        return
    with OPENERS.get(file.suffix, open)(file, "rb") as stream:
        yield name, stream


def records(name: str, stream: BinaryIO) -> Iterator[list[str]]:
    """Yield the texts of each record of one file."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    if file_format(name) == ".csv":
        rows = csv.reader(text)
        first = next(rows, [])
        if not all(len(cell.split()) <= HEADER_WORDS and not cell.strip().isdigit() for cell in first):
            yield first
        yield from rows
    elif file_format(name) == ".jsonl":
        for line in text:
            if line.strip():
                yield list(strings(json.loads(line)))
    else:
        whole = json.load(text)
        yield from (list(strings(record)) for record in (whole if isinstance(whole, list) else [whole]))


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, and the keys that are sentences (answers kept as keys)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if " " in key:
                yield key
            yield from strings(inner)
