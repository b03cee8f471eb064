"""Reading as pipeline steps: documents with their fingerprints, staged on disk between stages.

A task of the reading stage owns ``read/NNNNN/``: ``documents.arrow`` (text in batches), ``index.arrow``
(what deciding needs, without the text), ``dropped.jsonl``, ``quarantine.jsonl`` and ``inputs.json``.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mobillama.core.errors import UserError
from mobillama.core.hashing import canonical_json, hash_file

from . import minhash
from .quality import reason_to_drop
from .readers import BadInput, read_unit
from .recipe import CorpusSection
from .sources import Unit

BATCH_BYTES = 4 << 20
TEXT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "license", "text")])
INDEX_SCHEMA = pa.schema(
    [("id", pa.string()), ("sha256", pa.binary(32)), ("size_bytes", pa.int64()), ("group", pa.uint64())]
    + [(f"band_{band:02d}", pa.uint64()) for band in range(minhash.BANDS)]
)


class ReadStep(PipelineStep):
    """A step of the reading stage: knows the recipe, its units, and where its task writes."""

    type = "READ"

    def __init__(self, work: Path, section: CorpusSection, units: list[Unit]):
        super().__init__()
        self.work = work
        self.section = section
        self.units = units

    def folder(self, rank: int) -> Path:
        """Return the folder of a task, made when it is missing."""
        return read_folder(self.work, rank, make=True)


class ReadDocuments(ReadStep):
    """Yields the documents of this task's unit; stops at bad input or writes it to quarantine."""

    name = "documents"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        unit = self.units[rank]
        subset = self.section.subsets[unit.source].name
        with (self.folder(rank) / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine:
            for item in read_unit(self.section, unit):
                if isinstance(item, Document):
                    yield item
                    continue
                if self.section.on_bad == "stop":
                    raise UserError(stop_message(item))
                quarantine.write(canonical_json(quarantine_line(item, subset)) + "\n")
        inputs = [
            {"subset": subset, "path": file.name, "size_bytes": hashes.size_bytes, "sha256": hashes.sha256}
            for file in unit.files
            if (hashes := hash_file(Path(file.path)))
        ]
        (self.folder(rank) / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")


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


class FilterDocuments(ReadStep):
    """Passes on what the filters keep, with its shingles; a line in ``dropped.jsonl`` for each other."""

    name = "filters"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        source = self.section.subsets[self.units[rank].source]
        filters = source.filters or self.section.filters
        assert data is not None
        with (self.folder(rank) / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
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


class StageDocuments(ReadStep):
    """Writes documents and their index: the end of a reading task."""

    name = "staging"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        assert data is not None
        folder = self.folder(rank)
        with (
            (folder / "documents.arrow").open("wb") as text_file,
            (folder / "index.arrow").open("wb") as index_file,
            pa.ipc.new_file(text_file, TEXT_SCHEMA) as texts,
            pa.ipc.new_file(index_file, INDEX_SCHEMA) as index,
        ):
            for batch in in_batches(data):
                rows = [
                    {
                        "id": d.id,
                        "source": d.metadata["source"],
                        "license": d.metadata["license"],
                        "text": d.text,
                    }
                    for d in batch
                ]
                texts.write_batch(pa.RecordBatch.from_pylist(rows, TEXT_SCHEMA))
                index.write_batch(pa.RecordBatch.from_pylist([index_row(d) for d in batch], INDEX_SCHEMA))
            texts.close()
            index.close()
            sync(text_file)
            sync(index_file)
        yield from ()


def in_batches(data: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield lists of consecutive documents of about ``BATCH_BYTES`` characters."""
    batch: list[Document] = []
    size = 0
    for document in data:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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


def sync(file: BinaryIO) -> None:
    """Put a file on disk before its task counts as done."""
    file.flush()
    os.fsync(file.fileno())


def read_folder(work: Path, task: int, *, make: bool = False) -> Path:
    """Return where a task of the reading stage writes."""
    folder = work / "read" / f"{task:05d}"
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_arrow(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Open an Arrow file without reading it."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def index_column(work: Path, tasks: int, column: str) -> NDArray[Any]:
    """Return one fixed-width column of every task's index, joined in task order."""
    parts = [
        open_arrow(read_folder(work, task) / "index.arrow").read_all()[column].to_numpy()
        for task in range(tasks)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def staged_documents(work: Path, rows: NDArray[np.int64]) -> Iterator[Document]:
    """Yield the staged documents at ``rows`` (n, 2): task and row, ascending; one batch in memory at a time."""
    for task in np.unique(rows[:, 0]):
        wanted = rows[rows[:, 0] == task, 1]
        reader = open_arrow(read_folder(work, int(task)) / "documents.arrow")
        first = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            low, high = np.searchsorted(wanted, [first, first + batch.num_rows])
            for values in batch.take(pa.array(wanted[low:high] - first)).to_pylist():
                yield Document(
                    text=values["text"],
                    id=values["id"],
                    metadata={"source": values["source"], "license": values["license"]},
                )
            first += batch.num_rows
