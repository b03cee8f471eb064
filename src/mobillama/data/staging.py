"""The reading stage: documents with their fingerprints, written where the other stages find them."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datatrove.data import Document

from mobillama.core.errors import UserError
from mobillama.core.hashing import canonical_json, hash_file

from . import minhash
from .quality import reason_to_drop
from .readers import BadInput, read_unit
from .workplace import Step, sync

BATCH_CHARACTERS = 4 << 20
TEXT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "license", "text")])
INDEX_SCHEMA = pa.schema(
    [("id", pa.string()), ("sha256", pa.binary(32)), ("size_bytes", pa.int64()), ("group", pa.uint64())]
    + [(f"band_{band:02d}", pa.uint64()) for band in range(minhash.BANDS)]
)


class ReadDocuments(Step):
    """Yields the documents of this task's unit; stops at bad input or writes it to quarantine."""

    name = "read"

    def run(self, data: Iterator[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        unit, folder = self.work.units()[rank], self.work.read(rank)
        subset = self.section.subsets[unit.source].name
        with (folder / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine:
            for item in read_unit(self.section, unit):
                if isinstance(item, Document):
                    yield item
                elif self.section.on_bad == "stop":
                    raise UserError(stop_message(item))
                else:
                    quarantine.write(canonical_json(quarantine_line(item, subset)) + "\n")
        inputs: list[dict[str, Any]] = []
        for file in unit.files:
            hashes = asdict(hash_file(Path(file.path)))
            inputs.append({"subset": subset, "path": file.name} | hashes)
        (folder / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")


def stop_message(bad: BadInput) -> str:
    """Return the sentence that names bad input, where it is, and what can be done."""
    return (
        f"{bad.file}:{bad.line}: {bad.error}; mend the file, "
        'or set corpus.on_bad = "quarantine" to go on without such records'
    )


def quarantine_line(bad: BadInput, subset: str) -> dict[str, Any]:
    """Return bad input as a line of ``quarantine.jsonl``."""
    raw = base64.b64encode(bad.raw).decode("ascii")
    return {"subset": subset, "file": bad.file, "line": bad.line, "error": bad.error, "raw": raw}


class FilterDocuments(Step):
    """Passes on what the filters keep, with its shingles; a line in ``dropped.jsonl`` for each other."""

    name = "filter"

    def run(self, data: Iterator[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        assert data is not None
        source = self.section.subsets[self.work.units()[rank].source]
        filters = source.filters or self.section.filters
        with (self.work.read(rank) / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
            for document in data:
                hashes = minhash.shingles(document.text.encode())
                if found := reason_to_drop(document, hashes, filters):
                    dropped.write(canonical_json(dropped_line(document.id, source.name, *found)) + "\n")
                    continue
                document.metadata["shingles"] = hashes
                yield document


def dropped_line(document_id: str, subset: str, reason: str, detail: str) -> dict[str, str]:
    """Return a line of ``dropped.jsonl``."""
    return {"id": document_id, "subset": subset, "reason": reason, "detail": detail}


class StageDocuments(Step):
    """Writes documents and their index: the end of a reading task."""

    name = "stage"

    def run(self, data: Iterator[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        assert data is not None
        folder = self.work.read(rank)
        with (
            (folder / "documents.arrow").open("wb") as text_file,
            (folder / "index.arrow").open("wb") as index_file,
        ):
            with (
                pa.ipc.new_file(text_file, TEXT_SCHEMA) as texts,
                pa.ipc.new_file(index_file, INDEX_SCHEMA) as index,
            ):
                for batch in in_batches(data):
                    texts.write_batch(pa.RecordBatch.from_pylist([text_row(d) for d in batch], TEXT_SCHEMA))
                    index.write_batch(pa.RecordBatch.from_pylist([index_row(d) for d in batch], INDEX_SCHEMA))
            sync(text_file)
            sync(index_file)
        yield from ()


def in_batches(data: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield lists of consecutive documents of about ``BATCH_CHARACTERS``."""
    batch: list[Document] = []
    size = 0
    for document in data:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def text_row(document: Document) -> dict[str, str]:
    """Return what a shard needs to know of a document."""
    metadata = document.metadata
    source, license_name = metadata["source"], metadata["license"]
    return {"id": document.id, "source": source, "license": license_name, "text": document.text}


def index_row(document: Document) -> dict[str, Any]:
    """Return what deciding needs to know of a document."""
    text = document.text.encode()
    digest = hashlib.sha256(text).digest()
    group = document.metadata.get("group")
    key = digest if group is None else hashlib.sha256(f"group/{group}".encode()).digest()
    # A text without a word has no shingles; its own hash stands for them, so that it is like nothing else.
    hashes = document.metadata["shingles"]
    keys = minhash.bands(hashes if len(hashes) else np.frombuffer(digest[:8], dtype=np.uint64))
    row = {f"band_{band:02d}": int(value) for band, value in enumerate(keys)}
    group_key = int.from_bytes(key[:8], "little")
    return row | {"id": document.id, "sha256": digest, "size_bytes": len(text), "group": group_key}
