"""From documents to shards: flat token files, each with its document table."""

import hashlib
import json
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from tokenizers import Tokenizer

from .selection import Shard
from .staging import in_batches, staged_documents, sync
from .vocabulary import token_dtype

TABLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("license", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
ZSTD_LEVEL = 19


def planned_shards(work: Path) -> list[Shard]:
    """Return the shards that the deciding stage planned."""
    return [
        Shard(**values) for values in json.loads((work / "plan" / "shards.json").read_text(encoding="utf-8"))
    ]


class PlannedDocuments(PipelineStep):
    """Yields the staged documents that go into this task's shard."""

    type = "READ"
    name = "planned documents"

    def __init__(self, work: Path):
        super().__init__()
        self.work = work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        yield from staged_documents(self.work, np.load(self.work / "plan" / f"{rank:05d}.npy"))


class TokeniseDocuments(PipelineStep):
    """Writes the shard of this task: ``OUT/RANK.tokens`` and ``OUT/RANK.documents``."""

    type = "TOKENIZER"
    name = "shards"

    def __init__(self, out: Path, tokenizer: Path, end_of_text: str):
        super().__init__()
        self.out = out
        self.tokenizer = tokenizer
        self.end_of_text = end_of_text

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        assert data is not None
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        tokenizer = Tokenizer.from_file(str(self.tokenizer))
        tokenizer.encode_special_tokens = True  # text that spells a special token stays text
        dtype = token_dtype(tokenizer.get_vocab_size())
        end = np.array([tokenizer.token_to_id(self.end_of_text)], dtype=dtype)
        table: dict[str, list[Any]] = {name: [] for name in TABLE_SCHEMA.names}
        offset = 0
        self.out.mkdir(exist_ok=True)
        with (self.out / f"{rank:05d}.tokens").open("wb") as file:
            for batch in in_batches(data):
                encodings = tokenizer.encode_batch_fast([d.text for d in batch], add_special_tokens=False)
                for document, encoding in zip(batch, encodings, strict=True):
                    tokens = np.array(encoding.ids, dtype=dtype)
                    file.write(tokens.tobytes())
                    file.write(end.tobytes())
                    add_row(table, document, offset, len(tokens) + 1)
                    offset += len(tokens) + 1
            sync(file)
        with (self.out / f"{rank:05d}.documents").open("wb") as file:
            with pa.ipc.new_file(file, TABLE_SCHEMA) as writer:
                # One batch, so that a reader finds a document by bisecting the mapped offsets.
                writer.write_batch(pa.RecordBatch.from_pydict(table, TABLE_SCHEMA))
            sync(file)
        yield from ()


def add_row(table: dict[str, list[Any]], document: Document, offset: int, length: int) -> None:
    """Append a document to the columns of the table."""
    text = document.text.encode()
    table["id"].append(document.id)
    table["source"].append(document.metadata["source"])
    table["license"].append(document.metadata["license"])
    table["offset"].append(offset)
    table["length"].append(length)
    table["size_bytes"].append(len(text))
    table["sha256"].append(hashlib.sha256(text).hexdigest())


class CompressHeldout(PipelineStep):
    """One task a subset: what general compressors need for its held-out text, to compare a model with."""

    type = "COMPARE"
    name = "compressors"

    def __init__(self, work: Path, subsets: list[str]):
        super().__init__()
        self.work = work
        self.subsets = subsets

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        name = self.subsets[rank]
        text = b"".join(
            document.text.encode()
            for task, shard in enumerate(planned_shards(self.work))
            if shard.subset == name and shard.split == "heldout"
            for document in staged_documents(self.work, np.load(self.work / "plan" / f"{task:05d}.npy"))
        )
        result = {
            "bytes": len(text),
            "xz_bytes": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
            "zstd_bytes": len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(text)),
        }
        folder = self.work / "compressed"
        folder.mkdir(exist_ok=True)
        (folder / f"{rank:05d}.json").write_text(json.dumps(result), encoding="utf-8")
        yield from ()
